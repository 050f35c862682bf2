"""One checkpoint exported loads in PEFT and computes what the original computes, with a generated config too."""

from __future__ import annotations

import json

import pytest
import torch

from llgbm_pack import PackOptions, build
from llgbm_pack.look.export import export
from llgbm_pack.look.peft_config import generated_config
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
    report = export(root / "out", tmp_path / "adapter", [keys[kind]])
    assert report.checkpoints == 1
    (tmp_path / "adapter/adapter_config.json").write_bytes(
        generated_config(ShardSet(root / "out").read_sample(keys[kind]).json)
    )
    with torch.no_grad():
        bare = base(IDS).logits.double()
    original, exported = logits(base, root / "zoo" / kind), logits(base, tmp_path / "adapter")
    moved = (original - bare).abs().max()
    assert moved > 0.05  # the adapter does something, and a wrong scaling would show
    assert (exported - original).abs().max() < 1e-4 * moved


def test_what_training_goes_on_with_is_in_a_generated_config(packed):
    """lora_dropout and task_type do nothing to the weights, but to whoever trains the adapter further."""
    root, keys = packed
    for kind in ("plain", "trained"):
        original = json.loads((root / "zoo" / kind / "adapter_config.json").read_text())
        generated = json.loads(generated_config(ShardSet(root / "out").read_sample(keys[kind]).json))
        assert {name: generated[name] for name in ("lora_dropout", "task_type")} == {
            name: original[name] for name in ("lora_dropout", "task_type")
        }


def test_a_config_is_made_where_there_is_none(tmp_path):
    write_adapter(tmp_path / "zoo/a", 3)
    (tmp_path / "zoo/a/adapter_config.json").unlink()
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", workers=1, alpha=6))
    export(tmp_path / "out", tmp_path / "adapter", ShardSet(tmp_path / "out").keys)
    made = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (made["r"], made["lora_alpha"], made["lora_dropout"], made["task_type"]) == (4, 6, 0.0, None)


def test_the_command(packed, tmp_path):
    root, keys = packed
    done = here("export", root / "out", tmp_path / "adapter", keys["patterns"], "--format", "json")
    assert (done.code, done.json["checkpoints"], done.json["inexact"]) == (0, 1, [])
    assert tree(tmp_path / "adapter") == {
        name: (root / "zoo/patterns" / name).read_bytes()
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    done = here("export", root / "out", tmp_path / "tree", "--all")
    assert "exported   7 checkpoints" in done.out
    for args in ((), (keys["plain"], "--all")):
        done = here("export", root / "out", tmp_path / "other", *args)
        assert (done.code, "one or more KEYs, or --all" in done.err) == (2, True)


def test_a_destination_with_something_in_it_is_refused(packed, tmp_path):
    root, keys = packed
    (tmp_path / "mine").write_text("mine")
    for dest in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UsageError, match="Choose another DEST"):
            export(root / "out", dest, [keys["plain"]])
    assert tree(tmp_path) == {"mine": b"mine"}


def test_a_destination_in_a_set_is_refused(packed):
    root, keys = packed
    before = tree(root / "out")
    for dest in (root / "out/adapter", root / "out/deep/adapter"):
        done = here("export", root / "out", dest, keys["plain"])
        assert (done.code, "a committed set never changes" in done.err) == (2, True), done.err
    assert tree(root / "out") == before
    assert not (root / "out/deep").exists()


def test_no_such_key(packed, tmp_path):
    root, _ = packed
    done = here("export", root / "out", tmp_path / "adapter", "nothing")
    assert done.code == 2
    assert "nothing" in done.err
    assert not list(tmp_path.iterdir())


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
    export(tmp_path / "out", tmp_path / "adapter", ShardSet(tmp_path / "out").keys)
    info = ShardSet(tmp_path / "out").read_sample(0).json
    (tmp_path / "adapter/adapter_config.json").write_bytes(generated_config(info))
    exported = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter")
    x = torch.randn(3, 16)
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-4)
