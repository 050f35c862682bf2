"""Walking a zoo: every layout people keep adapters in, in natural order, without opening what may not be opened."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from llgbm_pack.sources.directory import WEIGHTS, Candidate, Rejected, adapters_of
from llgbm_shards.errors import StorageError, UsageError
from llgbm_shards.storage import opened_file, read_range

__all__ = ["Candidate", "Rejected", "ZooListing", "natural_key", "walk_zoo"]

_TRAINER: Final = re.compile(r"checkpoint-([0-9]+)")
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ZooListing:
    """What a walk found, each list in natural order of the paths."""

    checkpoints: tuple[Candidate, ...]  # what can be opened as a checkpoint
    rejected: tuple[Rejected, ...]  # what looks like one and is not packed, with the reason
    excluded: int  # count of checkpoints and rejections that include and exclude patterns left out
    # Paths of directories that were not entered: hidden ones, ``tmp-*``. A hub cache's own ones, which hold
    # nothing but what its snapshots link to, are not listed.
    ignored: tuple[str, ...]

    @property
    def nameable(self) -> list[str]:
        """Paths that a manifest's entry may mean: all checkpoints, those too that cannot be opened."""
        return [
            *(one.path for one in self.checkpoints),
            *(one.path for one in self.rejected if one.fault),
        ]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    is_link: bool
    is_folder: bool


@dataclass(slots=True)
class _Found:
    checkpoints: list[Candidate] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def walk_zoo(
    root: Path, include: Sequence[str] = (), exclude: Sequence[str] = (), *, wanted: Collection[str] = ()
) -> ZooListing:
    """Lists the checkpoints of a zoo. No file is opened, but for a Trainer's last checkpoint (see below).

    Links to directories are not followed. Where a Trainer's run holds the same adapter in its root and in its
    last ``checkpoint-N`` (weights and config equal, byte by byte), the root is kept.

    Args:
        root: The zoo.
        include: Globs (``*`` also matches ``/``) on the relative path; none includes everything.
        exclude: Globs on the relative path of what to leave out.
        wanted: Paths of a Trainer's checkpoints that are kept beside an equal root.

    Raises:
        UsageError: ``root`` is not a directory.
        StorageError: ``root`` cannot be read.
    """
    if not root.is_dir():
        got = "another kind of file" if root.exists() else "nothing"
        raise UsageError(
            "the zoo is not a directory", where=str(root), got=got, do="Give the directory of adapters."
        )
    walked = _walk(Path(os.path.realpath(root)))
    chosen = [one for one in walked.checkpoints if _chosen(one.path, include, exclude)]
    rejected = [one for one in walked.rejected if _chosen(one.path, include, exclude)]
    excluded = len(walked.checkpoints) + len(walked.rejected) - len(chosen) - len(rejected)
    chosen.sort(key=lambda one: (natural_key(one.path), one.weights.name != WEIGHTS))
    repeats = [*_same_paths(chosen), *_same_as_root(chosen, wanted)]
    dropped = {id(candidate) for candidate, _ in repeats}
    rejected.extend(rejection for _, rejection in repeats)
    return ZooListing(
        checkpoints=tuple(one for one in chosen if id(one) not in dropped),
        rejected=tuple(sorted(rejected, key=lambda one: (natural_key(one.path), one.reason))),
        excluded=excluded,
        ignored=tuple(sorted(walked.ignored, key=natural_key)),
    )


def natural_key(path: str) -> tuple[object, ...]:
    """Sorts numbers in names of a POSIX path by value (``checkpoint-9`` before ``checkpoint-10``)."""
    parts = []
    for name in path.split("/"):
        pieces = re.split(r"([0-9]+)", name)
        parts.append(tuple(int(piece) if index % 2 else piece for index, piece in enumerate(pieces)))
    return (tuple(parts), path)


def _walk(root: Path) -> _Found:
    found = _Found()
    waiting = [(root, ".")]
    while waiting:  # not recursive: a tree may be deeper than Python's stack
        directory, path = waiting.pop()
        try:
            entries = _list(directory)
        except OSError as error:
            if path == ".":
                raise StorageError(
                    "the zoo cannot be read", where=str(root), got=str(error.strerror)
                ) from error
            found.rejected.append(Rejected(path, f"directory cannot be read: {error.strerror}", True))
            continue
        waiting.extend(_enter(entries, directory, path, found, root))
        names = {entry.name for entry in entries if not entry.is_folder and _is_text(entry.name)}
        for one in adapters_of(directory, path, names, root):
            _add(one, found)
    return found


