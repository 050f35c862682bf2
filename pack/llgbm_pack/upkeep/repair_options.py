"""What a repair is asked for, and the build options that the set records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llgbm_pack.plan.options import PackOptions, pairs_option, path_option, tokenizer_option
from llgbm_shards.errors import UsageError
from llgbm_shards.names import TOKENIZER_DIRECTORY
from llgbm_shards.record import CommitRecord, checked_digest


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairOptions:
    """Options of a repair; the names are those of ``llgbm-pack repair``. What cannot be is a UsageError.

    Attributes:
        out: The set.
        zoo: The zoo it was packed from; it may lie elsewhere now.
        deltas: The delta cache it was packed with.
        texts: The directory of text files it was packed with.
        text_tokenizer: The tokenizer it was packed with; needed only when its files in the set are damaged.
        maps: The prefix rewrites it was packed with; they are not recorded, since they hold absolute paths.
        expect_digest: Digest that ``shardset.json`` must have; proves a lost one.
    """

    out: Path
    zoo: Path
    deltas: Path | None = None
    texts: Path | None = None
    text_tokenizer: str | None = None
    maps: tuple[tuple[str, str], ...] = ()
    expect_digest: str | None = None

    def __post_init__(self) -> None:
        for name in ("out", "zoo", "deltas", "texts"):
            optional = name in ("deltas", "texts")
            object.__setattr__(self, name, path_option(name, getattr(self, name), optional=optional))
        object.__setattr__(self, "text_tokenizer", tokenizer_option(self.text_tokenizer))
        object.__setattr__(self, "maps", pairs_option(self.maps))
        if self.expect_digest is not None:
            object.__setattr__(self, "expect_digest", checked_digest(self.expect_digest))


def pack_options(options: RepairOptions, record: CommitRecord) -> PackOptions:
    """The options of the build that made the set, with the paths given now.

    Raises:
        UsageError: A source the set was packed with was not given, the recorded options are none that a build
            takes, or zoo and set overlap.
    """
    recorded = record.options
    for name, given in (("deltas", options.deltas), ("texts", options.texts)):
        if recorded.get(name) and given is None:
            raise UsageError(
                f"the set was packed with --{name}",
                expected=f"--{name} DIR",
                got=f"none; it was {recorded[name]}",
            )
    try:
        return _pack_options(options, recorded, bool(record.texts["forms"]))
    except (KeyError, TypeError) as error:
        raise UsageError("the set does not record the options of a build", got=repr(error)) from error


def _pack_options(options: RepairOptions, recorded: Mapping[str, Any], has_texts: bool) -> PackOptions:
    return PackOptions(
        zoo=options.zoo,
        out=options.out,
        deltas=options.deltas,
        texts=options.texts,
        text_tokenizer=str(options.out / TOKENIZER_DIRECTORY) if has_texts else None,
        forms=tuple(recorded["forms"]),
        joiner=recorded["joiner"],
        missing_delta=recorded["missing_delta"],
        maps=options.maps,
        token_order=recorded["token_order"],
        dtype=recorded["dtype"],
        rank=recorded["rank"] or None,
        chunk=recorded["chunk"] or None,
        alpha=recorded["alpha"] or None,
        max_texts=recorded["max_texts"] or None,
        split=recorded["split"],
        split_by=recorded["split_by"],
        include=tuple(recorded["include"]),
        exclude=tuple(recorded["exclude"]),
        limit=recorded["limit"] or None,
        shard_bytes=recorded["shard_bytes"],
        seed=recorded["seed"],
    )
