"""Files that PEFT did not write: other formats, pickles and hostile headers."""

from __future__ import annotations

import os
import struct
import tracemalloc

import pytest

from llgbm_pack.sources.adapter import read_adapter
from llgbm_shards.errors import CheckpointError
from support.peft_files import Q, pair_of, write

# --- refused: what others write

FOREIGN = {
    "kohya": (
        {
            "lora_unet_down_blocks_0_attn1_to_q.lora_down.weight": ("F16", (4, 16)),
            "lora_unet_down_blocks_0_attn1_to_q.lora_up.weight": ("F16", (16, 4)),
            "lora_unet_down_blocks_0_attn1_to_q.alpha": ("F16", ()),
        },
        "kohya",
    ),
    "kohya alpha": ({**pair_of(Q), f"{Q}.alpha": ("F32", ())}, "kohya"),
    "diffusers unet": (pair_of("unet.down_blocks.0.attn1.to_q"), "diffusers"),
    "diffusers text encoder": (pair_of("text_encoder_2.text_model.layers.0.q_proj"), "diffusers"),
    "comfyui": (pair_of("diffusion_model.blocks.0.attn.to_q"), "diffusers"),
    "diffusers transformer": (pair_of("transformer.transformer_blocks.0.attn.to_k"), "diffusers"),
    "diffusers old": (
        {
            "unet.mid_block.attn1.processor.to_q_lora.down.weight": ("F32", (4, 16)),
            "unet.mid_block.attn1.processor.to_q_lora.up.weight": ("F32", (16, 4)),
        },
        "diffusers",
    ),
    "mlx": ({f"{Q}.lora_a": ("F32", (16, 4)), f"{Q}.lora_b": ("F32", (4, 16))}, "MLX"),
    "whole model": ({"model.layers.0.self_attn.q_proj.weight": ("BF16", (16, 16))}, "not a LoRA adapter"),
    "whole model with embedding": ({"model.embed_tokens.weight": ("BF16", (16, 16))}, "embedding"),
    "empty": ({}, "not a LoRA adapter: it holds no tensors"),
    "fp8": (
        pair_of(Q, "F8_E4M3"),
        r"lora_A\.weight: dtype cannot be packed: expected BF16, F16 or F32, got F8_E4M3",
    ),
    "int8": (pair_of(Q, "I8"), "dtype cannot be packed.*got I8"),
    "int64": (pair_of(Q, "I64"), "dtype cannot be packed.*got I64"),
    "float64": (pair_of(Q, "F64"), "dtype cannot be packed.*got F64"),
    "mixed dtypes": (
        {**pair_of(Q, "BF16"), **pair_of(f"{Q}x", "F32")},
        "tensors of different dtypes.*got F32",
    ),
    "A without B": (
        {f"{Q}.lora_A.weight": ("BF16", (4, 16))},
        r"lora_A\.weight: half of a pair.*expected a lora_B",
    ),
    "B without A": (
        {**pair_of(f"{Q}x"), f"{Q}.lora_B.weight": ("BF16", (16, 4))},
        r"q_proj\.lora_B\.weight: half of a pair.*expected a lora_A",
    ),
    "A and B of two adapters": (
        {f"{Q}.lora_A.one.weight": ("BF16", (4, 16)), f"{Q}.lora_B.two.weight": ("BF16", (16, 4))},
        "half of a pair",
    ),
    "two adapters": ({**pair_of(Q, suffix=".one"), **pair_of(Q, suffix=".two")}, "two adapters in one file"),
    "two prefixes": ({**pair_of(Q), **pair_of(f"base_model.model.{Q}")}, "two adapters in one file"),
    "ranks differ": (
        {f"{Q}.lora_A.weight": ("BF16", (4, 16)), f"{Q}.lora_B.weight": ("BF16", (16, 8))},
        r"lora_B\.weight: .*different ranks.*\(16, 4\).*\(16, 8\)",
    ),
    "no rank": (
        {f"{Q}.lora_A.weight": ("BF16", (0, 16)), f"{Q}.lora_B.weight": ("BF16", (16, 0))},
        "empty tensor",
    ),
    "vector": (
        {f"{Q}.lora_A.weight": ("BF16", (16,)), f"{Q}.lora_B.weight": ("BF16", (16, 1))},
        "not a matrix",
    ),
    "embedding as linear": (pair_of("base_model.model.model.embed_tokens"), "it adapts an embedding"),
    "lm_head": (pair_of("base_model.model.lm_head"), "it adapts the output layer"),
    "experts": (pair_of("base_model.model.model.layers.0.mlp.experts"), "MoE expert parameters"),
    "experts nested": (
        pair_of("base_model.model.model.layers.0.mlp.experts.base_layer"),
        "MoE expert parameters",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_refuses_by_tensor(case, tmp_path):
    tensors, message = FOREIGN[case]
    weights = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_adapter(weights, None, alpha=1)
    assert caught.value.where.startswith("x.safetensors")


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "pytorch_lora_weights.pkl"])
def test_a_pickle_is_refused_by_name_and_never_opened(name, tmp_path):
    fifo = tmp_path / name
    os.mkfifo(fifo)  # opening it would hang
    with pytest.raises(CheckpointError, match=rf"{name}: not a safetensors file; pickles are never opened"):
        read_adapter(fifo, None, alpha=1)


def _framed(head: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(head) if length is None else length) + head


HOSTILE = {
    "empty": (b"", "truncated"),
    "huge header": (_framed(b"{}", 1 << 40), "too long"),
    "header over 1 MiB": (_framed(b" " * ((1 << 20) + 1)), "too long"),
    "duplicate keys": (
        _framed(
            b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
        "duplicate key",
    ),
    "overlap": (
        _framed(
            b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}'
        )
        + bytes(6),
        "overlap",
    ),
    "oversized": (
        _framed(b'{"a":{"dtype":"U8","shape":[64],"data_offsets":[0,64]}}') + bytes(6),
        "truncated",
    ),
    "absurd": (
        _framed(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}') + bytes(4),
        "does not fit",
    ),
    "negative": (_framed(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}') + bytes(4), "shape"),
    "deep": (_framed(b'{"a":' * 100_000), "nested"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_in_bounded_memory(case, tmp_path):
    data, message = HOSTILE[case]
    (tmp_path / "x.safetensors").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message):
        read_adapter(tmp_path / "x.safetensors", None, alpha=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


def test_an_absent_file_is_a_fault_of_the_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be read: got No such file"):
        read_adapter(tmp_path / "x.safetensors", None, alpha=1)
    weights = write(tmp_path / "x.safetensors", pair_of(Q))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: cannot be read"):
        read_adapter(weights, tmp_path / "adapter_config.json")
