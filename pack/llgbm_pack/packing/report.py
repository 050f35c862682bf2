"""PackReport: what a build did, as a value; rendering is in ``render.py``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llgbm_pack.plan.values import Note, Skip


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """Result of a build.

    Attributes:
        out: The set, as the user named it.
        committed: Whether the set was committed (``--strict`` can forbid it).
        digest: Digest of ``shardset.json``, to be pinned; "" when not committed.
        found: Checkpoints found in the zoo.
        excluded: Left out by --include, --exclude and --limit.
        ignored: Directories of the zoo that were not entered: hidden ones, ``tmp-*``.
        packed: Samples in the set.
        splits: Of these, the samples of each split.
        resumed: Of these, samples of shards that an earlier run had finished.
        skipped: Checkpoints not packed, each with its reason.
        notes: Warnings.
        shards: Shards of the set.
        set_bytes: Bytes of all shards.
        source_bytes: Bytes of weights read in this run.
        num_tokens: Tokens of each sample.
        matched_by: Samples by how their delta was found.
        text_sources: Checkpoints by where their texts come from.
        fallbacks: Texts whose prompt stood in for a missing answer.
        duplicates: Groups of checkpoints whose weights files are equal.
        seconds: Wall time of the whole build: imports, plan, packing, commit.
        packing_seconds: Wall time of packing alone, the start of the workers included; the rate is over this.
    """

    out: str
    committed: bool
    digest: str
    found: int
    excluded: int
    ignored: tuple[str, ...]
    packed: int
    splits: dict[str, int]
    resumed: int
    skipped: tuple[Skip, ...]
    notes: tuple[Note, ...]
    shards: int
    set_bytes: int
    source_bytes: int
    num_tokens: int
    matched_by: dict[str, int]
    text_sources: dict[str, int]
    fallbacks: int
    duplicates: tuple[tuple[str, ...], ...]
    seconds: float
    packing_seconds: float

    @property
    def exit_code(self) -> int:
        """0: all packed, or skipped only what a policy asked to skip; 1: a checkpoint was skipped for a fault."""
        return int(not self.committed or any(skip.fault for skip in self.skipped))

    def to_json(self) -> dict[str, Any]:
        """The report as ``--format json`` prints it."""
        return asdict(self)
