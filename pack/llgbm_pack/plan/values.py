"""What the planner hands to the workers: plain values that cross process borders."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llgbm_pack.deltas.manifest import DeltaEntry
from llgbm_pack.plan.assignment import Assignment
from llgbm_shards.canonical import blake3_hex, dump_json
from llgbm_shards.layout import Layout
from llgbm_shards.storage import read_at_most
from llgbm_shards.texts import ConditionSpec

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedSample:
    """One checkpoint as the plan sees it."""

    path: str  # POSIX path relative to the zoo
    key: str  # key of its members
    task: str  # its resolved task
    base_model: str  # as its config names it, "" when unknown
    weights: Path  # the safetensors file; of an overlay the shard of its base that holds it
    config: Path | None  # adapter_config.json, or None
    zoo_task: str  # the task the zoo's own manifest names, which text files may be called after; or ""
    delta: DeltaEntry | None  # its entry in the delta cache, None when it has none (or the set has none)
    matched_by: str  # how that entry was found: ``exact``, ``relative``, ``tail`` or ``name``; "" without one
    text_files: tuple[Path, ...] = ()  # files its texts come from; none when its name is its text

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file it is made of."""
        joined = (self.config, self.delta.file if self.delta else None)
        return (self.weights, *self.text_files, *(path for path in joined if path is not None))


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """One shard to pack."""

    name: str  # its file name
    split: str  # ``train`` or ``val``
    samples: tuple[PlannedSample, ...]  # what goes into it, in order
    context: str = ""  # digest of the context it is packed in, so that a change there is a change of the job

    def digest(self) -> str:
        """Digest of everything the plan decided for this shard; another decision means packing it again."""
        return blake3_hex(dump_json(_plain(asdict(self))))


@dataclass(frozen=True, kw_only=True, slots=True)
class PackContext:
    """What all jobs of a build share."""

    zoo: Path  # root of the zoo
    out: Path  # directory the shards go to
    layout: Layout  # layout of the set
    members: tuple[str, ...]  # member fields of every sample, in member order
    cast: bool  # sources are cast to the layout's dtype first
    alpha: float | None  # lora_alpha of checkpoints without a config
    texts: Path | None  # directory of text files by dataset, or None
    max_texts: int | None  # texts kept of a checkpoint; None keeps all
    seed: int  # seeds the choice of texts
    conditions: ConditionSpec | None  # how texts are tokenized; None packs no text ids
    delta_width: int  # hidden width of the deltas, 0 when the set has none
    parity: int = 0  # groups of samples that a shard's parity has; 0 makes none
    base: str = ""  # of an overlay: digest of its base, which lies where ``zoo`` says

    def digest(self) -> str:
        """Digest of what shapes the bytes of every shard; where zoo and output lie does not."""
        places = ("zoo", "out", "texts")
        kept = {key: value for key, value in asdict(self).items() if key not in places}
        return blake3_hex(dump_json(_plain(kept)))


@dataclass(frozen=True, kw_only=True, slots=True)
class SetPart:
    """Shards of a finished set that are to be packed again: what the set has decided is not decided anew."""

    layout: Layout  # layout of the set
    conditions: ConditionSpec | None  # how its texts are tokenized; None without text ids
    delta_width: int  # hidden width of its deltas, 0 when it has none
    shards: tuple[Assignment, ...]  # the shards, each with its checkpoints in order
    with_delta: frozenset[str]  # those of these checkpoints that have a delta
    known: tuple[str, ...]  # all checkpoints that the build packed or skipped: each claimed its own delta
    knows_skipped: bool  # whether the skipped ones are among them; the set's list of them may be lost

    @property
    def paths(self) -> frozenset[str]:
        """Checkpoints of the shards."""
        return frozenset(path for shard in self.shards for path in shard.paths)


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """State of an input when it was packed, so that a resumed build notices an edit."""

    path: str  # where it lies
    size: int  # bytes; -1 when there was no such file
    mtime_ns: int  # modification time in ns; -1 without a file
    digest: str  # BLAKE3-256, hex; "" when it was not read whole

    @classmethod
    def unread(cls, path: Path) -> InputFile:
        """The state of a file of a checkpoint that was skipped: mended, it is worth another try."""
        try:
            status = path.stat()
        except OSError:
            return cls(path=str(path), size=-1, mtime_ns=-1, digest="")
        return cls(path=str(path), size=status.st_size, mtime_ns=status.st_mtime_ns, digest="")

    def holds(self) -> bool:
        """Whether the file is still the one that was packed: same size and mtime, or else same digest."""
        path = Path(self.path)
        try:
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns):
                return True
            return status.st_size == self.size and blake3_hex(read_at_most(path, self.size)) == self.digest
        except (OSError, ValueError):  # ValueError: a NUL in the path; no such file can be.
            return self.size < 0


@dataclass(frozen=True, slots=True)
class Skip:
    """A checkpoint that is not packed. ``fault`` is False when a policy asked for it."""

    checkpoint: str
    reason: str
    fault: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """Something worth a line in the report that did not stop a checkpoint from being packed."""

    checkpoint: str
    what: str


def from_row(kind: type[T], row: dict[str, Any]) -> T:
    """A flat dataclass from its JSON row.

    Raises:
        KeyError: A field is missing.
        TypeError: The row is none, or a field is of another type.
    """
    for field in fields(kind):
        # A field's type is the text of its annotation, for no annotation is evaluated here.
        if type(row[field.name]).__name__ != field.type:
            raise TypeError(f"{field.name} is not of type {field.type}")
    return kind(**{field.name: row[field.name] for field in fields(kind)})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
