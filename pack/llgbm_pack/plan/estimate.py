"""How many bytes a set will have: exact but for texts and json, which are estimated from their characters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from llgbm_pack.plan.values import PackContext
from llgbm_pack.sources.texts import Text
from llgbm_shards import ustar
from llgbm_shards.members import fixed_sizes

#: Bytes of text per token id, between small vocabularies (2) and large ones (4.5).
_BYTES_PER_ID: Final = 3
#: Bytes of a texts member's header per form; of a json less texts and modules; of one text's and one module's braces,
#: names and numbers there.
_FORM_BYTES, _JSON_BYTES, _TEXT_BYTES, _MODULE_BYTES = 160, 1300, 25, 40
#: Bytes of a source member less its tensors, most of them config; of one of its two tensors less the module's name.
_SOURCE_BYTES, _TENSOR_BYTES = 1200, 115


@dataclass(frozen=True, slots=True)
class TextSize:
    """What is kept of a checkpoint's texts for the estimate: a plan of 100,000 checkpoints must not hold them all."""

    source: str
    texts: int
    prompt_bytes: int
    answer_bytes: int

    @classmethod
    def of(cls, source: str, texts: Iterable[Text]) -> TextSize:
        """Measure the texts of one checkpoint."""
        sizes = [(len(text.prompt.encode()), len(text.answer.encode())) for text in texts]
        return cls(source, len(sizes), sum(size for size, _ in sizes), sum(size for _, size in sizes))


def estimate_bytes(context: PackContext, texts: Iterable[TextSize], shards: int) -> int:
    """Bytes of all shards and of their parity."""
    sizes: dict[str, Any] = dict(fixed_sizes(context.layout, context.delta_width))
    names = sum(len(module.name) for module in context.layout.modules)
    least_json = _JSON_BYTES + names + _MODULE_BYTES * len(context.layout.modules)
    sizes["source"] = _SOURCE_BYTES + 2 * (names + _TENSOR_BYTES * len(context.layout.modules))
    total, longest = shards * len(ustar.END), 0
    for size in texts:
        sizes["texts"] = _texts_member(context, size)
        sizes["json"] = least_json + size.prompt_bytes + size.answer_bytes + _TEXT_BYTES * size.texts
        record = sum(ustar.BLOCK + ustar.padded(sizes[field]) for field in context.members)
        total, longest = total + record, max(longest, record)
    return total + shards * context.parity * longest


def _texts_member(context: PackContext, size: TextSize) -> int:
    total = 0
    for form in context.conditions.forms if context.conditions else ():
        prompt = size.prompt_bytes if form != "answer" else 0
        answer = size.answer_bytes if form != "prompt" else 0
        total += _FORM_BYTES + 4 * (prompt + answer) // _BYTES_PER_ID + 8 * (size.texts + 1)
    return total
