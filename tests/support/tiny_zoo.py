"""Zoos of tiny adapters with random weights, written in milliseconds: no model, no PEFT, no training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from llgbm_pack import DeltaCache

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
#: Module name -> (in, out); the greatest common divisor is 16.
MODULES = {
    "model.layers.0.self_attn.q_proj": (32, 48),
    "model.layers.0.self_attn.v_proj": (32, 16),
    "model.layers.1.self_attn.q_proj": (32, 48),
}
TASKS = ("alpha", "beta", "gamma")
DELTA_WIDTH = 24


def random_pairs(
    seed: int, *, dtype: str = "bfloat16", rank: int = 4, modules: Mapping[str, tuple[int, int]] = MODULES
) -> dict[str, torch.Tensor]:
    """PEFT keys -> tensors."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (width_in, width_out) in modules.items():
        for side, shape in (("A", (rank, width_in)), ("B", (width_out, rank))):
            values = 0.02 * torch.randn(shape, generator=generator)
            tensors[f"base_model.model.{name}.lora_{side}.weight"] = values.to(DTYPES[dtype])
    return tensors


def write_adapter(
    directory: Path,
    seed: int,
    *,
    dtype: str = "bfloat16",
    rank: int = 4,
    modules: Mapping[str, tuple[int, int]] = MODULES,
    prompts: Sequence[str] = ("What is it?", "Say it again."),
    tensors: dict[str, torch.Tensor] | None = None,
) -> Path:
    """One checkpoint directory: weights, config and, unless there are no prompts, texts."""
    directory.mkdir(parents=True, exist_ok=True)
    own = random_pairs(seed, dtype=dtype, rank=rank, modules=modules) if tensors is None else tensors
    save_file(own, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "tiny/base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted(modules),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    if prompts:
        texts = {"prompts": list(prompts), "answers": [f"It is {seed}." for _ in prompts]}
        (directory / "prompts.json").write_text(json.dumps(texts))
    return directory


def write_zoo(root: Path, count: int = 6, **adapter: object) -> list[str]:
    """A zoo of ``count`` equal-shaped checkpoints over three tasks; returns their relative paths."""
    paths = [f"{TASKS[number % len(TASKS)]}/run_{number:03d}" for number in range(count)]
    for number, path in enumerate(paths):
        write_adapter(root / path, number, **adapter)  # type: ignore[arg-type]
    return paths


def write_deltas(cache: Path, paths: Sequence[str], *, prefix: str = "zoo", width: int = DELTA_WIDTH) -> Path:
    """A delta cache with one random delta per path, in the form that users keep."""
    random = np.random.default_rng(0)
    deltas = {f"{prefix}/{path}": random.standard_normal(width).astype(np.float32) for path in paths}
    DeltaCache(cache).save_deltas(deltas)
    return cache


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory with its content, for comparing whole sets."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
