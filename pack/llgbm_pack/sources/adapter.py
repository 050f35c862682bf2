"""Reading a LoRA adapter from its headers: modules, ranks, dtype and scaling, without touching the weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from llgbm_pack.sources.adapter_config import AdapterConfig, load_config, parse_config, read_config
from llgbm_pack.sources.peft_keys import PairKeys, pair_keys
from llgbm_shards.errors import CheckpointError, HeaderError
from llgbm_shards.layout import SAFETENSORS_DTYPE
from llgbm_shards.storage import read_errors
from llgbm_shards.tensors import Header, TensorSpec, parse_header, read_head

_DTYPE_NAME: Final = {short: name for name, short in SAFETENSORS_DTYPE.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSpec:
    """One module of an adapter, as the header has it."""

    a: TensorSpec  # lora_A, (rank, in_features)
    b: TensorSpec  # lora_B, (out_features, rank)
    a_key: str  # its key in the file
    b_key: str  # its key in the file
    rank: int  # from the shapes
    in_features: int  # width of A
    out_features: int  # height of B
    alpha: float  # alpha of this module (``alpha_pattern`` applied)
    scaling: float  # the factor of ``B @ A``


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """A LoRA adapter, without its weights."""

    dtype: str  # ``bfloat16``, ``float16`` or ``float32``; one for all tensors
    pairs: dict[str, PairSpec]  # canonical module name -> module, sorted by name
    base_model: str  # name of the base model, never a path; "" when unknown
    rank: int  # the largest rank
    alpha: float  # ``lora_alpha``
    scaling: float  # ``alpha / rank`` (rslora: ``alpha / sqrt(rank)``) of these two
    dropout: float  # ``lora_dropout``, 0 when unknown
    task_type: str  # PEFT's, such as ``CAUSAL_LM``; "" when none


def read_adapter(weights: Path, config: Path | None, *, alpha: float | None = None) -> Adapter:
    """Reads the headers of an adapter and tells whether it can be packed.

    Args:
        weights: ``adapter_model.safetensors`` or any safetensors file.
        config: ``adapter_config.json``; None when there is none.
        alpha: Alpha for an adapter whose config is absent or does not name it.

    Raises:
        CheckpointError: Names the tensor or the config key that forbids packing, and why.
    """
    if weights.suffix != ".safetensors":
        raise CheckpointError(
            "not a safetensors file; pickles are never opened",
            where=weights.name,
            do="Save it again with safe_serialization=True.",
        )
    try:
        with read_errors(CheckpointError, weights.name):
            head, size = read_head(weights)
    except HeaderError as error:
        raise error.as_(CheckpointError) from error
    raw = None if config is None else read_config(config)
    return parse_adapter(head, size, weights.name, raw, config.name if config else "", alpha=alpha)


def parse_adapter(
    head: bytes,
    size: int,
    name: str,
    config: bytes | None,
    config_name: str,
    *,
    alpha: float | None = None,
) -> Adapter:
    """As :func:`read_adapter`, from the bytes before the data section of a file of ``size`` bytes, and a config's bytes."""
    return _parse(head, size, name, config, config_name, alpha)


# Most adapters of a zoo have the same header and config: parsing them takes longer than reading them.
@lru_cache(maxsize=16)
def _parse(
    head: bytes, size: int, name: str, raw: bytes | None, config_name: str, alpha: float | None
) -> Adapter:
    config = None if raw is None else load_config(raw, config_name)
    try:
        header = parse_header(head, size, where=name)
    except HeaderError as error:
        raise error.as_(CheckpointError) from error
    keys = pair_keys(header.tensors, name)
    dtype = _dtype(header, name)
    # After the tensors: where both tell against an adapter, naming the tensor helps more.
    parsed = AdapterConfig() if config is None else parse_config(config, config_name)
    default = parsed.alpha if parsed.alpha is not None else alpha
    if default is None:
        raise CheckpointError(
            "alpha is not known",
            where=name if raw is None else f"{config_name}: lora_alpha",
            got="no adapter_config.json" if raw is None else "no such key",
            do="Give it with --alpha.",
        )
    pairs = {module: _pair(module, pair, header, parsed, default, name) for module, pair in keys.items()}
    rank = max(pair.rank for pair in pairs.values())
    return Adapter(
        dtype=dtype,
        pairs=pairs,
        base_model=parsed.base_model,
        rank=rank,
        alpha=default,
        scaling=parsed.scaling_of(default, rank),
        dropout=parsed.dropout,
        task_type=parsed.task_type,
    )


def _dtype(header: Header, where: str) -> str:
    """The one dtype of all tensors."""
    first: tuple[str, str] | None = None
    for key, spec in sorted(header.tensors.items()):
        if spec.dtype not in _DTYPE_NAME:
            raise CheckpointError(
                "dtype cannot be packed",
                where=f"{where}: {key:.200}",
                expected="BF16, F16 or F32",
                got=spec.dtype,
            )
        first = first or (key, spec.dtype)
        if spec.dtype != first[1]:
            raise CheckpointError(
                "tensors of different dtypes",
                where=f"{where}: {key:.200}",
                expected=f"{first[1]}, as {first[0]:.200}",
                got=spec.dtype,
                do="Save all tensors in one dtype.",
            )
    return _DTYPE_NAME[first[1]] if first else ""


def _pair(
    name: str, keys: PairKeys, header: Header, config: AdapterConfig, alpha: float, where: str
) -> PairSpec:
    a, b = _matrix(keys.a, header, where), _matrix(keys.b, header, where)
    rank, in_features = a.shape
    out_features = b.shape[0]
    if b.shape[1] != rank:
        raise CheckpointError(
            "lora_A and lora_B have different ranks",
            where=f"{where}: {keys.b:.200}",
            expected=f"({out_features}, {rank}), for lora_A is {a.shape}",
            got=f"{b.shape}",
        )
    claimed = config.rank_of(name)
    if claimed is not None and claimed != rank:
        raise CheckpointError(
            "rank of the tensor is not that of the config",
            where=f"{where}: {keys.a:.200}",
            expected=f"{claimed} (r, rank_pattern)",
            got=f"{rank}",
            do="PEFT cannot load it either: the config is another adapter's, or was changed by hand.",
        )
    own = config.alpha_of(name)
    own = alpha if own is None else own
    return PairSpec(
        a=a,
        b=b,
        a_key=keys.a,
        b_key=keys.b,
        rank=rank,
        in_features=in_features,
        out_features=out_features,
        alpha=own,
        scaling=config.scaling_of(own, rank),
    )


def _matrix(key: str, header: Header, where: str) -> TensorSpec:
    spec = header.tensors[key]
    if len(spec.shape) != 2:
        what = "it adapts a convolution" if len(spec.shape) > 2 else "not a matrix"
        raise CheckpointError(
            what, where=f"{where}: {key:.200}", expected="2 dimensions", got=f"{spec.shape}"
        )
    if 0 in spec.shape:
        raise CheckpointError("empty tensor", where=f"{where}: {key:.200}", got=f"{spec.shape}")
    return spec
