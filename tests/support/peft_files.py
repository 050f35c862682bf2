"""Adapters for tests: saved by PEFT itself, or just a header over zeros."""

from __future__ import annotations

import copy
import json
import math
import struct
from pathlib import Path

from llgbm_pack.sources.adapter import Adapter, read_adapter

Q = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, tuple[str, tuple[int, ...]]]


def nameless_base():
    """The demo's base model without a name: PEFT asks a hub about a named one while it saves."""
    from llgbm_pack.demo.make import demo_base_model

    model = demo_base_model()
    model.name_or_path = model.config._name_or_path = ""
    return model


def save(model, directory, config):
    """Saves a PEFT adapter."""
    from peft import get_peft_model

    get_peft_model(copy.deepcopy(model), config).save_pretrained(directory)


def save_and_load(model, directory, config):
    """Saves a PEFT adapter and loads it again: PEFT sorts the patterns on saving, so the order may be another."""
    from peft import PeftModel

    save(model, directory, config)
    return PeftModel.from_pretrained(copy.deepcopy(model), directory)


def lora(**options):
    from peft import LoraConfig

    return LoraConfig(**{"target_modules": ["q_proj", "v_proj"], **options})


def read(directory: Path, **options) -> Adapter:
    return read_adapter(directory / "adapter_model.safetensors", directory / "adapter_config.json", **options)


def change_config(directory, **changes):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write(path: Path, tensors: Tensors) -> Path:
    """A safetensors file of zeros."""
    size = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "I8": 1, "I64": 8, "U8": 1}
    rows, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = position + size[dtype] * math.prod(shape)
        rows[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    head = json.dumps(rows).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(position))
    return path


def pair_of(name: str, dtype: str = "BF16", rank: int = 4, suffix: str = "") -> Tensors:
    return {
        f"{name}.lora_A{suffix}.weight": (dtype, (rank, 16)),
        f"{name}.lora_B{suffix}.weight": (dtype, (32, rank)),
    }
