"""PackOptions: everything a build can be asked for, checked when it is made."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from llgbm_pack.plan.option_values import (
    choice_option,
    count_option,
    last_component,
    pairs_option,
    path_option,
    refuse_overlap,
    strings_option,
    tokenizer_option,
)
from llgbm_pack.tokenize.module_table import MOST_SIZE
from llgbm_shards.arguments import MOST_COUNT, MOST_WORKERS, as_index, is_number, is_text, require, shown
from llgbm_shards.errors import UsageError
from llgbm_shards.layout import TOKEN_ORDERS
from llgbm_shards.names import FORMS, MOST_PARITY

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
    "parity": MOST_PARITY,
}
#: Options that are places; a set records their last component only.
_PATHS: Final = ("zoo", "out", "deltas", "texts", "text_tokenizer")
#: Options that shape no byte of a set, or hold absolute paths.
_UNRECORDED: Final = frozenset({"out", "maps", "workers", "strict", "overwrite"})
#: Options that a set records as 0 where they are None.
_RECORDED_AS_0: Final = ("rank", "chunk", "alpha", "max_texts", "limit")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutOptions:
    """What is asked of a layout: four of :class:`PackOptions`."""

    token_order: str = "sorted"
    dtype: str = "auto"
    rank: int | None = None
    chunk: int | None = None


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
        parity: Groups of samples in each shard, of each of which one lost sample can be put back without the zoo;
            costs as many samples' bytes a shard, and their memory a worker. 0: none.
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
    parity: int = 0
    seed: int = 0
    workers: int | None = None
    strict: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("zoo", "out", "deltas", "texts"):
            _set(self, name, path_option(name, getattr(self, name), optional=name not in ("zoo", "out")))
        _set(self, "text_tokenizer", tokenizer_option(self.text_tokenizer))
        for name in ("forms", "include", "exclude"):
            _set(self, name, strings_option(name, getattr(self, name)))
        _set(self, "maps", pairs_option(self.maps))
        require(is_text(self.joiner), "joiner", "text", self.joiner)
        for name in ("strict", "overwrite"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, "True or False", value)
        choice_option("missing_delta", self.missing_delta, MISSING_DELTA)
        choice_option("token_order", self.token_order, TOKEN_ORDERS)
        choice_option("dtype", self.dtype, DTYPES)
        choice_option("split_by", self.split_by, SPLIT_BY)
        for form in self.forms:
            choice_option("forms", form, FORMS)
        if not self.forms or len(set(self.forms)) != len(self.forms):
            raise UsageError(
                "each form once, at least one", where="forms", got=", ".join(self.forms) or "none"
            )
        self._check_numbers()
        refuse_overlap(self.zoo, self.out)

    def _check_numbers(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None or name in ("shard_bytes", "parity"):
                _set(self, name, count_option(name, value, most, least=int(name != "parity")))
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
    def layout(self) -> LayoutOptions:
        """What is asked of the set's layout."""
        return LayoutOptions(token_order=self.token_order, dtype=self.dtype, rank=self.rank, chunk=self.chunk)

    @property
    def worker_count(self) -> int:
        """Worker processes to use: cgroup and Slurm limits show in the affinity mask, not in the CPU count."""
        return self.workers or len(os.sched_getaffinity(0))

    def content(self) -> dict[str, Any]:
        """The options that shape the bytes of the set, as recorded in it; paths keep their last component only."""
        recorded = {field.name: getattr(self, field.name) for field in fields(self)}
        recorded |= {name: list(recorded[name]) for name in ("forms", "include", "exclude")}
        recorded |= {name: last_component(recorded[name]) for name in _PATHS if name != "out"}
        recorded |= {name: recorded[name] or 0 for name in _RECORDED_AS_0}
        recorded |= {name: float(recorded[name]) for name in ("alpha", "split")}
        return {name: value for name, value in recorded.items() if name not in _UNRECORDED}


def _set(options: PackOptions, name: str, value: object) -> None:
    object.__setattr__(options, name, value)  # frozen for everybody else


def recorded_options(recorded: Mapping[str, Any], **given: Any) -> PackOptions:
    """The options of the build that made a set.

    Args:
        recorded: What :meth:`PackOptions.content` gave it.
        given: Paths as they are now, and what else a set does not record.

    Raises:
        UsageError: They are none that a build takes.
    """
    names = {field.name for field in fields(PackOptions)} - _UNRECORDED.union(_PATHS)
    try:
        values = {name: recorded[name] for name in names}
        values |= {name: values[name] or None for name in _RECORDED_AS_0}
        return PackOptions(**values, **given)
    except (KeyError, TypeError) as error:
        raise UsageError("the set does not record the options of a build", got=repr(error)) from error
