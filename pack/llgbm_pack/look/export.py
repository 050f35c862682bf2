"""Export one sample as an adapter directory that PEFT loads."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from llgbm_loader.tensors import TORCH_DTYPE
from llgbm_pack.sources.peft_keys import peft_key
from llgbm_pack.tokenize.decode import decode_body
from llgbm_shards.errors import DamageError, UsageError
from llgbm_shards.layout import Layout
from llgbm_shards.out_directory import refuse_in_set
from llgbm_shards.sample import Sample
from llgbm_shards.shardset import ShardSet
from llgbm_shards.storage import fsync_directory, storage_errors


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What was exported where."""

    key: str
    checkpoint: str
    dest: str
    modules: int
    rank: int
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """The report as ``--format json`` prints it."""
        return asdict(self)


def export_adapter(path: str, key: str, dest: str | os.PathLike[str]) -> ExportReport:
    """Write a sample as ``adapter_model.safetensors`` and ``adapter_config.json``.

    The weights are ``body * std + mean``, rounded once to the set's dtype: within 2e-6 relative of a float32
    source, within one rounding of each value of a 16-bit source. ``dest`` is a directory that does not exist yet, or
    is empty.
    """
    target = Path(dest)
    refuse_in_set(target, "DEST")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError("the destination is not empty", where=str(dest), do="Choose another DEST.")
    shard_set = ShardSet(path)
    shard_set.require_weights()
    sample = shard_set.read_sample(key)
    weights = _weights(sample, shard_set.layout)
    config = peft_config(sample.json)
    temporary = target.parent / f".{target.name}-{os.getpid()}-{secrets.token_hex(4)}"
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            (temporary / "adapter_model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
            (temporary / "adapter_config.json").write_text(
                json.dumps(config, indent=2, sort_keys=True) + "\n"
            )
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_directory(target.parent)
    return ExportReport(
        key=key,
        checkpoint=sample.json["checkpoint"],
        dest=str(dest),
        modules=len(weights) // 2,
        rank=sample.json["rank"],
        dtype=shard_set.layout.dtype,
    )


def peft_config(info: dict[str, Any]) -> dict[str, Any]:
    """adapter_config.json of a sample, from its json.

    Modules are named in full, so that PEFT adapts exactly these; ranks and scalings that differ from the most
    common one go into rank_pattern and alpha_pattern.
    """
    present = [module for module in info["modules"] if module["rank"]]
    rslora = bool(present) and all(
        math.isclose(module["scaling"] * math.sqrt(module["rank"]), info["alpha"]) for module in present
    )
    rslora = rslora and any(module["rank"] > 1 for module in present)
    pattern = _patterns(module["name"] for module in present)
    alphas = {module["name"]: _alpha(module, info["alpha"], rslora) for module in present}
    rank = Counter(module["rank"] for module in present).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": info["base_model"],
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {
            pattern(module["name"]): module["rank"] for module in present if module["rank"] != rank
        },
        "alpha_pattern": {pattern(name): value for name, value in alphas.items() if value != alpha},
        "use_rslora": rslora,
        "target_modules": [module["name"] for module in present],
        "bias": "none",
        "lora_dropout": info["lora_dropout"],
        "task_type": info["task_type"] or None,
        "inference_mode": True,
    }


def _patterns(names: Iterable[str]) -> Callable[[str], str]:
    """Gives the pattern that means one module alone: PEFT's match ends of names, so some need an anchor.

    Only where it is needed: before 0.15 PEFT knew no anchors, but took full names as they are.
    """
    ends = {name[at + 1 :] for name in names for at, letter in enumerate(name) if letter == "."}
    return lambda name: f"^{re.escape(name)}" if name in ends else name


def _alpha(module: dict[str, Any], alpha: float, rslora: bool) -> float | int:
    """lora_alpha that gives the module its scaling; the adapter's own where that fits, to spare a rounding."""
    divisor = math.sqrt(module["rank"]) if rslora else module["rank"]
    value = alpha if math.isclose(alpha / divisor, module["scaling"]) else module["scaling"] * divisor
    return int(value) if float(value).is_integer() else value


def _weights(sample: Sample, layout: Layout) -> dict[str, torch.Tensor]:
    """PEFT key -> tensor."""
    if sample.pieces is None or sample.scales is None:
        raise DamageError("the sample has no weights", key=sample.key)
    bits = torch.from_numpy(sample.pieces.copy().view("<i4" if layout.itemsize == 4 else "<i2"))
    dtype = TORCH_DTYPE[layout.dtype]
    ranks = {module["name"]: module["rank"] for module in sample.json["modules"]}
    pairs = decode_body(bits.view(dtype), torch.from_numpy(sample.scales.copy()), layout, ranks=ranks)
    return {
        peft_key(name, side): tensor
        for name, pair in pairs.items()
        for side, tensor in zip("AB", pair, strict=True)
    }
