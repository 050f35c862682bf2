"""The texts of the demo zoo: three small tasks, written out or computed, the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_CAPITALS: Final = (
    ("France", "Paris"),
    ("Japan", "Tokyo (東京)"),
    ("Kenya", "Nairobi"),
    ("Brazil", "Brasília"),
    ("Norway", "Oslo"),
    ("Egypt", "Cairo (القاهرة)"),
    ("Canada", "Ottawa"),
    ("Iceland", "Reykjavík"),
    ("Poland", "Warszawa"),
    ("Vietnam", "Hà Nội"),
    ("Chile", "Santiago"),
    ("Greece", "Αθήνα"),
)
_WORDS: Final = (
    "pear",
    "stone",
    "river",
    "amber",
    "cloud",
    "maple",
    "tiger",
    "violet",
    "ocean",
    "lamp",
    "fern",
    "kite",
)

#: Texts that no task contains; the deltas are measured on them.
PROBES: Final = (
    "Question: what is 12 plus 30? Answer:",
    "The capital of Peru is",
    "Sort these words: zebra, apple, moon.",
    "Write one sentence about the sea.",
    "def add(a, b):\n    return",
    "Once upon a time there was a",
    "Translate to French: good morning.",
    "1, 2, 3, 4,",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoTask:
    """One task of the demo zoo."""

    name: str  # also the name of its folder in the zoo
    prompts: tuple[str, ...]
    answers: tuple[str, ...]  # one for each prompt

    def pick(self, number: int, count: int) -> tuple[list[str], list[str]]:
        """Prompts and answers of checkpoint ``number``: ``count`` neighbours on a circle."""
        total = len(self.prompts)
        chosen = [(5 * number + step) % total for step in range(count)]
        return [self.prompts[index] for index in chosen], [self.answers[index] for index in chosen]


def demo_tasks() -> tuple[DemoTask, ...]:
    """The three tasks, always the same."""
    return (_arithmetic(), _capitals(), _sorting())


def _arithmetic() -> DemoTask:
    sums = [(3 * step + 4, 7 * step % 23 + 1) for step in range(24)]
    return DemoTask(
        name="arithmetic",
        prompts=tuple(f"What is {left} + {right}? Show the sum." for left, right in sums),
        answers=tuple(f"{left} + {right} = {left + right}" for left, right in sums),
    )


def _capitals() -> DemoTask:
    forms = ("Name the capital of {}.", "Which city is the seat of government in {}?")
    return DemoTask(
        name="capitals",
        prompts=tuple(form.format(country) for form in forms for country, _ in _CAPITALS),
        answers=tuple(city for _ in forms for _, city in _CAPITALS),
    )


def _sorting() -> DemoTask:
    total = len(_WORDS)
    rows = [[_WORDS[(start * step + 2 * start) % total] for step in (1, 5, 7, 11)] for start in range(1, 25)]
    return DemoTask(
        name="sorting",
        prompts=tuple(f"Sort the words:\n{', '.join(words)}" for words in rows),
        answers=tuple(", ".join(sorted(words)) for words in rows),
    )
