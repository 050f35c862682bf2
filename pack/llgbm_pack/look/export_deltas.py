"""The delta cache that an export writes beside the tree: first form, one file a delta, the manifest last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from llgbm_pack.deltas.manifest import MANIFEST, adapter_id
from llgbm_pack.deltas.write import encode_manifest, entry_info
from llgbm_pack.look.export_place import Destination
from llgbm_shards.members import SUFFIX, decode_delta
from llgbm_shards.shardset import ShardSet

#: How a delta was measured, as a sample's json and a manifest say it.
_MEASURED: Final = ("base_model", "probes", "layer", "dtype")


class ExportedDeltas:
    """The deltas of a set on their way to a cache.

    Args:
        opened: The set.
        index: (checkpoint, sample number) of those that have a delta.
    """

    def __init__(self, opened: ShardSet, index: Sequence[tuple[str, int]]) -> None:
        self._opened = opened
        self._numbers = dict(index)
        self._entries: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def paths(self) -> set[str]:
        """All files of the cache."""
        return {MANIFEST, *(f"{adapter_id(path)}.npy" for path in self._numbers)}

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
        place.put(f"{adapter_id(checkpoint)}.npy", [data])

    def finish(self, place: Destination) -> None:
        """Write the manifest: from then on it is a delta cache."""
        entries = {adapter_id(path): self._entries[path] for path in self._numbers}
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
