"""The two forms in which users keep deltas, read as one list of entries.

* ``manifest.json``: ``{"adapters": {id: {"path", "norm", "shape"}}, "config": {...}}`` with ``<id>.npy`` beside it;
  id is the first 12 hex digits of the md5 of the path string. An entry's ``file`` names another file than
  ``<id>.npy``, while its delta is being replaced.
* ``delta_manifest.json``: ``{"base_activation_file", "adapters": {name: {"adapter_path", "delta_file", "task",
  "delta_norm", "probes_file"?}}}``.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from llgbm_pack.deltas.file import LoadedDelta, load_delta
from llgbm_pack.deltas.provenance import first_text, provenance
from llgbm_shards.canonical import load_json
from llgbm_shards.errors import HeaderError, StorageError, UsageError
from llgbm_shards.storage import read_at_most, read_errors

#: File names of the two forms.
MANIFEST: Final = "manifest.json"
NAMED_MANIFEST: Final = "delta_manifest.json"
#: Where the base activation is, unless the manifest says otherwise.
BASE_FILE: Final = "base_activation.npy"
#: Largest manifest read, in bytes: about a million adapters.
MAX_MANIFEST_BYTES: Final = 512 << 20
#: A whole number in JSON may be beyond it, and then be no float.
_LARGEST: Final = sys.float_info.max
#: What a digest of the measured adapter is called.
DIGEST_KEYS: Final = ("source_digest", "adapter_digest", "digest")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeltaEntry:
    """One adapter of a delta cache; its array is read by :meth:`load` only."""

    key: str  # key in the manifest: an id, or the adapter's name in the second form
    name: str  # the adapter's name; empty in the first form, whose ids name nothing
    path: str  # the adapter's path as the cache recorded it
    file: Path  # file of the delta
    norm: float | None = None  # the norm the manifest gives, if it does
    width: int | None = None  # the width the manifest gives, if it does
    probes_file: Path | None = None  # file of the probe texts, if the manifest names one
    source_digest: str = ""  # digest of the adapter the delta was measured on, or empty
    base_model: str = ""  # base model of the measurement, or empty
    probes: str = ""  # its probes, or empty
    layer: str = ""  # its layer, or empty
    dtype: str = ""  # its dtype, or empty
    task: str = ""  # the task the cache names, or empty

    def __str__(self) -> str:
        return f"{self.key} ({self.path})"

    def load(self) -> LoadedDelta:
        """Read the delta and verify it against its manifest; raises what :func:`load_delta` does."""
        return load_delta(self.file, width=self.width, norm=self.norm)


def adapter_id(path: str) -> str:
    """Id of an adapter in the first form: 12 hex digits of the md5 of its path string."""
    return hashlib.md5(path.encode(errors="surrogateescape"), usedforsecurity=False).hexdigest()[:12]


def find_manifest(directory: Path) -> Path | None:
    """The manifest of a delta cache, None where there is none yet.

    Raises:
        UsageError: There are two; which one holds cannot be known.
    """
    manifests = [directory / name for name in (MANIFEST, NAMED_MANIFEST) if (directory / name).is_file()]
    if len(manifests) > 1:
        raise UsageError(
            "two manifests in one delta cache",
            where=str(directory),
            expected=f"{MANIFEST} or {NAMED_MANIFEST}",
            got="both",
            do="Move one of them, with its deltas, to a directory of its own.",
        )
    return manifests[0] if manifests else None


def read_manifest(path: Path) -> dict[str, Any]:
    """Parse a manifest; its ``adapters`` are an object of objects afterwards.

    Raises:
        UsageError: Not strict JSON, or of another shape.
        StorageError: Unreadable.
    """
    with read_errors(StorageError, str(path), "the delta manifest cannot be read"):
        data = read_at_most(path, MAX_MANIFEST_BYTES)
    try:
        value = load_json(data, where=str(path), max_bytes=MAX_MANIFEST_BYTES)
    except HeaderError as error:
        raise error.as_(UsageError) from error
    adapters = value.get("adapters") if isinstance(value, dict) else None
    if not isinstance(adapters, dict) or not all(isinstance(info, dict) for info in adapters.values()):
        raise UsageError("not a delta manifest", where=str(path), expected='{"adapters": {key: {...}}}')
    return dict(value)


def parse_entries(manifest: Mapping[str, Any], path: Path) -> tuple[DeltaEntry, ...]:
    """All entries of a manifest in its order; no delta is read. The name of its file (``path``) says its form.

    Raises:
        UsageError: A field is missing, of another type, or leads out of the cache.
    """
    config = manifest.get("config")
    shared = provenance({**manifest, **(config if isinstance(config, dict) else {})})
    named = path.name == NAMED_MANIFEST
    return tuple(_parse_entry(key, info, path, named, shared) for key, info in manifest["adapters"].items())


def _parse_entry(
    key: str, info: Mapping[str, Any], path: Path, named: bool, shared: Mapping[str, str]
) -> DeltaEntry:
    where = f"{path} adapter {key[:80]!r}"
    norm = _number(info, "delta_norm" if named else "norm", where)
    field = "delta_file" if named else "file"
    file = _field(info, field, where) if named or field in info else f"{key}.npy"
    probes = _field(info, "probes_file", where) if info.get("probes_file") not in (None, "") else None
    own = {name: value for name, value in provenance(info).items() if value}
    return DeltaEntry(
        key=key,
        name=key if named else "",
        path=_field(info, "adapter_path" if named else "path", where),
        file=inside(path.parent, file, where=where, proven=norm is not None),
        norm=norm,
        width=_width(info.get("shape"), where),
        probes_file=inside(path.parent, probes, where=where) if probes else None,
        source_digest=first_text(info, DIGEST_KEYS),
        task=first_text(info, ("task",)),
        **{**shared, **own},
    )


def base_file(manifest: Mapping[str, Any], directory: Path) -> Path:
    """The file of the base activation, whether or not it is there."""
    where, name = str(directory), "base_activation_file"
    file = _field(manifest, name, where) if manifest.get(name) else BASE_FILE
    return inside(directory, file, where=where)


def inside(directory: Path, file: str, *, where: str, proven: bool = True) -> Path:
    """The place in the cache that a manifest's file name means.

    A cache moves with its manifest, so an absolute name that leads elsewhere means the file of its last component,
    provided that something (the norm) will prove it to be the right one.

    Raises:
        UsageError: The name leads out of the cache.
    """
    name = PurePosixPath(file)
    if name.is_absolute() and ".." not in name.parts:
        root = PurePosixPath(directory.absolute().as_posix())
        if name.is_relative_to(root):
            return directory / name.relative_to(root)
        if proven:
            return directory / name.name
    elif name.parts and ".." not in name.parts and "\0" not in file:
        return directory / name
    raise UsageError(
        "a delta manifest names a file outside its cache",
        where=where,
        expected=f"a path below {directory}",
        got=repr(file)[:120],
    )


def _field(info: Mapping[str, Any], name: str, where: str) -> str:
    value = info.get(name)
    if not isinstance(value, str) or not value:
        raise UsageError(
            f"no {name} in the delta manifest", where=where, expected="a string", got=repr(value)[:80]
        )
    return value


def _number(info: Mapping[str, Any], name: str, where: str) -> float | None:
    value = info.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _LARGEST:
        raise UsageError(f"{name} is no norm", where=where, expected="a number from 0", got=repr(value)[:80])
    return float(value)


def _width(shape: object, where: str) -> int | None:
    if shape is None:
        return None
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int:
        raise UsageError("shape is no width", where=where, expected="[hidden]", got=repr(shape)[:80])
    return int(shape[0])
