"""Adapters that can be packed, as PEFT itself reads them back."""

from __future__ import annotations

import copy
import math
import tracemalloc

import pytest
import torch

from llgbm_pack.sources.adapter import read_adapter
from llgbm_shards.errors import CheckpointError
from llgbm_shards.public import public_name
from support.peft_files import (
    Q,
    change_config,
    lora,
    nameless_base,
    pair_of,
    read,
    save,
    save_and_load,
    write,
)


@pytest.fixture(scope="module")
def base():
    return nameless_base()


def _agrees_with_peft(adapter, adapted):
    """Modules, ranks, widths and scalings are those of the PEFT model that wrote the files."""
    from peft.tuners.lora import LoraLayer

    layers = {
        name: layer
        for name, layer in adapted.base_model.model.named_modules()
        if isinstance(layer, LoraLayer) and "default" in layer.lora_A
    }
    assert list(adapter.pairs) == sorted(layers)
    for name, layer in layers.items():
        pair = adapter.pairs[name]
        assert pair.rank == layer.r["default"], name
        assert pair.in_features == layer.in_features, name
        assert pair.out_features == layer.out_features, name
        assert pair.scaling == pytest.approx(layer.scaling["default"], rel=1e-12), name
        assert pair.a.shape == tuple(layer.lora_A["default"].weight.shape)
        assert pair.b.shape == tuple(layer.lora_B["default"].weight.shape)


