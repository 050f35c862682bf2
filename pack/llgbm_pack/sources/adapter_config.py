r"""``adapter_config.json``: what of it matters to packing, and what in it forbids packing.

Scaling follows PEFT (``peft/tuners/lora/layer.py`` and ``get_pattern_key``): ``alpha / r``, with rslora
``alpha / sqrt(r)``; ``alpha_pattern`` and ``rank_pattern`` hold regular expressions, matched as
``(.*\.)?(key)$`` from the start of the module's name, the first match in the file's order wins.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from llgbm_pack.sources.patterns import compile_pattern, matches
from llgbm_shards.canonical import load_json
from llgbm_shards.errors import CheckpointError, HeaderError
from llgbm_shards.public import public_name, without_credentials
from llgbm_shards.storage import read_at_most, read_errors

Number = TypeVar("Number", int, float)

MAX_CONFIG_BYTES: Final = 1 << 20
#: What PEFT's task types look like; a path, say, has no place in a set.
_TASK_TYPE: Final = re.compile(r"[A-Za-z0-9_]{1,64}")
#: Initialisations that leave the base model as it is; any other string does not, or is unknown.
_HARMLESS_INITS: Final = ("gaussian", "eva", "orthogonal", "mica")
_BASE_CHANGING_INITS: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
#: Config keys that, when set, make an adapter more than its A and B. A dict or list counts when not empty.
_FORBIDDEN: Final = {
    "use_dora": "DoRA adapter: it has magnitudes besides A and B",
    "modules_to_save": "it saves whole modules (modules_to_save) besides A and B",
    "trainable_token_indices": "it trains token embeddings besides A and B",
    "target_parameters": "it adapts bare parameters (MoE experts), not linear layers",
    "lora_bias": "its lora_B has a bias",
    "layer_replication": "it repeats layers of the base model",
    "alora_invocation_tokens": "activated LoRA: it works on a part of the tokens only",
    "use_qalora": "QALoRA adapter: its A works on pooled inputs",
    "use_bdlora": "BD-LoRA adapter: its matrices are block-diagonal",
    "arrow_config": "Arrow router, not one adapter",
    "kasa_config": "KaSA adapter: it has a diagonal between A and B and changes the base model",
    "monteclora_config": "MonteCLoRA adapter: it has more parameters than A and B",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """The part of ``adapter_config.json`` that matters here."""

    rank: int | None = None  # ``r``, None when absent
    alpha: float | None = None  # ``lora_alpha``, None when absent
    rank_pattern: tuple[tuple[re.Pattern[str], int], ...] = ()  # in the file's order
    alpha_pattern: tuple[tuple[re.Pattern[str], float], ...] = ()  # in the file's order
    rslora: bool = False  # scaling is ``alpha / sqrt(r)``
    base_model: str = ""  # name of the base model, never a path of a machine; "" when unknown
    dropout: float = 0.0  # ``lora_dropout``; of use to whoever trains an exported adapter further
    task_type: str = ""  # PEFT's, such as ``CAUSAL_LM``; "" when none

    def rank_of(self, module: str) -> int | None:
        """The rank that the config claims for a module; the tensors decide."""
        return _first_match(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float | None:
        """Alpha of a module."""
        return _first_match(self.alpha_pattern, module, self.alpha)

    def scaling_of(self, alpha: float, rank: int) -> float:
        """The factor of B @ A: ``alpha / rank``, with rslora ``alpha / sqrt(rank)``."""
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_config(path: Path) -> bytes:
    """The file's bytes, at most one more than is allowed."""
    with read_errors(CheckpointError, path.name):
        return read_at_most(path, MAX_CONFIG_BYTES)


def public_config(raw: bytes) -> bytes:
    """A sound config as a set may hold it: as it stands, unless a URL in it carries credentials; then without these."""
    config = json.loads(raw)
    public = _without_credentials(config)
    return raw if public == config else json.dumps(public, indent=2, sort_keys=True).encode()


def _without_credentials(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_credentials(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_credentials(inner) for inner in value]
    return without_credentials(value) if isinstance(value, str) else value


def load_config(data: bytes, where: str) -> dict[str, Any]:
    """Parses strictly, in bounded memory (1 MiB of JSON), and wants an object whose ``peft_type`` is LORA."""
    try:
        config = load_json(data, where=where, max_bytes=MAX_CONFIG_BYTES)
    except HeaderError as error:
        raise error.as_(CheckpointError) from error
    if not isinstance(config, dict):
        raise CheckpointError("not an object", where=where, got=type(config).__name__)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            "not a LoRA adapter", where=f"{where}: peft_type", expected="LORA", got=f"{kind!r:.40}"
        )
    return config


