"""The directory an export fills: nobody else's files, no links, and a note of what is being exported until it is done."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from blake3 import blake3

from llgbm_pack.packing.lock import builder_lock, remove_lock
from llgbm_shards.errors import LockedError, UsageError
from llgbm_shards.names import TEMPORARY
from llgbm_shards.storage import (
    Buffer,
    fsync_directory,
    make_directory,
    new_file,
    opened_file,
    read_file,
    read_range,
    refuse_link,
    storage_errors,
    write_all,
    write_file,
)

#: Directory that an unfinished export has: its lock, and the note of what it exports.
EXPORT_DIRECTORY: Final = ".export"
_NOTE: Final = "export.json"
_MAX_NOTE_BYTES: Final = 64 << 20
_READ_AT_ONCE: Final = 1 << 20
#: Bytes after which the disk is told to begin writing.
_WRITTEN_AT_ONCE: Final = 8 << 20


class Destination:
    """The directory while an export fills it, or, where an export was finished, while it is compared with that one.

    Attributes:
        root: The directory.
        finished: Whether an earlier export was finished here: then nothing is written.
        written: Files written.
        standing: Files that stood there, with the right bytes.
    """

    def __init__(self, root: Path, *, finished: bool) -> None:
        self.root = root
        self.finished = finished
        self.written: list[str] = []
        self.standing: list[str] = []
        self._entered = {PurePosixPath(".")}
        self._lock = threading.Lock()

    def enter(self, path: str) -> None:
        """Make the folder of a file, durably; a link in its place is refused."""
        with self._lock:
            for folder in reversed(PurePosixPath(path).parents):
                if folder not in self._entered and not self.finished:
                    self._make(self.root / folder)
                    self._entered.add(folder)

    def _make(self, folder: Path) -> None:
        with storage_errors(folder):
            refuse_link(folder)
            if not folder.is_dir():
                folder.mkdir()
                fsync_directory(folder.parent)

    def stands(self, path: str, size: int, digest: str) -> bool:
        """Whether a file is there and has these bytes.

        Raises:
            UsageError: It has not, where an export was finished: then it is somebody's.
        """
        right = self._digest(path, size) == digest
        if right:
            self.standing.append(path)
        elif self.finished:
            raise UsageError(
                "not what this export gives, in a finished export or another zoo",
                where=str(self.root / path),
                expected=f"{size} bytes, digest {digest}",
                got="another file" if (self.root / path).exists() else "no file",
                do="Choose another DEST, or remove what is there.",
            )
        return right

    def put(self, path: str, parts: Sequence[Buffer]) -> None:
        """Write a file durably, unless it stands there already."""
        digest = blake3()
        for part in parts:
            digest.update(part)
        size = sum(len(memoryview(part).cast("B")) for part in parts)
        if not self.stands(path, size, digest.hexdigest()):
            self.write(path, parts, size)

    def write(self, path: str, parts: Sequence[Buffer], size: int) -> None:
        """Write a file durably in place of what is there."""
        place = self.root / path
        with storage_errors(place, needed=size), new_file(place) as fd:
            start = 0
            for part in parts:
                view = memoryview(part).cast("B")
                for first in range(0, len(view), _WRITTEN_AT_ONCE):
                    count = write_all(fd, [view[first : first + _WRITTEN_AT_ONCE]])
                    # Starts writing back now, so that the disk works while the next bytes are copied.
                    os.posix_fadvise(fd, start, count, os.POSIX_FADV_DONTNEED)
                    start += count
        self.written.append(path)

    def _digest(self, path: str, size: int) -> str:
        """The digest of a regular file of this size; "" for others."""
        place = self.root / path
        with storage_errors(place):
            try:
                status = place.lstat()
            except FileNotFoundError:
                return ""
            if not stat.S_ISREG(status.st_mode) or status.st_size != size:
                return ""
            digest = blake3()
            with opened_file(place) as fd:
                for first in range(0, size, _READ_AT_ONCE):
                    digest.update(read_range(fd, first, min(_READ_AT_ONCE, size - first)))
        return digest.hexdigest()


@contextlib.contextmanager
def destination(root: Path, note: bytes, paths: Collection[str]) -> Iterator[Destination]:
    """The directory for a block; when the block ends, the export is finished.

    Args:
        root: The directory: absent, empty, or of an earlier export of the same.
        note: What is exported; an unfinished export of something else is refused.
        paths: All files the export may write.

    Raises:
        UsageError: Files are there that this export does not write, or links, or another export.
        LockedError: Another process exports to it.
    """
    own = root / EXPORT_DIRECTORY
    with storage_errors(root):
        if not own.is_dir() and _listed(root, paths, begun=False):
            finished = Destination(root, finished=True)
        else:
            finished = None
            make_directory(own)
    if finished:
        yield finished
        return
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(builder_lock(own))
        except LockedError as error:
            do = f"Wait for it to end; if that host is gone for good, delete {own}/lock."
            raise error.as_(LockedError, "another process exports to it", do=do) from error
        with storage_errors(root):
            place = _begun(root, note, paths)
            yield place
            (own / _NOTE).unlink(missing_ok=True)
            fsync_directory(own)
            remove_lock(own)
            fsync_directory(root)


def _begun(root: Path, note: bytes, paths: Collection[str]) -> Destination:
    """The directory, with the note in it; leftovers of a killed export removed. The caller holds the lock."""
    path = root / EXPORT_DIRECTORY / _NOTE
    noted = path.exists()
    if noted and read_file(path, max_bytes=_MAX_NOTE_BYTES) != note:
        raise UsageError(
            "an unfinished export of something else is here",
            where=str(root),
            do="Run the command it was begun with, or choose another DEST.",
        )
    if _listed(root, paths, begun=noted) and not noted:  # An export died in its last step.
        return Destination(root, finished=True)
    for leftover in root.rglob(f"{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)
    if not noted:
        write_file(path, note)
    return Destination(root, finished=False)


def _listed(root: Path, paths: Collection[str], *, begun: bool) -> list[Path]:
    """All files below a directory that an export of these paths may have written; where one has begun, temporary ones aside.

    Raises:
        UsageError: There are others.
    """
    if not root.is_dir():
        if root.exists() or root.is_symlink():
            raise UsageError("the destination is not a directory", where=str(root), do="Choose another DEST.")
        return []
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        place = Path(folder)
        if place == root and EXPORT_DIRECTORY in folders:
            folders.remove(EXPORT_DIRECTORY)
        for name in (*names, *folders):
            path = (place / name).relative_to(root).as_posix()
            link, known = (place / name).is_symlink(), path in paths or (begun and name.startswith(TEMPORARY))
            if link or (name in names and not known):
                raise _foreign(root, f"{path}, a link" if link else path)
        found += [place / name for name in names if not name.startswith(TEMPORARY)]
    return found


def _foreign(root: Path, got: str) -> UsageError:
    return UsageError(
        "the destination holds files that this export does not write",
        where=str(root),
        expected="a new or empty directory, or an earlier export of the same",
        got=got[:200],
        do="Choose another DEST.",
    )