ACCEPTED = {
    "plain": {},
    "alpha": {"r": 4, "lora_alpha": 24},
    "rslora": {"use_rslora": True, "r": 8, "lora_alpha": 16},
    "rank and alpha pattern": {
        "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, r"layers\.1\..*": 4},
        "alpha_pattern": {"q_proj": 3, r"model\.layers\.[01]\.self_attn\.(k|q)_proj": 5, "own_proj": 7},
    },
    "pattern with rslora": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 32},
    },
    "missing layers": {"layers_to_transform": [1]},
    "other modules": {"target_modules": ["gate_proj", "down_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "random": {"init_lora_weights": False},
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepts_what_peft_writes(case, base, tmp_path):
    adapted = save_and_load(base, tmp_path, lora(**ACCEPTED[case]))
    adapter = read(tmp_path)
    _agrees_with_peft(adapter, adapted)
    config = adapted.peft_config["default"]
    assert adapter.dtype == "float32"
    assert adapter.alpha == config.lora_alpha
    assert adapter.rank == max(pair.rank for pair in adapter.pairs.values())
    root = math.sqrt(adapter.rank) if config.use_rslora else adapter.rank
    assert adapter.scaling == pytest.approx(config.lora_alpha / root, rel=1e-12)


def test_the_first_matching_pattern_of_the_file_wins(base, tmp_path):
    save(base, tmp_path, lora(alpha_pattern={"q_proj": 1}))
    change_config(tmp_path, alpha_pattern={"self_attn.q_proj": 40, "q_proj": 8, "xv_proj": 9, "v_proj$": 16})
    pairs = read(tmp_path).pairs
    assert pairs[Q].scaling == 5.0
    assert pairs["model.layers.1.self_attn.v_proj"].scaling == 2.0


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
def test_16_bit_sources(dtype, name, base, tmp_path):
    from peft import get_peft_model

    adapted = get_peft_model(copy.deepcopy(base), lora())
    for key, weight in adapted.named_parameters():
        if "lora_" in key:
            weight.data = weight.data.to(dtype)
    adapted.save_pretrained(tmp_path)
    assert read(tmp_path).dtype == name


def test_fan_in_fan_out_keeps_the_shapes_of_a_and_b(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    adapted = save_and_load(model, tmp_path, lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True))
    adapter = read(tmp_path)
    _agrees_with_peft(adapter, adapted)
    pair = adapter.pairs["transformer.h.0.attn.c_attn"]
    assert (pair.in_features, pair.out_features) == (16, 48)


def _tiny(kind):
    import transformers

    small = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    if kind == "T5":
        config = transformers.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        return (
            transformers.T5ForConditionalGeneration(config),
            ["q", "v"],
            "encoder.block.0.layer.0.SelfAttention.q",
        )
    if kind == "Gemma":
        small["head_dim"] = 8
    config = getattr(transformers, f"{kind}Config")(**small)
    return getattr(transformers, f"{kind}ForCausalLM")(config), ["q_proj", "up_proj"], Q


@pytest.mark.parametrize("kind", ["T5", "Llama", "Mistral", "Gemma"])
def test_any_base_model(kind, tmp_path):
    model, targets, name = _tiny(kind)
    adapted = save_and_load(model, tmp_path, lora(target_modules=targets))
    adapter = read(tmp_path)
    _agrees_with_peft(adapter, adapted)
    assert name in adapter.pairs


@pytest.mark.parametrize(
    ("key", "suffix", "name"),
    [
        (f"base_model.model.{Q}", "", Q),
        (Q, "", Q),
        (f"base_model.model.{Q}", ".default", Q),
        (f"base_model.model.{Q}", ".my_adapter", Q),
        (
            "base_model.model.model.language_model.layers.0.mlp.up_proj",
            "",
            "model.language_model.layers.0.mlp.up_proj",
        ),
        (
            "base_model.model.language_model.model.layers.0.mlp.up_proj",
            "",
            "language_model.model.layers.0.mlp.up_proj",
        ),
        ("base_model.model.transformer.h.0.mlp.c_fc", "", "transformer.h.0.mlp.c_fc"),
        ("base_model.model.model.layers.0.mlp.experts.3.up_proj", "", "model.layers.0.mlp.experts.3.up_proj"),
    ],
)
def test_prefix_variants(key, suffix, name, tmp_path):
    adapter = read_adapter(write(tmp_path / "a.safetensors", pair_of(key, suffix=suffix)), None, alpha=8)
    assert list(adapter.pairs) == [name]
    pair = adapter.pairs[name]
    assert (pair.a_key, pair.b_key) == (f"{key}.lora_A{suffix}.weight", f"{key}.lora_B{suffix}.weight")
    assert (pair.rank, pair.in_features, pair.out_features) == (4, 16, 32)


def test_without_a_config_alpha_must_be_given(tmp_path):
    weights = write(tmp_path / "0.safetensors", {**pair_of(Q, rank=4), **pair_of(f"{Q}2", rank=2)})
    with pytest.raises(CheckpointError, match=r"0\.safetensors: alpha is not known.*--alpha"):
        read_adapter(weights, None)
    adapter = read_adapter(weights, None, alpha=16)
    assert (adapter.rank, adapter.alpha, adapter.scaling, adapter.base_model) == (4, 16, 4.0, "")
    assert adapter.pairs[f"{Q}2"].scaling == 8.0


def test_a_config_without_alpha_takes_the_given_one_and_its_own_otherwise(base, tmp_path):
    save(base, tmp_path, lora(lora_alpha=4))
    assert read(tmp_path, alpha=99).alpha == 4
    change_config(tmp_path, lora_alpha=None)
    assert read(tmp_path, alpha=99).alpha == 99
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: lora_alpha: alpha is not known"):
        read(tmp_path)


def test_only_the_header_is_read(tmp_path):
    weights = write(
        tmp_path / "a.safetensors",
        {f"{Q}.lora_A.weight": ("F32", (1, 4)), f"{Q}.lora_B.weight": ("F32", (8_000_000, 1))},
    )
    tracemalloc.start()
    read_adapter(weights, None, alpha=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20, "32 MB of weights"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B"),
        ("gpt2", "gpt2"),
        ("/data/models/Qwen2.5-1.5B", "Qwen2.5-1.5B"),
        ("/data/models/Qwen2.5-1.5B/", "Qwen2.5-1.5B"),
        ("../models/base", "base"),
        ("./base", "base"),
        ("~/base", "base"),
        ("a/b/c", "c"),
        ("C:\\Users\\me\\base", "base"),
        ("/root/.cache/huggingface/hub/models--Qwen--Qwen2.5-1.5B/snapshots/0123abc", "Qwen/Qwen2.5-1.5B"),
        ("/", ""),
        ("", ""),
        (None, ""),
        (3, ""),
    ],
)
def test_a_base_model_is_named_without_a_path(value, name):
    assert public_name(value) == name
