"""What hostile files are made of, and the look that tells whether anything was changed."""

from __future__ import annotations

from pathlib import Path


def npy(text: bytes, data: bytes = b"", version: int = 1) -> bytes:
    """A file with this header, whatever it says."""
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def hole(path: Path, size: int = 1 << 40) -> None:
    """A file of a TiB that takes no room: reading it would end no test."""
    with path.open("wb") as file:
        file.truncate(size)


def seen(directory: Path, *, without: str = "") -> list[tuple[str, int, int, int]]:
    """Everything there with its state, and nothing opened; nothing of the entry ``without``."""
    entries = [
        path for path in sorted(directory.rglob("*")) if directory / without not in (path, *path.parents)
    ]
    return [
        (str(path), status.st_size, status.st_mtime_ns, status.st_mode)
        for path in entries
        for status in [path.lstat()]
    ]