def _list(directory: Path) -> list[_Entry]:
    with os.scandir(directory) as listing:
        return [_Entry(one.name, one.is_symlink(), one.is_dir(follow_symlinks=False)) for one in listing]


def _add(one: Candidate | Rejected, found: _Found) -> None:
    if isinstance(one, Candidate):
        found.checkpoints.append(one)
    else:
        found.rejected.append(one)


def _enter(
    entries: Iterable[_Entry], directory: Path, path: str, found: _Found, root: Path
) -> Iterator[tuple[Path, str]]:
    """The sub-directories to walk; what is left out is noted."""
    in_hub_repository = directory.name.startswith("models--")
    for entry in entries:
        below = entry.name if path == "." else f"{path}/{entry.name}"
        hidden = entry.name.startswith((".", "tmp-"))
        if not _is_text(entry.name):
            if entry.is_folder or entry.name.endswith(".safetensors"):
                shown = os.fsencode(below).decode("utf-8", "backslashreplace")
                found.rejected.append(Rejected(shown, "its name is not UTF-8", True))
        elif entry.is_link and not hidden:
            _note_link(directory / entry.name, below, found, root)
        elif entry.is_folder and hidden:
            found.ignored.append(below)
        elif entry.is_folder and not (in_hub_repository and entry.name in {"blobs", "refs"}):
            yield directory / entry.name, below


def _note_link(link: Path, below: str, found: _Found, root: Path) -> None:
    """Notes a link to a directory. Links to files are judged with the files."""
    target = Path(os.path.realpath(link))
    if not target.is_dir():
        return
    inside = target.is_relative_to(root)
    reason = "a link to a directory of the zoo, which is walked itself" if inside else "a link out of the zoo"
    found.rejected.append(Rejected(below, reason, not inside))


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8; others reach Python with surrogates and could not be written to any index."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _chosen(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    included = not include or any(fnmatchcase(path, glob) for glob in include)
    return included and not any(fnmatchcase(path, glob) for glob in exclude)


def _same_paths(candidates: Iterable[Candidate]) -> Iterator[tuple[Candidate, Rejected]]:
    """``3.safetensors`` beside a folder ``3`` that holds an adapter: the paths would be one."""
    seen: dict[str, Candidate] = {}
    for one in candidates:
        first = seen.setdefault(one.path, one)
        if first is not one:
            place = f"{one.weights.name} has the same path as the folder {first.weights.parent.name!r}"
            yield one, Rejected(one.path, f"{place}; rename one", True)


def _same_as_root(
    candidates: Iterable[Candidate], wanted: Collection[str]
) -> Iterator[tuple[Candidate, Rejected]]:
    """The last ``checkpoint-N`` of each run that equals the adapter in the run's root, if it is not wanted."""
    by_folder = {one.weights.parent: one for one in candidates if one.weights.name == WEIGHTS}
    last: dict[Path, tuple[int, Candidate]] = {}
    for folder, one in by_folder.items():
        number = _TRAINER.fullmatch(folder.name)
        if number and folder.parent in by_folder and int(number[1]) >= last.get(folder.parent, (0, one))[0]:
            last[folder.parent] = (int(number[1]), one)
    for run, (_, one) in last.items():
        kept = by_folder[run]
        if one.path not in wanted and _equal(kept, one):
            yield one, Rejected(one.path, f"the same adapter as {kept.path}, which is kept", False)


def _equal(one: Candidate, other: Candidate) -> bool:
    if (one.config is None) != (other.config is None):
        return False
    pairs = [(one.weights, other.weights)]
    if one.config is not None and other.config is not None:
        pairs.insert(0, (one.config, other.config))  # the small one first
    try:
        return all(_equal_files(left, right) for left, right in pairs)
    except OSError:
        return False  # whatever is wrong is reported when the checkpoint is read


def _equal_files(left: Path, right: Path) -> bool:
    a, b = left.stat(), right.stat()
    if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino):
        return True
    if a.st_size != b.st_size:
        return False
    with opened_file(left) as first, opened_file(right) as second:
        ranges = ((offset, _BLOCK) for offset in range(0, a.st_size, _BLOCK))
        return all(read_range(first, *part) == read_range(second, *part) for part in ranges)
