"""The delta cache: deltas by checkpoint path, written so that neither a crash nor a second writer loses any."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llgbm_pack.deltas.file import read_array
from llgbm_pack.deltas.join import join_deltas
from llgbm_pack.deltas.manifest import (
    BASE_FILE,
    MANIFEST,
    DeltaEntry,
    adapter_id,
    base_file,
    find_manifest,
    parse_entries,
    read_manifest,
)
from llgbm_pack.deltas.paths import other_spellings
from llgbm_pack.deltas.write import Draft, entry_info, finite_vector, locked, unicode_path
from llgbm_shards.arguments import local_path
from llgbm_shards.errors import CheckpointError, UsageError


class DeltaCache:
    """A directory of deltas in either of the two forms users keep; a new one is made in the first form.

    Args:
        cache_dir: The directory. It need not exist before something is saved.

    Raises:
        UsageError: Not a path.
    """

    def __init__(self, cache_dir: str | os.PathLike[str]) -> None:
        self.cache_dir = local_path("cache_dir", cache_dir)
        self._signature: tuple[object, ...] = ()
        self._manifest: dict[str, Any] = {"adapters": {}}
        self._entries: tuple[DeltaEntry, ...] = ()
        self._by_path: dict[str, list[DeltaEntry]] = {}

    def entries(self) -> tuple[DeltaEntry, ...]:
        """All adapters in the manifest's order, read again when the manifest has changed; no delta is read.

        Raises:
            UsageError: The manifest is not one.
            StorageError: It cannot be read.
        """
        path = find_manifest(self.cache_dir)
        if path is None:
            self._signature, self._manifest, self._entries, self._by_path = (), {"adapters": {}}, (), {}
            return ()
        stat = path.stat()
        signature = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if signature != self._signature:
            manifest = read_manifest(path)
            self._entries = parse_entries(manifest, path)
            self._by_path = {}
            for entry in self._entries:
                self._by_path.setdefault(entry.path, []).append(entry)
            self._signature, self._manifest = signature, manifest
        return self._entries

    def get_delta(self, path: str | os.PathLike[str]) -> NDArray[np.float32] | None:
        """The delta recorded for exactly this path string, None if there is none.

        Returns:
            (hidden,) float32.

        Raises:
            UsageError: Two adapters are recorded under this path.
            CheckpointError: The delta is absent, damaged or not the one the manifest describes.
        """
        self.entries()
        entry = self._only(os.fspath(path))
        return self._load(entry) if entry else None

    def get_delta_for_checkpoint(self, path: str | os.PathLike[str]) -> NDArray[np.float32] | None:
        """The delta of a checkpoint that may have been moved: joined as in :mod:`llgbm_pack.deltas.join`, never by substring.

        Only the checkpoint's path is known here, not the zoo around it; joining a whole zoo at once knows more.

        Returns:
            (hidden,) float32, or None if none fits.

        Raises:
            UsageError: Two could be its own, and differ.
            CheckpointError: The delta is absent, damaged or not the one the manifest describes.
        """
        place = os.path.realpath(local_path("path", path))
        name, entries = place.lstrip("/"), self.entries()
        result = join_deltas(
            [name],
            zoo_root="/",
            entries=entries,
            maps=other_spellings(place, (entry.path for entry in entries)),
        )
        if result.doubts:
            raise _two_candidates(os.fspath(path), result.doubts[0].entries)
        return self._load(result.matches[name].entry) if name in result.matches else None

    def get_all_deltas(self) -> dict[str, NDArray[np.float32]]:
        """All deltas by the path string they were recorded under; all of them are held in memory.

        Raises:
            UsageError: Two adapters are recorded under one path.
            CheckpointError: A delta is absent, damaged or not the one the manifest describes.
        """
        entries = self.entries()
        for entry in entries:
            self._only(entry.path)  # before any of them is read
        return {entry.path: self._load(entry) for entry in entries}

    def get_base_activation(self) -> NDArray[np.float32] | None:
        """The base model's activation, (hidden,) or (probes, hidden) float32; None if none was saved."""
        self.entries()
        file = self._base_file()
        return read_array(file, dimensions=2).array if file.exists() else None

    def save_delta(self, path: str | os.PathLike[str], delta: NDArray[Any], **fields: str) -> str:
        """Save a delta under a path string, in place of one saved before; whenever it is cut short, one of them is there.

        Args:
            path: The checkpoint's path; the string is kept as it is.
            delta: (hidden,) finite floats; kept as float32.
            **fields: More fields of its manifest entry, such as ``task`` or ``source_digest``.

        Returns:
            Its key in the manifest.

        Raises:
            UsageError: Not a finite vector, or a path or field that JSON cannot hold; nothing was written.
            StorageError: It cannot be written.
        """
        return self.save_deltas({os.fspath(path): delta}, **fields)[0]

    def save_deltas(self, deltas: Mapping[str, NDArray[Any]], **fields: str) -> list[str]:
        """Save many deltas with one rewriting of the manifest; as :meth:`save_delta` otherwise."""
        arrays = {unicode_path(path): finite_vector(delta, path) for path, delta in deltas.items()}
        homes: dict[str, Path] = {}
        keys = self._save(arrays, homes, fields)
        away = {path: arrays[path] for path, home in homes.items() if self._by_path[path][0].file != home}
        if away:
            # Users look for <id>.npy, which only now is no entry's file, and may be written to.
            self._save(away, homes, fields)
        return keys

    def save_base_activation(self, activation: NDArray[Any]) -> None:
        """Save the base model's activation, (hidden,) or (probes, hidden) finite floats; kept as float32."""
        array = finite_vector(activation, "base activation", dimensions=2)
        with self._change() as draft:
            if draft.named:
                draft.manifest.setdefault("base_activation_file", BASE_FILE)
            draft.files[self._base_file()] = array

    def save_config(self, config: Mapping[str, Any]) -> None:
        """Record how the deltas were measured: ``base_model``, ``probes``, ``layer``, ``dtype`` and what else."""
        with self._change() as draft:
            draft.manifest["config"] = {**draft.manifest.get("config", {}), **config}

    def summary(self) -> dict[str, Any]:
        """What the manifest says: count, width, norms, provenance, and whether there is a base activation."""
        entries = self.entries()
        norms = [entry.norm for entry in entries if entry.norm is not None]
        return {
            "num_deltas": len(entries),
            "hidden_size": next((entry.width for entry in entries if entry.width), None),
            "norm_mean": float(np.mean(norms)) if norms else None,
            "norm_min": min(norms, default=None),
            "norm_max": max(norms, default=None),
            "base_model": entries[0].base_model if entries else "",
            "has_base_activation": self._base_file().exists(),
        }

    def clear(self) -> None:
        """Forget all deltas and the base activation, and delete their files; other files stay."""
        with self._change() as draft:
            draft.manifest["adapters"] = {}
            draft.files.update(dict.fromkeys([*(entry.file for entry in self._entries), self._base_file()]))

    def _load(self, entry: DeltaEntry) -> NDArray[np.float32]:
        """The delta of an entry; of the new entry where a writer has put another in its place meanwhile."""
        try:
            return entry.load().array
        except CheckpointError:
            self.entries()
            recorded = self._by_path.get(entry.path, [])
            if len(recorded) != 1 or recorded[0] == entry:
                raise
            return recorded[0].load().array

    def _base_file(self) -> Path:
        return base_file(self._manifest, self.cache_dir)

    def _save(
        self, arrays: Mapping[str, NDArray[np.float32]], homes: dict[str, Path], fields: Mapping[str, str]
    ) -> list[str]:
        """Save each delta in a file that no entry names: its home if it can be; notes the homes it finds out."""
        keys: list[str] = []
        with self._change() as draft:
            used, named = {entry.file for entry in self._entries}, draft.named
            for path, array in arrays.items():
                old = self._only(path)
                key = old.key if old else adapter_id(path)
                home = homes.setdefault(path, old.file if old and named else self.cache_dir / f"{key}.npy")
                file = home.with_stem(f"{home.stem}-{secrets.token_hex(4)}") if home in used else home
                draft.files[file] = array
                if old:
                    draft.files[old.file] = None
                old_info = draft.manifest["adapters"].get(key, {})
                info = entry_info(path, array, named=named, old=old_info, fields=fields)
                if named or file != home:
                    info["delta_file" if named else "file"] = file.relative_to(self.cache_dir).as_posix()
                draft.manifest["adapters"][key] = info
                keys.append(key)
        return keys

    def _only(self, path: str) -> DeltaEntry | None:
        """The entry recorded under a path, None if there is none; a UsageError if there are two."""
        recorded = self._by_path.get(path, [])
        if len(recorded) > 1:
            raise _two_candidates(path, recorded)
        return recorded[0] if recorded else None

    @contextmanager
    def _change(self) -> Iterator[Draft]:
        """The manifest to change, written back afterwards, while no other process does."""
        with locked(self.cache_dir):
            self.entries()
            path = find_manifest(self.cache_dir) or self.cache_dir / MANIFEST
            draft = Draft(path, {**self._manifest, "adapters": dict(self._manifest["adapters"])})
            yield draft
            draft.write()
            self.entries()


def _two_candidates(path: str, candidates: Iterable[DeltaEntry]) -> UsageError:
    listed = ", ".join(map(str, candidates))
    return UsageError("two deltas for one checkpoint", where=path, expected="one", got=listed)
