"""The keys of an adapter file: which two tensors make a module, and which keys cannot be packed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NoReturn

from llgbm_shards.errors import CheckpointError

#: Prefix PEFT puts before the name a module has in the base model.
PEFT_PREFIX: Final = "base_model.model."
_PAIR_KEY: Final = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_ONLY_PAIRS: Final = "Only pairs of lora_A and lora_B of linear layers can be packed."
#: Diffusers writes PEFT's key endings after its own component names.
_DIFFUSERS: Final = (
    r"^(unet|vae|prior|diffusion_model|text_encoder(_\d)?)\."
    r"|^transformer\.(transformer_blocks|single_transformer_blocks|blocks|x_embedder|context_embedder)\b"
    r"|[._]lora\.(down|up)\.weight$"
)
#: (pattern searched in a key, reason); the first pattern that any key matches gives the reason.
_REFUSED: Final = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"lora_magnitude_vector", "DoRA adapter: it has magnitudes besides A and B"),
        (r"\.lora_E\b|\branknum\b", "AdaLoRA adapter: it has singular values besides A and B"),
        (r"\.lora_embedding_[AB]\b", "it adapts an embedding"),
        (r"trainable_tokens_", "it trains token embeddings besides A and B"),
        (r"^lora_(unet|te\d?|transformer|prior|llm)_|\.lora_(down|up)\.weight$", "kohya file, not PEFT"),
        (_DIFFUSERS, "diffusers file, not PEFT"),
        (r"\.lora_[ab]$", "MLX file, not PEFT"),
        (r"\.alpha$", "kohya file, not PEFT"),
        (r"\.modules_to_save\b", "it saves whole modules (modules_to_save) besides A and B"),
        (r"\.bias$", "it trains biases besides A and B"),
        (
            r"(^|\.)experts(\.base_layer)*\.lora_[AB]\b|\.base_layer\.lora_[AB]\b",
            "it adapts MoE expert parameters",
        ),
        (
            r"(^|\.)(lm_head|embed_out|output_layer)(\.base_layer)?\.lora_[AB]\b",
            "it adapts the output layer (lm_head)",
        ),
        (
            r"(^|\.)(embed_tokens|embed_in|wte|wpe|word_embeddings|shared)(\.base_layer)?\.lora_[AB]\b",
            "it adapts an embedding",
        ),
        (
            r"(^|\.)(lm_head|embed_tokens|wte|shared)\.(base_layer\.)?weight$",
            "it holds an embedding or lm_head",
        ),
    )
)


def peft_key(name: str, side: str) -> str:
    """The key PEFT saves side ``A`` or ``B`` of a module under."""
    return f"{PEFT_PREFIX}{name}.lora_{side}.weight"


@dataclass(frozen=True, slots=True)
class PairKeys:
    """Keys of the two tensors of a module."""

    a: str
    b: str


def pair_keys(keys: Iterable[str], where: str) -> dict[str, PairKeys]:
    """Canonical module name (no ``base_model.model.``) -> its two keys, sorted by name.

    Raises:
        CheckpointError: Names the first key that cannot be packed, and why.
    """
    ordered = sorted(keys)
    _refuse(ordered, where)
    sides: dict[str, dict[str, tuple[str, str]]] = {}
    for key in ordered:
        parts = _PAIR_KEY.fullmatch(key)
        if parts is None:
            _refuse_other(key, ordered, where)
        name = parts["module"].removeprefix(PEFT_PREFIX)
        module = sides.setdefault(name, {})
        if parts["side"] in module:
            raise CheckpointError(
                "two adapters in one file",
                where=f"{where}: {key:.200}",
                got=f"also {module[parts['side']][0]:.200}",
                do="Save each adapter to a file of its own.",
            )
        module[parts["side"]] = (key, parts["adapter"] or "")
    if not sides:
        raise CheckpointError("not a LoRA adapter: it holds no tensors", where=where, do=_ONLY_PAIRS)
    return {name: _complete(module, where) for name, module in sorted(sides.items())}


def _refuse(keys: list[str], where: str) -> None:
    for pattern, reason in _REFUSED:
        for key in keys:
            # PEFT's own prefix shows that a `transformer.` below it is a model's, as in GPT-2.
            if pattern.search(key):
                raise CheckpointError(reason, where=f"{where}: {key:.200}", do=_ONLY_PAIRS)


def _refuse_other(key: str, keys: list[str], where: str) -> NoReturn:
    pairs = sum(1 for other in keys if _PAIR_KEY.fullmatch(other))
    if "lora_" in key:
        what = "unknown LoRA variant: a tensor besides A and B"
    else:
        what = "a whole tensor besides A and B (modules_to_save)" if pairs else "not a LoRA adapter"
    raise CheckpointError(what, where=f"{where}: {key:.200}", do=_ONLY_PAIRS)


def _complete(module: dict[str, tuple[str, str]], where: str) -> PairKeys:
    if set(module) == {"A", "B"}:
        (a, adapter_a), (b, adapter_b) = module["A"], module["B"]
        if adapter_a == adapter_b:
            return PairKeys(a, b)
    side, (key, _) = next(iter(module.items()))
    missing = "lora_B" if side == "A" else "lora_A"
    raise CheckpointError(
        "half of a pair is missing",
        where=f"{where}: {key:.200}",
        expected=f"a {missing} for it",
        do=_ONLY_PAIRS,
    )
