"""PackOptions: everything a build can be asked for, checked when it is made."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llgbm_shards.credentials import without_credentials
from llgbm_shards.errors import UsageError
from llgbm_shards.layout import TOKEN_ORDERS

FORMS: Final = ("prompt", "answer", "prompt_answer")
MISSING_DELTA: Final = ("error", "skip", "zeros")
DTYPES: Final = ("auto", "bfloat16", "float16", "float32")
SPLIT_BY: Final = ("task", "checkpoint")


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
        workers: Worker processes; None means one a core this process may use.
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
            _set(self, name, _path(name, getattr(self, name)))
        for name in ("forms", "include", "exclude"):
            _set(self, name, _strings(name, getattr(self, name)))
        _set(self, "maps", _pairs(self.maps))
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
        for name in ("rank", "chunk", "max_texts", "limit", "shard_bytes", "workers"):
            value = getattr(self, name)
            if (value is not None or name == "shard_bytes") and not (_is_count(value) and value > 0):
                raise UsageError("must be at least 1", where=name, expected="a whole number", got=repr(value))
        if self.alpha is not None and not (_is_number(self.alpha) and 0 < self.alpha < math.inf):
            raise UsageError("must be a positive number", where="alpha", got=repr(self.alpha))
        if not (_is_count(self.seed) and -(2**63) <= self.seed < 2**63):
            raise UsageError("must fit 64 bits", where="seed", expected="a whole number", got=repr(self.seed))
        if not (_is_number(self.split) and 0 <= self.split < 1):
            raise UsageError(
                "must be a fraction", where="split", expected="0 <= val < 1", got=repr(self.split)
            )
        _separate(self.zoo, self.out)

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


def _path(name: str, value: object) -> Path | None:
    if value is None and name not in ("zoo", "out"):
        return None
    if not isinstance(value, str | os.PathLike):
        raise UsageError("not a path", where=name, got=repr(value))
    path = Path(value)
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise UsageError(
            "the path is not UTF-8", where=name, got=shown, do="Rename the directory, or link to it."
        ) from error
    return path


def _strings(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UsageError("not a sequence of strings", where=name, expected="a tuple", got=repr(value))
    strings = tuple(value)
    if not all(isinstance(item, str) for item in strings):
        raise UsageError("not a sequence of strings", where=name, got=repr(strings))
    return strings


def _pairs(value: object) -> tuple[tuple[str, str], ...]:
    rows = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    pairs = [_strings("maps", row) for row in rows]
    if not all(len(pair) == 2 and pair[0] for pair in pairs):
        raise UsageError("not pairs", where="maps", expected="(old, new) prefixes", got=repr(value))
    return tuple((old, new) for old, new in pairs)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_count(value) or isinstance(value, float)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:  # also what is no string at all
        raise UsageError("unknown value", where=name, expected=", ".join(allowed), got=repr(value))


def _last(path: Path | str | None) -> str:
    if path is None:
        return ""
    name = Path(path).resolve().name if Path(path).exists() else Path(without_credentials(str(path))).name
    return name.encode(errors="backslashreplace").decode()


def _separate(zoo: Path, out: Path) -> None:
    """A set inside the zoo would be walked as part of it; a zoo inside the set would be swapped away."""
    inside, outside = out.resolve(), zoo.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise UsageError(
            "zoo and output overlap",
            where=str(out),
            expected="a directory outside the zoo",
            do="Choose another OUT.",
        )
