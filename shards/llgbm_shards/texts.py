"""Texts as a set stores them: ragged token ids without padding or special tokens, and what puts those back.

A text of ``n`` ids is stored as just these ids. The tokenizer's own
``padding="max_length", truncation=True, max_length=L`` result is::

    [prefix] ids cut to L - len(prefix) - len(suffix) [suffix], padded with pad_id to L

cut and padded on the sides the tokenizer cuts and pads. Packing verifies for each text that this holds, so any
length above the number of special tokens can be asked for later, without the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llgbm_shards.errors import HeaderError, UsageError
from llgbm_shards.names import FORMS
from llgbm_shards.schema import TEXTS, refuse_faults

_SIDES: Final = ("left", "right")
_MAX_ID: Final = 2**31 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionSpec:
    """What rebuilds padded conditions from bare ids; the ``texts`` field of ``shardset.json``."""

    forms: tuple[str, ...]  # those that the set holds, some of FORMS in its order
    joiner: str  # what stands between prompt and answer in the form prompt_answer
    prefix: tuple[int, ...]  # special ids before each text
    suffix: tuple[int, ...]  # special ids after each text
    pad_id: int
    padding_side: str  # left or right
    truncation_side: str  # the side that loses ids: left or right
    vocab_size: int  # one more than the largest id the tokenizer can give

    def __post_init__(self) -> None:
        known = [form for form in FORMS if form in self.forms]
        if not self.forms or list(self.forms) != known:
            expected = f"some of {FORMS}, in this order"
            raise UsageError("unknown forms", expected=expected, got=f"{self.forms!s:.200}")
        for side in (self.padding_side, self.truncation_side):
            if side not in _SIDES:
                what = "unknown side of padding or truncation"
                raise UsageError(what, expected="left or right", got=f"{side:.40}")
        if not 0 < self.vocab_size <= _MAX_ID:
            got = f"{self.vocab_size!s:.40}"
            raise UsageError("impossible vocabulary", expected="1 to 2^31 - 1 ids", got=got)
        for special in (*self.prefix, *self.suffix, self.pad_id):
            if not 0 <= special < self.vocab_size:
                what, expected = "special id outside the vocabulary", f"below {self.vocab_size}"
                raise UsageError(what, expected=expected, got=f"{special!s:.40}")

    @property
    def num_special(self) -> int:
        """Number of special ids around each text."""
        return len(self.prefix) + len(self.suffix)

    def to_json(self) -> dict[str, Any]:
        """The ``texts`` field of ``shardset.json``."""
        fields = asdict(self).items()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields}

    @classmethod
    def from_json(cls, value: Any, *, where: str = "texts") -> ConditionSpec:
        """Parse what :meth:`to_json` gave.

        Raises:
            HeaderError: A field is missing, unknown, of another type or out of range.
        """
        refuse_faults(value, TEXTS, where)
        tuples: dict[str, Any] = {name: tuple(value[name]) for name in ("forms", "prefix", "suffix")}
        try:
            return cls(**{**value, **tuples})
        except UsageError as error:
            raise error.as_(HeaderError, where=where) from error


@dataclass(frozen=True, slots=True, eq=False)
class RaggedTexts:
    """The texts of one form of one sample; text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``."""

    ids: NDArray[np.int32]  # (total,), all texts one after the other
    offsets: NDArray[np.int64]  # (n+1,)

    @classmethod
    def checked(
        cls, ids: NDArray[np.int32], offsets: NDArray[np.int64], *, where: str, vocab_size: int = _MAX_ID + 1
    ) -> RaggedTexts:
        """Ragged texts of arrays that somebody else wrote.

        Raises:
            HeaderError: Wrong dtype or rank, no text, offsets that do not climb from 0 to the number of ids, or an id
                outside the vocabulary.
        """
        for name, array, dtype in (("ids", ids, np.int32), ("offsets", offsets, np.int64)):
            if array.ndim != 1 or array.dtype != dtype:
                expected, got = f"1-D {dtype.__name__}", f"{array.dtype} of shape {array.shape}"
                raise HeaderError(f"{name} of another kind", where=where, expected=expected, got=got)
        climbing = offsets.size > 1 and offsets[0] == 0 and bool((offsets[1:] >= offsets[:-1]).all())
        if not climbing or offsets[-1] != ids.size:
            expected, got = f"at least two, climbing from 0 to {ids.size}", f"{offsets.size} offsets"
            raise HeaderError("offsets do not divide the ids", where=where, expected=expected, got=got)
        check_vocabulary(ids, where=where, vocab_size=vocab_size)
        return cls(ids, offsets)

    @classmethod
    def of(cls, texts: Sequence[NDArray[np.int32]]) -> RaggedTexts:
        """Join separate texts."""
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([text.size for text in texts], out=offsets[1:])
        ids = np.concatenate(texts) if texts else np.zeros(0)
        return cls(ids.astype(np.int32, copy=False), offsets)

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        """The ids of one text, as a view."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def check_vocabulary(ids: NDArray[np.int32], *, where: str, vocab_size: int) -> None:
    """Refuse ids that no tokenizer of so many gives.

    Raises:
        HeaderError: An id is below 0 or not below ``vocab_size``.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        expected, got = f"0 to {vocab_size - 1}", f"{ids.min()} to {ids.max()}"
        raise HeaderError("id outside the vocabulary", where=where, expected=expected, got=got)


def rebuild_into(
    texts: Sequence[NDArray[np.int32]],
    spec: ConditionSpec,
    input_ids: NDArray[np.int64],
    attention_mask: NDArray[np.int64],
) -> None:
    """Fill the rows of a batch with padded conditions; the length is that of a row.

    Args:
        texts: Bare ids of B texts.
        spec: What stands around them.
        input_ids: (B, length), overwritten.
        attention_mask: (B, length), overwritten: 1 where a text or its special ids are, 0 on padding.

    Raises:
        UsageError: The length leaves no room beside the special ids, or the shapes do not agree.
    """
    length = input_ids.shape[-1]
    check_length(length, spec)
    if not (input_ids.shape == attention_mask.shape == (len(texts), length)):
        got = f"{input_ids.shape} and {attention_mask.shape}"
        raise UsageError("batch of another shape", expected=f"({len(texts)}, {length}) twice", got=got)
    input_ids.fill(spec.pad_id)
    attention_mask.fill(0)
    room, prefix = length - spec.num_special, len(spec.prefix)
    for row, mask, ids in zip(input_ids, attention_mask, texts, strict=True):
        kept = ids[max(ids.size - room, 0) :] if spec.truncation_side == "left" else ids[:room]
        used = kept.size + spec.num_special
        start = length - used if spec.padding_side == "left" else 0
        row[start : start + prefix] = spec.prefix
        row[start + prefix : start + prefix + kept.size] = kept
        row[start + prefix + kept.size : start + used] = spec.suffix
        mask[start : start + used] = 1


def check_length(length: int, spec: ConditionSpec) -> None:
    """Refuse a length with no room for text.

    Raises:
        UsageError: It is not above the number of special ids; there tokenizers do not cut, they give more than asked.
    """
    if length <= spec.num_special:
        what, expected = "text length leaves no room for text", f"above the {spec.num_special} special ids"
        raise UsageError(what, where="max_text_length", expected=expected, got=f"{length}")
