"""Options of the loader and the dataset, checked when they are made."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from llgbm_loader.frame import FRAMES, ZERO_STDS
from llgbm_loader.order import REMAINDERS
from llgbm_loader.tensors import TORCH_DTYPE
from llgbm_loader.views import VIEWS
from llgbm_shards import names
from llgbm_shards.arguments import (
    LEAST_SEED,
    MOST_COUNT,
    MOST_SEED,
    MOST_WORKERS,
    is_number,
    is_one_of,
    local_path,
    require,
    whole_number,
)

#: The member that each field of a batch needs; tokens need the scales too, see :func:`needed_members`.
MEMBER: Final = {
    "tokens": "pieces",
    "weights": "pieces",
    "scales": "scales",
    "condition": "texts",
    "delta": "delta",
}
#: Fields a batch can be made of, and those it is made of unless others are named.
FIELDS: Final = tuple(MEMBER)
DEFAULT_FIELDS: Final = tuple(field for field in FIELDS if field != "weights")
PADDINGS: Final = ("max_length", "longest")
FORMS: Final = (*names.FORMS, "mix")
VERIFY: Final = ("full", "first-epoch", "off")
BAD_SAMPLE: Final = ("raise", "skip")
_SHUFFLES: Final = (True, False, "shards")
_MAY_BE_NONE: Final = ("num_texts", "rank", "world_size")
#: With more, an epoch is read ahead: a batch takes some 100 MB.
_MOST_AHEAD: Final = 1024
_DTYPES: Final = (None, *reversed(TORCH_DTYPE.values()))

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Overlays = str | os.PathLike[str] | Sequence[str | os.PathLike[str] | None] | None
Filters = Sequence[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectOptions:
    """Which samples: the sets taken as one, and what of them."""

    paths: tuple[Path, ...]  # the sets' directories, absolute
    overlays: tuple[
        Path | None, ...
    ]  # likewise of their overlays, None where there is none; empty without any
    split: str | None  # None takes all
    filters: Filters | None  # further conditions on index columns, in pyarrow's disjunctive normal form
    expect_digest: tuple[str, ...]  # one for each set; empty when not pinned
    columns: tuple[str, ...]  # index columns that go into batches

    @classmethod
    def of(
        cls,
        path: Paths,
        overlay: Overlays,
        split: str | None,
        filters: Filters | None,
        expect_digest: str | Sequence[str] | None,
        columns: Sequence[str],
    ) -> SelectOptions:
        """Options from the arguments users give: one path or many, one overlay or many, one digest or many."""
        paths = [path] if isinstance(path, (str, os.PathLike)) else path
        _listed("path", paths, (str, os.PathLike), "a set's directory, or a list of such")
        digests = [expect_digest] if isinstance(expect_digest, str) else expect_digest
        if digests is not None:
            expected = f"a digest for each of the sets: {len(paths)}"
            _listed("expect_digest", digests, str, expected)
            _check(len(digests) == len(paths), "expect_digest", expected, digests)
        overlays = [overlay] if isinstance(overlay, (str, os.PathLike)) else overlay
        if overlays is not None:
            expected = f"an overlay's directory, or None, for each of the sets: {len(paths)}"
            _listed("overlay", overlays, (str, os.PathLike, type(None)), expected)
            _check(len(overlays) == len(paths), "overlay", expected, overlays)
        _listed("columns", columns, str, "a list of names of text columns of the index", least=0)
        # Shards are opened when they are read: a change of directory until then must not lead elsewhere.
        absolute = tuple(local_path("option path", path).absolute() for path in paths)
        return cls(
            paths=absolute,
            overlays=tuple(
                None if one is None else local_path("option overlay", one).absolute()
                for one in overlays or ()
            ),
            split=split,
            filters=filters,
            expect_digest=tuple(digests or ()),
            columns=tuple(dict.fromkeys(columns)),
        )

    def __post_init__(self) -> None:
        named = self.split is None or isinstance(self.split, str)
        _check(named, "split", "the name of one split, or None for all", self.split)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """What a sample looks like once read: the same for the loader and the dataset."""

    fields: Sequence[str] | None  # some of FIELDS; None takes all the set has
    view: str  # of weights: pieces, modules, layers or flat
    frame: str  # dnd, fp32, or none for the bare body
    zero_std: str  # what a piece of zero std shows: nan or zeros
    dtype: torch.dtype | None  # of tokens and weights; None leaves the stored one
    form: str  # prompt, answer, prompt_answer, or mix of the first and the last
    mix: float  # under mix, the probability of prompt_answer, for each text by itself
    num_texts: int | None  # None takes the first text of a sample, K draws K of them
    max_text_length: int  # ids of a condition at most
    padding: str  # max_length, or longest of the batch
    verify: str  # full, first-epoch or off
    seed: int  # of the order and of the draws, -2**63 to 2**64 - 1 as for torch.manual_seed

    def __post_init__(self) -> None:
        if self.fields is not None:
            expected = f"a list of some of {FIELDS}"
            _listed("fields", self.fields, str, expected)
            _check(set(self.fields) <= set(FIELDS), "fields", expected, self.fields)
            object.__setattr__(self, "fields", tuple(self.fields))
        _choice("view", self.view, VIEWS)
        _choice("frame", self.frame, FRAMES)
        _choice("zero_std", self.zero_std, ZERO_STDS)
        _choice("dtype", self.dtype, _DTYPES)
        _choice("form", self.form, FORMS)
        _choice("padding", self.padding, PADDINGS)
        _choice("verify", self.verify, VERIFY)
        _check(is_number(self.mix) and 0 <= self.mix <= 1, "mix", "a probability, 0 to 1", self.mix)
        _integers(self, num_texts=1, max_text_length=1)
        object.__setattr__(self, "seed", whole_number("seed", self.seed, LEAST_SEED, MOST_SEED))


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamOptions:
    """How samples become batches."""

    batch_size: int  # rows of a batch on one rank
    shuffle: bool | str  # True, False, or shards, which keeps the samples of a shard together
    rank: int | None  # None to find out
    world_size: int | None  # None to find out
    remainder: str  # drop or pad
    on_bad_sample: str  # raise or skip
    max_bad_samples: int  # under skip, how many damaged samples are let pass before it raises after all
    readers: int  # threads: some hundred keep any store busy, and some thousand a process cannot have
    prefetch_batches: int  # batches read ahead

    def __post_init__(self) -> None:
        _choice("shuffle", self.shuffle, _SHUFFLES)
        _choice("remainder", self.remainder, REMAINDERS)
        _choice("on_bad_sample", self.on_bad_sample, BAD_SAMPLE)
        _integers(self, batch_size=1, max_bad_samples=0, rank=0, world_size=1)
        for name, most in (("readers", MOST_WORKERS), ("prefetch_batches", _MOST_AHEAD)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1, most))


_Options = TypeVar("_Options", ReadOptions, StreamOptions)


def from_arguments(kind: type[_Options], arguments: Mapping[str, Any]) -> _Options:
    """Options of one kind, from the arguments of a constructor that has them all, by name."""
    return kind(**{option.name: arguments[option.name] for option in dataclasses.fields(kind)})


def needed_members(fields: Sequence[str]) -> tuple[str, ...]:
    """Members to read for these fields, in tar order: scales make the frame and mark pieces of zero std."""
    needed = {*fields, "scales"} if "tokens" in fields else fields
    return tuple(dict.fromkeys(member for field, member in MEMBER.items() if field in needed))


def _choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    _check(is_one_of(value, allowed), name, "one of " + ", ".join(map(repr, allowed)), value)


def _integers(options: ReadOptions | StreamOptions, **least: int) -> None:
    """Make ints of the options of these names, each with the least value it may have; None where it may be None."""
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None or name not in _MAY_BE_NONE:
            object.__setattr__(options, name, whole_number(name, value, bound, MOST_COUNT))


def _listed(name: str, values: Any, kind: type | tuple[type, ...], expected: str, *, least: int = 1) -> None:
    """Refuse what is not a list (tuple, ...) of ``least`` or more values of a kind; a text is not a list of letters."""
    right = isinstance(values, Collection) and not isinstance(values, str) and len(values) >= least
    _check(right and all(isinstance(value, kind) for value in values), name, expected, values)


def _check(right: bool, name: str, expected: str, got: Any) -> None:
    require(right, f"option {name}", expected, got)
