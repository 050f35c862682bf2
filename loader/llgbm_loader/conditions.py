r"""Which texts of a sample become its condition, and in which form: pure functions of (seed, epoch, key).

Draws are of words: BLAKE3 in its extendable mode of ``llgbm-condition\0{seed}\0{epoch}\0{purpose}\0{key}`` in UTF-8,
with numbers in decimal, taken as 64-bit little-endian words. The purpose is ``texts`` or ``form``.

- Text j of the K drawn is that of a Fisher-Yates shuffle of the sample's texts with word j of ``texts``.
- Under ``mix``, text j of the K drawn is ``prompt_answer`` where word j of ``form`` is below mix x 2^64, else ``prompt``:
  each text for itself, as in Drag-and-Drop-LLMs, but anew each epoch.

Where no texts are drawn the first one is taken, as if it were the one of K = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from llgbm_loader.options import ReadOptions
from llgbm_shards.errors import HeaderError, UsageError
from llgbm_shards.tensors import decode_arrays
from llgbm_shards.texts import ConditionSpec, RaggedTexts, check_length, rebuild_into

_WORD_BYTES: Final = 8
_WORDS: Final = 1 << (8 * _WORD_BYTES)
_MIXED: Final = ("prompt", "prompt_answer")


@dataclass(frozen=True, slots=True)
class ConditionMaker:
    """Makes conditions as the options ask."""

    spec: ConditionSpec  # what stands around bare ids
    options: ReadOptions

    def __post_init__(self) -> None:
        check_length(self.options.max_text_length, self.spec)
        absent = [name for name in self._needed if name not in self.spec.forms]
        if absent:
            raise UsageError(
                f"the set has no texts of form {absent[0]}",
                where="option form",
                expected="one of " + ", ".join(self.spec.forms),
                got=self.options.form,
                do="Build the set with that --form, or ask for one it has.",
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample's ids: (L,) or, when texts are drawn, (K, L)."""
        length = self.options.max_text_length
        return (length,) if self.options.num_texts is None else (self.options.num_texts, length)

    @property
    def _needed(self) -> tuple[str, ...]:
        return _MIXED if self.options.form == "mix" else (self.options.form,)

    def forms(self, epoch: int, key: str) -> list[str]:
        """The forms of the texts of one sample in one epoch, one for each of :meth:`numbers`."""
        count = self.options.num_texts or 1
        if self.options.form != "mix":
            return [self.options.form] * count
        words = _words(self.options.seed, epoch, key, "form", count)
        return ["prompt_answer" if word < self.options.mix * _WORDS else "prompt" for word in words]

    def numbers(self, epoch: int, key: str, texts: int) -> list[int]:
        """Numbers of the texts of one sample in one epoch, of the ``texts`` it has; text 0 when none are drawn."""
        count = self.options.num_texts
        return [0] if count is None else draw_texts(self.options.seed, epoch, key, texts, count)

    def write(
        self, data: memoryview, epoch: int, key: str, ids: NDArray[np.int64], mask: NDArray[np.int64]
    ) -> None:
        """Write one sample's condition, of its texts as stored, over ids and mask, both (L,) or (K, L).

        Raises:
            HeaderError: Not texts, a form is missing, or one has more texts than another.
        """
        length = self.options.max_text_length
        texts = self._decode(data)
        numbers = self.numbers(epoch, key, len(texts[self._needed[0]]))
        chosen = [texts[form][number] for form, number in zip(self.forms(epoch, key), numbers, strict=True)]
        rebuild_into(chosen, self.spec, ids.reshape(-1, length), mask.reshape(-1, length))

    def _decode(self, data: memoryview) -> dict[str, RaggedTexts]:
        """The texts of each form that may be drawn."""
        arrays, texts = decode_arrays(data, where="texts"), dict[str, RaggedTexts]()
        for form in self._needed:
            ids, offsets = arrays.get(f"{form}.ids"), arrays.get(f"{form}.offsets")
            if ids is None or offsets is None:
                raise HeaderError("the form is missing", where=form)
            texts[form] = RaggedTexts.checked(ids, offsets, where=form, vocab_size=self.spec.vocab_size)
        counts = {form: len(ragged) for form, ragged in texts.items()}
        if len(set(counts.values())) > 1:
            raise HeaderError("forms of different numbers of texts", where="texts", got=f"{counts}")
        return texts

    def trim(self, mask: NDArray[np.int64]) -> slice:
        """Columns to keep of a batch under ``padding="longest"``: as many as its longest text has."""
        length = mask.shape[-1]
        if self.options.padding != "longest":
            return slice(0, length)
        longest = max(int(mask.sum(axis=-1).max(initial=0)), 1)
        return slice(length - longest, length) if self.spec.padding_side == "left" else slice(0, longest)


def draw_texts(seed: int, epoch: int, key: str, texts: int, count: int) -> list[int]:
    """Draw ``count`` of ``texts`` without replacement; when there are fewer, every further round draws anew."""
    words = _words(seed, epoch, key, "texts", count)
    drawn: list[int] = []
    while len(drawn) < count:
        # Fisher-Yates, as far as needed. A word times n over 2^64 is uniform to 1 in 2^64 / n.
        left = list(range(texts))
        for place in range(min(texts, count - len(drawn))):
            other = place + (words[len(drawn)] * (texts - place) >> (8 * _WORD_BYTES))
            left[place], left[other] = left[other], left[place]
            drawn.append(left[place])
    return drawn


def _words(seed: int, epoch: int, key: str, purpose: str, count: int) -> list[int]:
    text = f"llgbm-condition\0{seed}\0{epoch}\0{purpose}\0{key}"
    data = blake3(text.encode()).digest(count * _WORD_BYTES)
    return [int.from_bytes(data[at : at + _WORD_BYTES], "little") for at in range(0, len(data), _WORD_BYTES)]
