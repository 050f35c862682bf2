"""What is exported loads in PEFT and computes what the original adapter computes."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from llgbm_pack import PackOptions, build
from llgbm_pack.look.export import export_adapter
from llgbm_shards import ShardSet
from llgbm_shards.errors import UsageError
from support.commands import here
from support.peft_files import lora, nameless_base
from support.tiny_zoo import tree, write_adapter

KINDS = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "odd_alpha": {"r": 4, "lora_alpha": 3},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"layers.0.self_attn.q_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.v_proj": 5},
    },
    "rslora_patterns": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "rank_pattern": {"layers.1.self_attn.q_proj": 1},
    },
    "one_layer": {"r": 4, "lora_alpha": 8, "layers_to_transform": [1]},
    "trained": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "task_type": "CAUSAL_LM"},
}
IDS = torch.arange(12).reshape(2, 6) + 5


@pytest.fixture(scope="module")
def base():
    return nameless_base()


@pytest.fixture(scope="module")
def packed(base, tmp_path_factory):
    """A set of one real PEFT adapter of each kind, rank 4, B not zero; zoo and set."""
    import copy

    from peft import get_peft_model

    root = tmp_path_factory.mktemp("export")
    for number, (name, options) in enumerate(KINDS.items()):
        model = get_peft_model(copy.deepcopy(base), lora(**options))
        generator = torch.Generator().manual_seed(number)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(root / "zoo" / name)
    report = build(PackOptions(zoo=root / "zoo", out=root / "out", rank=4, workers=1))
    assert report.packed == len(KINDS), report.skipped
    opened = ShardSet(root / "out")
    keys = {row["checkpoint"]: row["key"] for row in opened.index(["checkpoint", "key"]).to_pylist()}
    return root, keys


def logits(base, directory):
    import copy

    from peft import PeftModel

    model = PeftModel.from_pretrained(copy.deepcopy(base), directory).eval()
    with torch.no_grad():
        return model(IDS).logits.double()


@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_the_same(base, packed, tmp_path, kind):
    root, keys = packed
    report = export_adapter(str(root / "out"), keys[kind], tmp_path / "adapter")
    assert report.checkpoint == kind
    with torch.no_grad():
        bare = base(IDS).logits.double()
    original, exported = logits(base, root / "zoo" / kind), logits(base, tmp_path / "adapter")
    moved = (original - bare).abs().max()
    assert moved > 0.05  # the adapter does something, and a wrong scaling would show
    assert (exported - original).abs().max() < 1e-4 * moved


@pytest.mark.parametrize("kind", ["plain", "trained"])
def test_what_training_goes_on_with_is_kept(packed, tmp_path, kind):
    """lora_dropout and task_type do nothing to the weights, but to whoever trains the adapter further."""
    root, keys = packed
    export_adapter(str(root / "out"), keys[kind], tmp_path / "adapter")
    original, exported = (
        json.loads((path / "adapter_config.json").read_text())
        for path in (root / "zoo" / kind, tmp_path / "adapter")
    )
    for name in ("lora_dropout", "task_type"):
        assert exported[name] == original[name]


def test_a_config_without_them_gives_pefts_own_defaults(tmp_path):
    write_adapter(tmp_path / "zoo/a", 3)
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", workers=1))
    export_adapter(str(tmp_path / "out"), ShardSet(tmp_path / "out").keys[0], tmp_path / "adapter")
    exported = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (exported["lora_dropout"], exported["task_type"]) == (0.0, None)


def test_weights_are_within_one_rounding(packed, tmp_path):
    root, keys = packed
    export_adapter(str(root / "out"), keys["plain"], tmp_path / "adapter")
    original, exported = (
        load_file(path / "adapter_model.safetensors") for path in (root / "zoo/plain", tmp_path / "adapter")
    )
    assert original.keys() == exported.keys()
    for name, tensor in original.items():
        assert exported[name].dtype == tensor.dtype
        scale = tensor.abs().max()
        assert (exported[name] - tensor).abs().max() <= 2e-6 * scale, name


def test_bfloat16_within_one_rounding_of_each_value(tmp_path):
    write_adapter(tmp_path / "zoo/a", 3)
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", workers=1))
    key = ShardSet(tmp_path / "out").keys[0]
    export_adapter(str(tmp_path / "out"), key, tmp_path / "adapter")
    original, exported = (
        load_file(path / "adapter_model.safetensors") for path in (tmp_path / "zoo/a", tmp_path / "adapter")
    )
    for name, tensor in original.items():
        assert exported[name].dtype == torch.bfloat16
        # body and mean were each rounded to 8 significant bits: half a unit of the larger of the two
        spread = tensor.float().abs().max()
        assert (exported[name].float() - tensor.float()).abs().max() <= spread * 2**-7, name


def test_the_command(packed, tmp_path):
    root, keys = packed
    done = here("export", root / "out", keys["patterns"], tmp_path / "adapter", "--format", "json")
    assert done.code == 0
    assert done.json["checkpoint"] == "patterns"
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["rank_pattern"] == {"model.layers.0.self_attn.q_proj": 2}
    assert math.isclose(config["alpha_pattern"]["model.layers.1.self_attn.v_proj"], 5)
    done = here("export", root / "out", keys["plain"], tmp_path / "other")
    assert "modules, rank 4" in done.out


def test_a_destination_with_something_in_it_is_refused(packed, tmp_path):
    root, keys = packed
    (tmp_path / "mine").write_text("mine")
    for dest in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UsageError, match="Choose another DEST"):
            export_adapter(str(root / "out"), keys["plain"], dest)
    assert tree(tmp_path) == {"mine": b"mine"}


def test_a_destination_in_a_set_is_refused(packed):
    root, keys = packed
    before = tree(root / "out")
    for dest in (root / "out/adapter", root / "out/deep/adapter"):
        done = here("export", root / "out", keys["plain"], dest)
        assert (done.code, "a committed set never changes" in done.err) == (2, True), done.err
    assert tree(root / "out") == before
    assert not (root / "out/deep").exists()


def test_no_such_key(packed, tmp_path):
    root, _ = packed
    done = here("export", root / "out", "nothing", tmp_path / "adapter")
    assert done.code == 2
    assert "nothing" in done.err
    assert not list(tmp_path.iterdir())


def test_exported_and_packed_again_it_is_the_same_set(packed, tmp_path):
    """float32 out and in again: ranks, scalings and module table survive."""
    root, keys = packed
    for kind in KINDS:
        export_adapter(str(root / "out"), keys[kind], tmp_path / "zoo" / kind)
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", rank=4, workers=1))
    first, second = ShardSet(root / "out"), ShardSet(tmp_path / "out")
    assert first.layout == second.layout
    for key in keys.values():
        one, other = (opened.read_sample(key).json for opened in (first, second))
        assert (one["lora_dropout"], one["task_type"]) == (other["lora_dropout"], other["task_type"])
        for left, right in zip(one["modules"], other["modules"], strict=True):
            assert (left["name"], left["rank"]) == (right["name"], right["rank"])
            assert math.isclose(left["scaling"], right["scaling"])


def test_a_name_that_ends_another_keeps_its_own_rank_and_scaling(tmp_path):
    """PEFT's patterns match ends of names."""
    import copy

    from peft import LoraConfig, PeftModel, get_peft_model
    from torch import nn

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Linear(16, 16)

        def forward(self, x):
            return self.q(x)

    class Outer(Inner):
        def __init__(self):
            super().__init__()
            self.inner, self.deeper = Inner(), Inner()

        def forward(self, x):
            return self.q(x) + self.inner(x) + self.deeper(x)

    base = Outer()
    patterns = {"rank_pattern": {"^q": 2}, "alpha_pattern": {"^q": 5}}
    model = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=4, lora_alpha=8, target_modules=["q"], **patterns)
    )
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "zoo/a")
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", workers=1))
    export_adapter(str(tmp_path / "out"), ShardSet(tmp_path / "out").keys[0], tmp_path / "adapter")
    exported = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter")
    x = torch.randn(3, 16)
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-4)
