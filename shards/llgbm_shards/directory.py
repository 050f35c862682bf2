"""A directory that stays the one that was opened, wherever its name leads meanwhile."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path

from llgbm_shards.errors import DamageError, StorageError
from llgbm_shards.storage import storage_errors


class Directory:
    """An open directory. It may be moved, and another may take its name: what is opened in it is still its own.

    Pickled, it is opened again by a path that leads to it at that time; what is read there has to be proven.

    Raises:
        StorageError: It cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)  # as it was named, for messages
        with storage_errors(self.path):
            self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.fd)  # closed with the object

    def __reduce__(self) -> tuple[type[Directory], tuple[Path]]:
        moved = Path(f"/proc/self/fd/{self.fd}").readlink()
        # Deleted, it is nowhere: then what has its name must prove itself.
        return Directory, (moved if self._is_at(moved) and not self._is_at(self.path) else self.path,)

    def files_below(self, folder: str) -> Iterator[str]:
        """Names of all that lies under a folder and is none itself; links are not followed. Without one: nothing.

        Raises:
            OSError: It cannot be listed.
        """
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            with os.scandir(fd) as entries:
                kinds = [(f"{folder}/{entry.name}", entry.is_dir(follow_symlinks=False)) for entry in entries]
        finally:
            os.close(fd)
        for name, is_folder in kinds:
            yield from self.files_below(name) if is_folder else [name]

    def holds(self, name: str) -> bool:
        """Whether something here has the name, be it a link that leads nowhere.

        Raises:
            StorageError: There is no telling.
        """
        with storage_errors(Path(name)):
            try:
                os.lstat(name, dir_fd=self.fd)
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    def missing(self, name: str, what: str = "missing") -> DamageError:
        """The error for a file that is not there: gone with the whole set when another one has its place."""
        if self._is_at(self.path) is not False:
            return DamageError(what, shard=name)
        return replaced(name, "the directory that was opened", f"another one at {self.path}")

    def _is_at(self, path: Path) -> bool | None:
        """Whether a path leads here; None when it leads nowhere."""
        try:
            there = path.stat()
        except OSError:
            return None
        return os.path.samestat(there, os.fstat(self.fd))


def require_set_directory(path: Path) -> None:
    """Raises StorageError when there is no directory to look for a set in."""
    with storage_errors(path):
        if not path.is_dir():
            do = "Name the directory that a build wrote."
            raise StorageError("no such directory", where=str(path), do=do)


def replaced(name: str, expected: str, got: str) -> DamageError:
    """The error for a set that is not the one that was opened any more."""
    return DamageError(
        "the set was replaced", shard=name, expected=expected, got=got, do="Open the set again."
    )
