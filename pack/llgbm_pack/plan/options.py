"""PackOptions: everything a build can be asked for, checked when it is made."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llgbm_pack.tokenize.module_table import MOST_SIZE
from llgbm_shards.arguments import (
    MOST_COUNT,
    MOST_WORKERS,
    as_index,
    is_number,
    is_one_of,
    is_text,
    local_path,
    require,
    shown,
)
from llgbm_shards.errors import UsageError
from llgbm_shards.layout import TOKEN_ORDERS
from llgbm_shards.public import without_credentials

FORMS: Final = ("prompt", "answer", "prompt_answer")
MISSING_DELTA: Final = ("error", "skip", "zeros")
DTYPES: Final = ("auto", "bfloat16", "float16", "float32")
SPLIT_BY: Final = ("task", "checkpoint")
#: The largest value of each count.
_MOST: Final = {
    "rank": MOST_SIZE,
    "chunk": MOST_SIZE,
    "max_texts": MOST_COUNT,
    "limit": MOST_COUNT,
    "shard_bytes": MOST_COUNT,
    "workers": MOST_WORKERS,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PackOptions:
    """Options of a build; the names are those of ``llgbm-pack build``.

    Paths may be given as strings, tuples as any sequence; what cannot be is a UsageError.

    Attributes:
        zoo: Tree of teacher checkpoints.
        out: Directory the shard set goes to.
        deltas: Delta cache; None packs no deltas.
        texts: Directory of text files by dataset, for zoos that keep texts apart.
        text_tokenizer: Name or directory of a transformers tokenizer; None packs no text ids.
        forms: Conditions to tokenize: ``prompt``, ``answer``, ``prompt_answer``.
        joiner: Between prompt and answer in ``prompt_answer``.
        missing_delta: What to do with a checkpoint that has no delta.
        maps: Prefix rewrites (old, new) for paths in the delta manifest.
        token_order: Order of modules, ``sorted`` or ``dnd``.
        dtype: ``auto`` (what most of the zoo has) or a dtype to cast every source to.
        rank: Rows of a piece; checkpoints of lower rank are padded. None: the rank most of the zoo has.
        chunk: Columns of a piece; None: the greatest common divisor of the module widths.
        alpha: lora_alpha of checkpoints that come without a config.
        max_texts: Texts kept of each checkpoint; None keeps all.
        split: Fraction that goes to ``val``; 0 makes no split.
        split_by: What is kept together: ``task`` or single ``checkpoint``.
        include: Globs on the path relative to the zoo; empty means all.
        exclude: Globs that leave checkpoints out.
        limit: Only the first N checkpoints in path order.
        shard_bytes: Target size of a shard, in bytes of bodies.
        seed: Seeds order, split and choices.
        workers: Worker processes, at most 1,024, which no machine has cores for; None means one a core this process
            may use.
        strict: Commit nothing if anything is skipped or warned about.
        overwrite: Replace a finished set; it stays until the new one is complete.
    """

    zoo: Path
    out: Path
    deltas: Path | None = None
    texts: Path | None = None
    text_tokenizer: str | None = None
    forms: tuple[str, ...] = ("prompt",)
    joiner: str = "\n"
    missing_delta: str = "error"
    maps: tuple[tuple[str, str], ...] = ()
    token_order: str = "sorted"
    dtype: str = "auto"
    rank: int | None = None
    chunk: int | None = None
    alpha: float | None = None
    max_texts: int | None = 1024
    split: float = 0.0
    split_by: str = "task"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None
    shard_bytes: int = 1 << 30
    seed: int = 0
    workers: int | None = None
    strict: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("zoo", "out", "deltas", "texts"):
            _set(self, name, path_option(name, getattr(self, name), optional=name not in ("zoo", "out")))
        _set(self, "text_tokenizer", tokenizer_option(self.text_tokenizer))
        for name in ("forms", "include", "exclude"):
            _set(self, name, _strings(name, getattr(self, name)))
        _set(self, "maps", pairs_option(self.maps))
        require(is_text(self.joiner), "joiner", "text", self.joiner)
        for name in ("strict", "overwrite"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, "True or False", value)
        _one_of("missing_delta", self.missing_delta, MISSING_DELTA)
        _one_of("token_order", self.token_order, TOKEN_ORDERS)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("split_by", self.split_by, SPLIT_BY)
        for form in self.forms:
            _one_of("forms", form, FORMS)
        if not self.forms or len(set(self.forms)) != len(self.forms):
            raise UsageError(
                "each form once, at least one", where="forms", got=", ".join(self.forms) or "none"
            )
        self._check_numbers()
        _separate(self.zoo, self.out)

    def _check_numbers(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None or name == "shard_bytes":
                _set(self, name, _count(name, value, most))
        if self.alpha is not None and not (is_number(self.alpha) and self.alpha > 0):
            raise UsageError("must be a positive number", where="alpha", got=shown(self.alpha))
        seed = as_index(self.seed)
        if seed is None or not -(2**63) <= seed < 2**63:
            raise UsageError(
                "must fit 64 bits", where="seed", expected="a whole number", got=shown(self.seed)
            )
        _set(self, "seed", seed)
        if not (is_number(self.split) and 0 <= self.split < 1):
            raise UsageError(
                "must be a fraction", where="split", expected="0 <= val < 1", got=shown(self.split)
            )

    @property
    def worker_count(self) -> int:
        """Worker processes to use: cgroup and Slurm limits show in the affinity mask, not in the CPU count."""
        return self.workers or len(os.sched_getaffinity(0))

    def content(self) -> dict[str, Any]:
        """The options that shape the bytes of the set, as recorded in it; paths keep their last component only."""
        return {
            "zoo": _last(self.zoo),
            "deltas": _last(self.deltas),
            "texts": _last(self.texts),
            "text_tokenizer": _last(self.text_tokenizer),
            "forms": list(self.forms),
            "joiner": self.joiner,
            "missing_delta": self.missing_delta,
            "token_order": self.token_order,
            "dtype": self.dtype,
            "rank": self.rank or 0,
            "chunk": self.chunk or 0,
            "alpha": float(self.alpha or 0),
            "max_texts": self.max_texts or 0,
            "split": float(self.split),
            "split_by": self.split_by,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "limit": self.limit or 0,
            "shard_bytes": self.shard_bytes,
            "seed": self.seed,
        }


def _set(options: PackOptions, name: str, value: object) -> None:
    object.__setattr__(options, name, value)  # frozen for everybody else


def path_option(name: str, value: object, *, optional: bool) -> Path | None:
    """A path that a set can record.

    Raises:
        UsageError: It is none, or not UTF-8.
    """
    if value is None and optional:
        return None
    path = local_path(name, value)
    if not is_text(str(path)):
        shown_bytes = os.fsencode(path).decode("utf-8", "backslashreplace")
        do = "Rename the directory, or link to it."
        raise UsageError("the path is not UTF-8", where=name, got=shown_bytes, do=do)
    return path


def tokenizer_option(value: object) -> str | None:
    """The name or directory of a text tokenizer.

    Raises:
        UsageError: It is none.
    """
    if value is None:
        return None
    local_path("text_tokenizer", value)
    require(value != "", "text_tokenizer", "a name or a directory", value)
    return str(value)


def _strings(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise UsageError("not a sequence of strings", where=name, expected="a tuple", got=shown(value))
    strings = tuple(value)
    if not all(map(is_text, strings)):
        raise UsageError(
            "not a sequence of strings", where=name, expected="UTF-8 text each", got=shown(strings)
        )
    return strings


def pairs_option(value: object) -> tuple[tuple[str, str], ...]:
    """Pairs of prefixes, (old, new).

    Raises:
        UsageError: They are none, or an old one is empty.
    """
    rows = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    pairs = [_strings("maps", row) for row in rows]
    if not all(len(pair) == 2 and pair[0] for pair in pairs):
        raise UsageError("not pairs", where="maps", expected="(old, new) prefixes", got=shown(value))
    return tuple((old, new) for old, new in pairs)


def _count(name: str, value: object, most: int) -> int:
    number = as_index(value)
    if number is None or number < 1:
        raise UsageError("must be at least 1", where=name, expected="a whole number", got=shown(value))
    require(number <= most, name, f"at most {most}", value)
    return number


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if not is_one_of(value, allowed):
        raise UsageError("unknown value", where=name, expected=", ".join(allowed), got=shown(value))


def _last(path: Path | str | None) -> str:
    if path is None:
        return ""
    name = (
        Path(os.path.realpath(path)).name
        if Path(path).exists()
        else Path(without_credentials(str(path))).name
    )
    return name.encode(errors="backslashreplace").decode()


def _separate(zoo: Path, out: Path) -> None:
    """A set inside the zoo would be walked as part of it; a zoo inside the set would be swapped away."""
    inside, outside = Path(os.path.realpath(out)), Path(os.path.realpath(zoo))
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise UsageError(
            "zoo and output overlap",
            where=str(out),
            expected="a directory outside the zoo",
            do="Choose another OUT.",
        )
