"""The delta cache that an export writes beside the tree: first form, one file a delta, the manifest last."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llgbm_pack.deltas.manifest import BASE_FILE, MANIFEST, adapter_id
from llgbm_pack.deltas.write import encode_manifest, entry_info
from llgbm_pack.look.export_place import Destination
from llgbm_shards.members import SUFFIX, decode_delta
from llgbm_shards.shardset import ShardSet

#: How a delta was measured, as a sample's json and a manifest say it.
_MEASURED: Final = ("base_model", "probes", "layer", "dtype")
_FILE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.npy")


class ExportedDeltas:
    """The deltas of a set on their way to a cache.

    Args:
        opened: The set.
        index: (checkpoint, sample number, file its delta came from) of those that have a delta.
    """

    def __init__(self, opened: ShardSet, index: Sequence[tuple[str, int, str]]) -> None:
        self._opened = opened
        self._numbers = {checkpoint: number for checkpoint, number, _ in index}
        self._ids = _ids({checkpoint: file for checkpoint, _, file in index})
        self._entries: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def paths(self) -> set[str]:
        """All files of the cache."""
        return {MANIFEST, *(f"{key}.npy" for key in self._ids.values())}

    def write(self, checkpoint: str, info: dict[str, Any], place: Destination) -> None:
        """Write the delta of one checkpoint, if it has one."""
        number = self._numbers.get(checkpoint)
        if number is None:
            return
        extent = next(one for one in self._opened.extents(number) if one.field == "delta")
        data = self._opened.read_member(extent)
        array = decode_delta(data, self._opened.record.delta_width, where=SUFFIX["delta"])
        fields = {name: info["delta"][name] for name in _MEASURED if info["delta"][name]}
        self._entries[checkpoint] = entry_info(checkpoint, array, named=False, old={}, fields=fields)
        place.put(f"{self._ids[checkpoint]}.npy", [data])

    def finish(self, place: Destination) -> None:
        """Write the manifest: from then on it is a delta cache."""
        entries = {self._ids[path]: self._entries[path] for path in self._numbers}
        manifest = {"adapters": entries, "config": self._shared()}
        place.put(MANIFEST, [encode_manifest(manifest, Path(MANIFEST))])

    def _shared(self) -> dict[str, str]:
        """What all deltas have in common is said once, and taken out of their entries."""
        entries = list(self._entries.values())
        common = {}
        for name in _MEASURED:
            values = {entry.get(name, "") for entry in entries}
            if len(values) == 1 and "" not in values:
                common[name] = values.pop()
                for entry in entries:
                    del entry[name]
        return common


def _ids(files: Mapping[str, str]) -> dict[str, str]:
    """Checkpoint -> id of its delta: that of the cache it came from, so that packed again it gives the same json.

    Where a set tells no such names for all, each a file of its own, the ids are made of the paths.
    """
    names = list(files.values())
    if len(set(names)) == len(names) and all(map(_FILE.fullmatch, names)) and BASE_FILE not in names:
        return {checkpoint: file.removesuffix(".npy") for checkpoint, file in files.items()}
    return {checkpoint: adapter_id(checkpoint) for checkpoint in files}
