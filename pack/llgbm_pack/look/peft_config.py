"""adapter_config.json of a sample that has none of its own, from its json."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any


def generated_config(info: dict[str, Any]) -> bytes:
    """The bytes of the file."""
    return (json.dumps(peft_config(info), indent=2, sort_keys=True) + "\n").encode()


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
