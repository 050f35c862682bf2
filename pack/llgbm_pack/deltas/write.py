"""What a delta cache writes: entries, arrays, and a manifest that never names a file of another delta."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llgbm_pack.deltas.manifest import DIGEST_KEYS, NAMED_MANIFEST, parse_entries
from llgbm_shards.arguments import is_text
from llgbm_shards.errors import UsageError
from llgbm_shards.npy import encode_npy, vector_norm
from llgbm_shards.storage import storage_errors, write_file

_LOCK_FILE: Final = ".lock"


@dataclass(frozen=True, slots=True)
class Draft:
    """A manifest that is being changed, with the files it is about."""

    path: Path
    manifest: dict[str, Any]
    # What each file is to hold; None: it is to go.
    files: dict[Path, NDArray[np.float32] | None] = field(default_factory=dict)

    @property
    def named(self) -> bool:
        """Whether it is of the second form."""
        return self.path.name == NAMED_MANIFEST

    def write(self) -> None:
        """Put it in place of the manifest before.

        Arrays are written before the manifest names their files, and files go when it no longer names them: a crash
        between leaves files nobody names, not names without files.

        Raises:
            UsageError: The manifest could not be read again; nothing was written.
            StorageError: It cannot be written.
        """
        text = encode_manifest(self.manifest, self.path)
        named = {entry.file for entry in parse_entries(self.manifest, self.path)}
        for file, array in self.files.items():
            if array is not None:
                write_file(file, encode_npy(array))
        write_file(self.path, text)
        for file, array in self.files.items():
            if array is None and file not in named:
                with storage_errors(file):
                    file.unlink(missing_ok=True)


def entry_info(
    path: str, array: NDArray[np.float32], *, named: bool, old: Mapping[str, Any], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """An entry without the name of its file: the old fields, except those of the old delta itself, and the new ones."""
    kept = {name: value for name, value in old.items() if name not in ("file", "shape", *DIGEST_KEYS)}
    norm = vector_norm(array)
    if named:
        return {"task": "", **kept, **fields, "adapter_path": path, "delta_norm": norm}
    return {**kept, **fields, "path": path, "norm": norm, "shape": [array.size]}


def encode_manifest(manifest: Mapping[str, Any], path: Path) -> bytes:
    """The bytes of a manifest; a UsageError where a field has no form in JSON."""
    try:
        return json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        got = str(error)[:120]
        raise UsageError(
            "a field that JSON cannot hold", where=str(path), expected="text or finite numbers", got=got
        ) from error


def unicode_path(path: str) -> str:
    """The path; a UsageError for one with bytes that are no UTF-8, or with half a surrogate pair."""
    if not is_text(path):
        raise UsageError(
            "a path that JSON cannot hold",
            where=ascii(path),
            expected="Unicode text",
            got="a lone surrogate",
            do="Rename the checkpoint.",
        )
    return path


def finite_vector(values: NDArray[Any], where: str, dimensions: int = 1) -> NDArray[np.float32]:
    """Finite floats as float32, C-ordered; a UsageError for others."""
    array = np.asarray(values)
    if not 1 <= array.ndim <= dimensions or array.size == 0 or array.dtype.kind != "f":
        got = f"{array.dtype} of shape {array.shape}"
        raise UsageError("not a delta", where=where, expected="(hidden,) floats", got=got)
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(array, "<f4")
    if not np.isfinite(single).all():
        raise UsageError("delta not finite", where=where, expected="finite float32")
    return single


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the cache's lock; the kernel lets it go when the process ends, however it ends."""
    with storage_errors(directory / _LOCK_FILE):
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with storage_errors(directory / _LOCK_FILE):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
