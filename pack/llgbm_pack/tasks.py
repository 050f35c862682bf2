"""Which task a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from llgbm_pack.zoo_directory import file_fault
from llgbm_shards.canonical import load_json
from llgbm_shards.errors import HeaderError, PlanError
from llgbm_shards.storage import read_file

MANIFEST_NAME: Final = "manifest.json"
_MAX_MANIFEST_BYTES: Final = 256 << 20
_PATH_FIELDS: Final = ("path", "adapter_path", "checkpoint", "checkpoint_path", "output_dir")


def resolve_task(path: str, zoo_task: str, text_task: str) -> str:
    """The zoo manifest's task, else the first folder of the path, else the text file's, else ``default``."""
    parts = PurePosixPath(path).parts
    return zoo_task or (parts[0] if len(parts) > 1 else "") or text_task or "default"


def zoo_tasks(zoo: Path, paths: Sequence[str]) -> dict[str, str]:
    """Tasks that the zoo's own ``manifest.json`` names, by checkpoint path.

    An entry belongs to a checkpoint when its path ends in the checkpoint's relative path (a moved zoo), or when
    its name is one whole component of exactly one checkpoint's path.

    Raises:
        PlanError: The manifest is there and cannot be read: unsound, no regular file, or a link out of the zoo.
    """
    manifest = zoo / MANIFEST_NAME
    if manifest.is_dir() or not (manifest.exists() or manifest.is_symlink()):
        return {}
    fault = file_fault(manifest, zoo.resolve())
    if fault:
        raise PlanError("the zoo's manifest is not read", where=str(zoo), got=fault, do="Mend or remove it.")
    try:
        value = load_json(
            read_file(manifest, max_bytes=_MAX_MANIFEST_BYTES),
            where=MANIFEST_NAME,
            max_bytes=_MAX_MANIFEST_BYTES,
        )
    except HeaderError as error:
        raise PlanError(
            error.what, where=error.where, expected=error.expected, got=error.got, do="Mend or remove it."
        ) from error
    by_component = _unique_components(paths)
    known = set(paths)
    tasks: dict[str, str] = {}
    for name, entry in _entries(value):
        task = entry.get("task")
        if not isinstance(task, str) or not task:
            continue
        for found in _owners(name, entry, known, by_component):
            tasks.setdefault(found, task)
    return tasks


def _entries(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Entries of a manifest: a list, a map, or either of them one level down."""
    if isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, dict) and "task" in item:
                yield name, item
            elif isinstance(item, dict | list):
                yield from _entries(item)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield str(item.get("name", "")), item


def _owners(
    name: str, entry: Mapping[str, Any], known: set[str], by_component: Mapping[str, str | None]
) -> Iterator[str]:
    for field in _PATH_FIELDS:
        if isinstance(entry.get(field), str):
            parts = PurePosixPath(entry[field]).parts
            tails = ("/".join(parts[start:]) for start in range(len(parts)))
            match = next((tail for tail in tails if tail in known), None)
            if match:
                yield match
                return
    owner = by_component.get(name)
    if owner:
        yield owner


def _unique_components(paths: Sequence[str]) -> dict[str, str | None]:
    """Path component -> the one path that has it, or None when several do."""
    owners: dict[str, str | None] = {}
    for path in paths:
        for part in set(PurePosixPath(path).parts):
            owners[part] = path if part not in owners else None
    return owners
