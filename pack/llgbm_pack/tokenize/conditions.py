"""Tokenize the texts of checkpoints, and verify each one: from its ids alone the padded result can be rebuilt.

Why the checks of :class:`ConditionEncoder` cover every length. A fast tokenizer cuts the bare ids to
``L - special`` and then applies a template that does not look at them, so one untruncated result that equals
``prefix + ids + suffix`` fixes them all; two truncated lengths are compared besides. A tokenizer written in Python
may look at the ids it wraps (ByT5 adds no ``</s>`` after a text that ends in one). That can only change at a cut whose
edge is a special id, so one cut at each distinct special id is tried too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llgbm_pack.sources.text_files import Text
from llgbm_pack.tokenize.text_tokenizer import describe, load_tokenizer, save_loaded, save_tokenizer
from llgbm_shards.errors import CheckpointError
from llgbm_shards.texts import ConditionSpec, RaggedTexts, rebuild_into

__all__ = [
    "ConditionEncoder",
    "DroppedText",
    "EncodedTexts",
    "describe",
    "form_text",
    "load_tokenizer",
    "save_loaded",
    "save_tokenizer",
]

#: Cells (texts times length) of one padded call of the tokenizer, which bounds its memory.
_CALL_CELLS: Final = 1 << 20
#: Characters of texts whose ids an encoder remembers: checkpoints of one task share their texts.
_MEMORY_CHARACTERS: Final = 32 << 20

Ids = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class DroppedText:
    """A text that was left out."""

    index: int  # its place among the texts given
    form: str  # the form that cannot be rebuilt
    reason: str  # why


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedTexts:
    """The texts of one checkpoint as ids."""

    forms: Mapping[str, RaggedTexts]  # ids of each form; text ``i`` of all forms is the same text
    kept: tuple[int, ...]  # places of the kept texts among those given, climbing; the first is 0
    dropped: tuple[DroppedText, ...]  # texts left out of all forms
    fallbacks: int  # kept texts without an answer, where a form wants one: their prompt stands for it


def form_text(text: Text, form: str, joiner: str) -> str:
    """What is tokenized for one form; the prompt alone when there is no answer."""
    if form == "prompt" or not text.answer:
        return text.prompt
    return text.answer if form == "answer" else text.prompt + joiner + text.answer


class ConditionEncoder:
    """Tokenizes texts and verifies them. Not for use by several threads at once.

    Args:
        tokenizer: A transformers tokenizer.
        spec: Its description, as :func:`describe` gives it.
    """

    def __init__(self, tokenizer: Any, spec: ConditionSpec) -> None:
        self.spec = spec
        self._tokenizer = tokenizer
        if tokenizer.pad_token_id is None:
            # The caller's tokenizer stays as it is for everything but the comparison of padded results.
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(spec.pad_id)
        self._special = {*spec.prefix, *spec.suffix, spec.pad_id, *tokenizer.all_special_ids}
        self._known: dict[str, tuple[Ids, str]] = {}
        self._characters = 0

    @classmethod
    def from_directory(cls, directory: Path, spec: ConditionSpec) -> ConditionEncoder:
        """An encoder of a saved tokenizer; a worker process needs nothing else."""
        return cls(load_tokenizer(str(directory)), spec)

    def encode(self, texts: Sequence[Text], *, where: str = "") -> EncodedTexts:
        """Tokenize all texts of a checkpoint in all forms.

        Args:
            texts: The texts; the first must survive.
            where: The checkpoint, for messages.

        Returns:
            Ids without special tokens.

        Raises:
            CheckpointError: No text, or the first text cannot be rebuilt from its ids.
        """
        wanted = {
            form: [form_text(text, form, self.spec.joiner) for text in texts] for form in self.spec.forms
        }
        known = self._lookup({text for form_texts in wanted.values() for text in form_texts})
        dropped: dict[int, DroppedText] = {}
        for form, form_texts in wanted.items():
            for index, text in enumerate(form_texts):
                if known[text][1]:
                    dropped.setdefault(index, DroppedText(index=index, form=form, reason=known[text][1]))
        if not texts or 0 in dropped:
            raise _no_first_text(dropped, where)
        kept = tuple(index for index in range(len(texts)) if index not in dropped)
        forms = {form: RaggedTexts.of([known[wanted[form][index]][0] for index in kept]) for form in wanted}
        needs_answer = self.spec.forms != ("prompt",)
        return EncodedTexts(
            forms=forms,
            kept=kept,
            dropped=tuple(dropped[index] for index in sorted(dropped)),
            fallbacks=sum(not texts[index].answer for index in kept) if needs_answer else 0,
        )

    def _lookup(self, texts: set[str]) -> dict[str, tuple[Ids, str]]:
        """Ids and fault (empty: none) of each text; tokenizes those not met before, all in one call."""
        new = sorted(texts - self._known.keys())
        fresh = dict(zip(new, self._encode_new(new), strict=True)) if new else {}
        found = {text: fresh[text] if text in fresh else self._known[text] for text in texts}
        characters = sum(map(len, new))
        if self._characters + characters > _MEMORY_CHARACTERS:
            self._known, self._characters = {}, 0
        if characters <= _MEMORY_CHARACTERS:
            self._known.update(fresh)
            self._characters += characters
        return found

    def _encode_new(self, texts: list[str]) -> list[tuple[Ids, str]]:
        with warnings.catch_warnings():
            # ByT5 warns of each text that ends in </s>; such texts are dropped and named here.
            warnings.simplefilter("ignore")
            bare = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            ids = [np.array(row, np.int64) for row in bare]
            faults = [self._edge_fault(row) for row in ids]
            for group in _groups([row.size for row in ids], self.spec.num_special):
                for length in self._lengths([ids[index].size for index in group]):
                    for index in self._unequal(texts, ids, group, length):
                        faults[index] = faults[index] or f"at length {length} the tokenizer gives other ids"
        return [(row.astype(np.int32), fault) for row, fault in zip(ids, faults, strict=True)]

    def _lengths(self, sizes: Sequence[int]) -> list[int]:
        """Untruncated and padded for all, cut to one id for all, cut in the middle for most."""
        special, middle = self.spec.num_special, sorted(sizes)[len(sizes) // 2] // 2
        return sorted({special + 1, special + max(middle, 1), special + max(sizes) + 1})

    def _unequal(
        self, texts: list[str], ids: list[NDArray[np.int64]], group: list[int], length: int
    ) -> Iterator[int]:
        """The texts of a group whose rebuilt result differs from the tokenizer's own."""
        own = self._tokenizer(
            [texts[index] for index in group],
            padding="max_length",
            truncation=True,
            max_length=length,
            return_attention_mask=True,
            verbose=False,
        )
        shape = (len(group), length)
        built, mask = np.empty(shape, np.int64), np.empty(shape, np.int64)
        rebuild_into([ids[index].astype(np.int32) for index in group], self.spec, built, mask)
        rows = zip(group, own["input_ids"], own["attention_mask"], built, mask, strict=True)
        for index, own_ids, own_mask, row, row_mask in rows:
            if not (np.array_equal(own_ids, row) and np.array_equal(own_mask, row_mask)):
                yield index

    def _edge_fault(self, ids: NDArray[np.int64]) -> str:
        """Why a text cannot be rebuilt at every cut; empty when it can."""
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.spec.vocab_size:
            return f"ids outside the vocabulary of {self.spec.vocab_size}"
        if self._tokenizer.is_fast:
            return ""
        row, left = ids.tolist(), self.spec.truncation_side == "left"
        for special in self._special & set(row):
            at = row.index(special)
            cut = row[at:] if left else row[: at + 1]
            if self._tokenizer.build_inputs_with_special_tokens(cut) != [
                *self.spec.prefix,
                *cut,
                *self.spec.suffix,
            ]:
                token = self._tokenizer.convert_ids_to_tokens(special)
                return f"it holds the special token {token!r}, which changes what the tokenizer adds"
        return ""


def _groups(sizes: Sequence[int], special: int) -> Iterator[list[int]]:
    """Indices grouped by similar size, so that no padded call holds more than a bounded number of cells."""
    group: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: (sizes[index], index)):
        if group and (len(group) + 1) * (sizes[index] + special + 1) > _CALL_CELLS:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _no_first_text(dropped: Mapping[int, DroppedText], where: str) -> CheckpointError:
    if not dropped:
        return CheckpointError("no texts", where=where, expected="at least one")
    return CheckpointError(
        "the first text cannot be rebuilt from its ids",
        where=where,
        expected="the tokenizer's own result at every length",
        got=f"form {dropped[0].form}: {dropped[0].reason}",
        do="Change that text, or put another first.",
    )
