"""Parts of a sample that are made alike, of a checkpoint or of a sample of another set: texts, delta, json."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from llgbm_pack.plan.values import InputFile, Note, PackContext, PlannedSample
from llgbm_pack.sources.texts import Text
from llgbm_pack.tokenize.conditions import ConditionEncoder
from llgbm_shards import members as codec
from llgbm_shards.canonical import load_json
from llgbm_shards.errors import CheckpointError, HeaderError
from llgbm_shards.members import EncodedMember
from llgbm_shards.names import TOKENIZER_DIRECTORY
from llgbm_shards.sample import MAX_JSON_BYTES
from llgbm_shards.shard_writer import PackedSample
from llgbm_shards.storage import opened_file, read_errors, read_range

#: A json of at most this many bytes is within every limit of the readers.
_SURELY_READABLE: Final = 1 << 20


@dataclass(slots=True)
class Packed:
    """One packed sample: what to write, what it was made of, and what is worth telling."""

    sample: PackedSample
    source_bytes: int  # bytes of its source
    inputs: list[InputFile]  # files of the user's that it was made of; the weights first
    notes: list[Note]
    fallbacks: int  # texts whose prompt stood in for a missing answer


@dataclass(frozen=True, slots=True)
class EncodedConditions:
    """The texts of a sample, tokenized."""

    member: EncodedMember
    kept: tuple[Text, ...]  # those that can be rebuilt from their ids
    notes: list[str]  # of the others
    fallbacks: int  # kept texts whose prompt stood in for a missing answer


def condition_encoder(context: PackContext, tokenizer: Any) -> ConditionEncoder | None:
    """What tokenizes texts; None where none are wanted. Without a tokenizer at hand it is the set's, which is loaded."""
    if context.conditions is None:
        return None
    if tokenizer is None:
        return ConditionEncoder.from_directory(context.out / TOKENIZER_DIRECTORY, context.conditions)
    return ConditionEncoder(tokenizer, context.conditions)


def encode_conditions(encoder: ConditionEncoder, texts: Sequence[Text], *, where: str) -> EncodedConditions:
    """Tokenize texts; a CheckpointError when the first of them cannot be rebuilt from its ids."""
    encoded = encoder.encode(texts, where=where)
    forms = {form: (ragged.ids, ragged.offsets) for form, ragged in encoded.forms.items()}
    return EncodedConditions(
        codec.encode_texts(forms),
        tuple(texts[index] for index in encoded.kept),
        [f"text {drop.index} dropped: {drop.reason}" for drop in encoded.dropped],
        encoded.fallbacks,
    )


def read_delta(planned: PlannedSample, width: int) -> NDArray[np.float32]:
    """The joined delta, (width,); zeros where the policy asked for them, and then has_delta says so."""
    if planned.delta is None:
        return np.zeros(width, np.float32)
    loaded = planned.delta.load()
    if len(loaded.array) != width:
        raise CheckpointError(
            "delta changed its width since the plan",
            where=planned.delta.file.name,
            expected=f"{width}",
            got=f"{len(loaded.array)}",
        )
    return loaded.array


def stale_notes(planned: PlannedSample, source_digest: str) -> list[str]:
    """What to tell of a delta that was measured on other weights than those of this digest."""
    stale = planned.delta and planned.delta.source_digest not in ("", source_digest)
    return ["stale delta: it was measured on other weights (its source_digest differs)"] if stale else []


def input_file(path: Path) -> InputFile:
    """The state of a small file, with its digest."""
    with read_errors(CheckpointError, path.name), opened_file(path) as fd:
        status = os.fstat(fd)
        data = read_range(fd, 0, status.st_size)
    return InputFile(
        path=str(path), size=status.st_size, mtime_ns=status.st_mtime_ns, digest=blake3(data).hexdigest()
    )


def readable(member: EncodedMember) -> EncodedMember:
    """Refuse a json that readers would refuse for its size: too many or too long texts."""
    if member.size > _SURELY_READABLE:
        try:
            load_json(bytes(member.parts[0]), where="json", max_bytes=MAX_JSON_BYTES)
        except HeaderError as error:
            do = "Keep fewer texts of it, with --max-texts."
            raise error.as_(CheckpointError, f"its json would be {error.what}", where="", do=do) from error
    return member
