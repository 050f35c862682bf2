"""Which task a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from llgbm_pack.sources.directory import file_fault
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

    Args:
        zoo: The zoo.
        paths: All its checkpoints: of a part, a name would seem to mean one that in the zoo it does not.

    Raises:
        PlanError: The manifest is there and cannot be read (unsound, no regular file, or a link out of the zoo), or
            gives one checkpoint two tasks.
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
        raise error.as_(PlanError, do="Mend or remove it.") from error
    by_component = _unique_components(paths)
    known = set(paths)
    claims: dict[str, tuple[str, str]] = {}
    for name, entry in _entries(value):
        task = entry.get("task")
        if not isinstance(task, str) or not task:
            continue
        claim = (task, next(iter(_paths_of(entry)), name))
        owner = _owner(name, entry, known, by_component)
        if owner and claims.setdefault(owner, claim)[0] != task:
            raise _two_tasks(owner, claims[owner], claim)
    return {owner: task for owner, (task, _) in claims.items()}


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


def _owner(
    name: str, entry: Mapping[str, Any], known: set[str], by_component: Mapping[str, str | None]
) -> str | None:
    for path in _paths_of(entry):
        parts = PurePosixPath(path).parts
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        if match := next((tail for tail in tails if tail in known), None):
            return match
    return by_component.get(name)


def _paths_of(entry: Mapping[str, Any]) -> list[str]:
    return [entry[field] for field in _PATH_FIELDS if isinstance(entry.get(field), str)]


def _two_tasks(owner: str, *claims: tuple[str, str]) -> PlanError:
    told = " and ".join(f"{task[:80]!r} by the entry {entry[:200]!r}" for task, entry in claims)
    return PlanError(
        "the zoo's manifest gives a checkpoint two tasks",
        where=owner,
        expected="one",
        got=told,
        do="Mend the manifest.",
    )


def _unique_components(paths: Sequence[str]) -> dict[str, str | None]:
    """Path component -> the one path that has it, or None when several do."""
    owners: dict[str, str | None] = {}
    for path in paths:
        for part in set(PurePosixPath(path).parts):
            owners[part] = path if part not in owners else None
    return owners
