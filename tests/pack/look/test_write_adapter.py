"""Generated tokens become an adapter that PEFT loads and that computes what they say."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from llgbm_loader import ShardDataset
from llgbm_pack import PackOptions, build, write_adapter
from llgbm_shards import ShardSet
from llgbm_shards.errors import UsageError
from support.overlays import build_set, lay, write_sources
from support.peft_files import lora, nameless_base, save
from support.tiny_zoo import random_pairs, tree
from support.tiny_zoo import write_adapter as write_checkpoint

IDS = torch.arange(12).reshape(2, 6) + 5


def packed(root, **options):
    build(PackOptions(zoo=root / "zoo", out=root / "set", workers=1, **options))
    return ShardSet(root / "set")


def tokens_of(root, number=0, **options):
    options = {"frame": "fp32", "dtype": torch.float32, "zero_std": "nan", **options}
    return ShardDataset(root / "set", fields=["tokens"], **options)[number]["tokens"]


def test_peft_computes_what_the_tokens_say(tmp_path):
    from peft import PeftModel, get_peft_model

    base = nameless_base()
    model = get_peft_model(copy.deepcopy(base), lora(r=4, lora_alpha=8, rank_pattern={"v_proj": 2}))
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "zoo/a")
    save(base, tmp_path / "zoo/b", lora(r=4, lora_alpha=8, rank_pattern={"v_proj": 2}))
    opened = packed(tmp_path)
    key = next(key for key in opened.keys if key.startswith("a-"))
    other = next(key for key in opened.keys if key.startswith("b-"))
    generated = tokens_of(tmp_path, key)
    assert write_adapter(generated, tmp_path / "made", like=(opened, other)) == tmp_path / "made"
    made = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "made").eval()
    with torch.no_grad():
        wanted, bare, got = (one(IDS).logits.double() for one in (model.eval(), base, made))
    assert (got - wanted).abs().max() < 1e-4 * (wanted - bare).abs().max()
    assert (tmp_path / "made/adapter_config.json").read_bytes() == (
        tmp_path / "zoo/b/adapter_config.json"
    ).read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_keys_shapes_and_dtype_are_those_of_the_sample(tmp_path, dtype):
    write_checkpoint(tmp_path / "zoo/a", 3, dtype=dtype)
    packed(tmp_path)
    write_adapter(tokens_of(tmp_path), dest=tmp_path / "made", like=(tmp_path / "set", 0))
    source, made = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("zoo/a", "made"))
    assert source.keys() == made.keys()
    near = {"bfloat16": 2**-7, "float16": 2**-10, "float32": 4e-6}[dtype]
    for name, tensor in source.items():
        assert made[name].dtype == tensor.dtype
        assert (made[name].float() - tensor.float()).abs().max() <= near * tensor.float().abs().max()


def test_a_fresh_lora_b_stays_zero(tmp_path):
    """DnD shows pieces of zero std as NaN."""
    tensors = {key: value * ("lora_A" in key) for key, value in random_pairs(0, dtype="float32").items()}
    write_checkpoint(tmp_path / "zoo/a", 0, tensors=tensors)
    packed(tmp_path)
    tokens = tokens_of(tmp_path)
    assert tokens.isnan().any()
    write_adapter(tokens, tmp_path / "made", like=(tmp_path / "set", 0))
    made = load_file(tmp_path / "made/adapter_model.safetensors")
    assert all(not value.any() for key, value in made.items() if "lora_B" in key)


def test_a_sample_without_config_gets_one(tmp_path):
    write_checkpoint(tmp_path / "zoo/a", 3)
    (tmp_path / "zoo/a/adapter_config.json").unlink()
    packed(tmp_path, alpha=8)
    write_adapter(tokens_of(tmp_path), tmp_path / "made", like=(tmp_path / "set", 0))
    config = json.loads((tmp_path / "made/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)


def test_what_is_no_adapter_is_refused(tmp_path):
    write_checkpoint(tmp_path / "zoo/a", 3)
    packed(tmp_path)
    tokens, like = tokens_of(tmp_path), (tmp_path / "set", 0)
    for spoil in (
        lambda t: t.fill_(torch.nan),
        lambda t: t[3, 0].fill_(torch.inf),
        lambda t: t[2, -1].fill_(torch.nan),
    ):
        spoilt = tokens.clone()
        spoil(spoilt)
        with pytest.raises(UsageError, match="no adapter"):
            write_adapter(spoilt, tmp_path / "made", like=like)
    with pytest.raises(UsageError, match="tokens do not fit the set"):
        write_adapter(tokens[1:], tmp_path / "made", like=like)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        write_adapter(tokens, tmp_path / "mine", like=like)
    with pytest.raises(UsageError, match="a committed set never changes"):
        write_adapter(tokens, tmp_path / "set/made", like=like)
    assert not (tmp_path / "made").exists()
    assert tree(tmp_path / "mine") == {"file": b"mine"}


def test_an_overlay_is_no_sample_to_be_like(tmp_path):
    write_sources(tmp_path)
    base = build_set(tmp_path, "base", "old", None)
    lay(tmp_path, deltas=tmp_path / "new")
    with pytest.raises(UsageError, match="an overlay has no weights"):
        write_adapter(torch.zeros(base.layout.tokens_shape), tmp_path / "made", like=(tmp_path / "over", 0))
