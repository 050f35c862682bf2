"""Recorded paths as whole components, and where they lead: into the zoo, however it is spelled, or elsewhere."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

Parts = tuple[str, ...]

_WEIGHT_FILES: Final = frozenset({"adapter_model.safetensors", "adapter_config.json"})
_WEIGHTS_SUFFIX: Final = ".safetensors"
_WRAPPER: Final = "adapter"
_ROOT: Final = "/"
#: Words that many adapters of a zoo are called by.
_GENERIC: Final = frozenset(
    re.findall(
        r"\w+",
        """
        adapter adapters base best checkpoint checkpoints ckpt default e ep epoch exp experiment
        final fold global init iter it iteration last latest lora lr m model models out output
        outputs peft r rank rep results run s sd seed stage step steps train trial v version
        weights
        """,
    )
)


class ZooPlace:
    """Where the zoo really lies.

    Args:
        root: The zoo, spelled in any way; relative to the working directory if it is relative.
        relative: Paths of its checkpoints, relative to it.
    """

    def __init__(self, root: str, relative: Iterable[Parts]) -> None:
        self._real = os.path.realpath(root)
        self.root = split_path(self._real)
        self._relative = frozenset(relative)
        self._known: dict[Parts, bool] = {self.root: True}
        self._linked: dict[Parts, Parts] = {}

    def full(self, relative: Parts) -> Parts:
        """A checkpoint's path from the root of the file system; of one that is absolute already, itself."""
        return relative if relative[:1] == (_ROOT,) else self.root + relative

    def resolve(self, path: Parts) -> Parts:
        """A recorded path; a full path if what stands before a checkpoint's relative path leads to the zoo.

        Where its folder is a link to another folder of the zoo, that one stands in its place: as a full path, or as a
        relative one if the path is relative to the zoo. Each beginning and each folder is looked up once.
        """
        for start in range(len(path) + 1):
            if path[start:] in self._relative and self._is_zoo(path[:start]):
                return self.full(path[start:])
        return self._unlinked(path[:-1]) + path[-1:]

    def _unlinked(self, folder: Parts) -> Parts:
        """The folder, or the folder inside the zoo to which it leads through a link."""
        if self.root == (_ROOT,):
            return folder  # all there is would lie inside
        if folder not in self._linked:
            relative = None if folder[:1] == (_ROOT,) else self._led(self.root + folder)
            self._linked[folder] = self._led(folder) or (relative[len(self.root) :] if relative else folder)
        return self._linked[folder]

    def _led(self, folder: Parts) -> Parts | None:
        """Where a link leads the folder, if inside the zoo."""
        path = Path(*folder)
        real = _real(path)
        if real is None or real == os.path.normpath(path.absolute()):
            return None
        parts = split_path(real)
        return parts if parts[: len(self.root)] == self.root else None

    def _is_zoo(self, prefix: Parts) -> bool:
        if prefix not in self._known:
            self._known[prefix] = _real(Path(*prefix)) == self._real
        return self._known[prefix]


def _real(path: str | os.PathLike[str]) -> str | None:
    """Where a path leads, from the working directory if it is relative; None for what is no path of this machine."""
    try:
        return os.path.realpath(path)
    except ValueError:
        return None  # a NUL or a lone surrogate


def other_spellings(place: str, recorded: Iterable[str]) -> list[tuple[str, str]]:
    """(recorded, real) folder of one checkpoint's real path, where a recorded path spells it in another way."""
    real, name = os.path.split(place)
    folders = {folder for folder, last in map(os.path.split, recorded) if last == name}
    return [(folder, real) for folder in sorted(folders - {"", real}) if _real(folder) == real]


def split_path(path: str) -> Parts:
    """Whole components; an absolute path begins with ``/``, and Windows' separators count where no other are."""
    text = path.replace("\\", "/") if "\\" in path and "/" not in path else path
    parts = tuple(part for part in posixpath.normpath(text).split("/") if part not in ("", "."))
    return ((_ROOT,) if text.startswith("/") else ()) + parts


def rewrite(parts: Parts, maps: Sequence[tuple[str, str]]) -> Parts:
    """A recorded path less the name of its weights, with the first of the (old, new) prefixes that fits rewritten."""
    if parts[-1:] and parts[-1] in _WEIGHT_FILES:
        parts = parts[:-1]
    elif parts[-1:] and parts[-1].endswith(_WEIGHTS_SUFFIX):
        # A checkpoint that is one file, as in ``{dataset}/{N}.safetensors``, is called by its path without the suffix.
        parts = (*parts[:-1], parts[-1].removesuffix(_WEIGHTS_SUFFIX))
    for old, new in maps:
        prefix = split_path(old)
        if parts[: len(prefix)] == prefix:
            return split_path(new) + parts[len(prefix) :]
    return parts


def unwrap(parts: Parts) -> Parts:
    """The components less a closing ``adapter``."""
    return parts[:-1] if len(parts) > 1 and parts[-1] == _WRAPPER else parts


def is_generic(part: str) -> bool:
    """Whether a component names no adapter in particular: only numbers and words of common use."""
    return all(word in _GENERIC for word in re.findall(r"[^\W\d_]+", part.lower()))


def checkpoint_parts(path: str) -> Parts:
    """The components that tell a checkpoint: less the name of its weights, and a closing ``adapter``."""
    return unwrap(rewrite(split_path(path), ()))