def parse_config(config: Mapping[str, Any], where: str) -> AdapterConfig:
    """Refuses what cannot be packed, naming the key, and picks out what matters."""
    _refuse_variants(config, where)
    _refuse_inits(config.get("init_lora_weights", True), where)
    return AdapterConfig(
        rank=_optional(config, "r", _rank, where),
        alpha=_optional(config, "lora_alpha", _alpha, where),
        rank_pattern=_patterns(config, "rank_pattern", _rank, where),
        alpha_pattern=_patterns(config, "alpha_pattern", _alpha, where),
        rslora=_flag(config, "use_rslora", where),
        base_model=public_name(config.get("base_model_name_or_path")),
        dropout=_optional(config, "lora_dropout", _dropout, where) or 0.0,
        task_type=_task_type(config.get("task_type"), where),
    )


def _refuse_variants(config: Mapping[str, Any], where: str) -> None:
    for key, reason in _FORBIDDEN.items():
        if config.get(key):
            raise CheckpointError(
                reason,
                where=f"{where}: {key}",
                got=f"{config[key]!r:.80}",
                do="Only plain A and B can be packed.",
            )
    if config.get("bias", "none") not in ("none", None):  # A set could not be asked for a list.
        raise CheckpointError(
            "it trains biases besides A and B",
            where=f"{where}: bias",
            expected="none",
            got=f"{config['bias']!r:.40}",
        )


def _refuse_inits(value: object, where: str) -> None:
    if value is None or isinstance(value, bool):
        return
    name = value.lower() if isinstance(value, str) else ""
    if name in _HARMLESS_INITS:
        return
    changes = name.startswith(_BASE_CHANGING_INITS)
    raise CheckpointError(
        "its initialisation changes the base model" if changes else "unknown initialisation",
        where=f"{where}: init_lora_weights",
        expected=f"true, false, {', '.join(_HARMLESS_INITS)}",
        got=f"{value!r:.40}",
        do="Save it with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA.",
    )


def _first_match(
    patterns: tuple[tuple[re.Pattern[str], Number], ...], module: str, default: Number | None
) -> Number | None:
    return next((value for pattern, value in patterns if matches(pattern, module)), default)


def _patterns(
    config: Mapping[str, Any], key: str, read: Callable[[object, str], Number], where: str
) -> tuple[tuple[re.Pattern[str], Number], ...]:
    rows = config.get(key)
    if rows is None:
        return ()
    if not isinstance(rows, dict):
        raise CheckpointError("not an object", where=f"{where}: {key}", got=f"{rows!r:.40}")
    return tuple(
        (compile_pattern(pattern, f"{where}: {key}"), read(value, f"{where}: {key}: {pattern:.80}"))
        for pattern, value in rows.items()
    )


def _optional(
    config: Mapping[str, Any], key: str, read: Callable[[object, str], Number], where: str
) -> Number | None:
    value = config.get(key)
    return None if value is None else read(value, f"{where}: {key}")


def _rank(value: object, where: str) -> int:
    if type(value) is not int or value < 1:
        raise CheckpointError("not a rank", where=where, expected="a positive integer", got=f"{value!r:.40}")
    return value


def _alpha(value: object, where: str) -> float:
    number = (
        float(value) if type(value) is float or (type(value) is int and abs(value) < 1 << 53) else math.nan
    )
    if not math.isfinite(number):
        raise CheckpointError("not an alpha", where=where, expected="a finite number", got=f"{value!r:.40}")
    return number


def _dropout(value: object, where: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:  # type: ignore[operator]
        raise CheckpointError(
            "not a dropout", where=where, expected="a number from 0 to 1", got=f"{value!r:.40}"
        )
    return float(value)  # type: ignore[arg-type]


def _task_type(value: object, where: str) -> str:
    if value is None or (isinstance(value, str) and _TASK_TYPE.fullmatch(value)):
        return value or ""
    raise CheckpointError(
        "not a task type", where=f"{where}: task_type", expected="such as CAUSAL_LM", got=f"{value!r:.40}"
    )


def _flag(config: Mapping[str, Any], key: str, where: str) -> bool:
    value = config.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise CheckpointError(
        "not a flag", where=f"{where}: {key}", expected="true or false", got=f"{value!r:.40}"
    )
