"""The paths that checkpoints and deltas are joined by, as whole components."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from typing import Final

#: Whole components; that of an absolute path begins with ``/``.
Parts = tuple[str, ...]

_WEIGHT_FILES: Final = frozenset({"adapter_model.safetensors", "adapter_config.json"})
_WEIGHTS_SUFFIX: Final = ".safetensors"
_WRAPPER: Final = "adapter"
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


def checkpoint_parts(path: str) -> Parts:
    """The components that tell a checkpoint: less the name of its weights, and a closing ``adapter``."""
    return unwrap(rewrite(parts_of(path), ()))


def parts_of(path: str) -> Parts:
    """Whole components; an absolute path begins with ``/``, and Windows' separators count where no other are."""
    text = path.replace("\\", "/") if "\\" in path and "/" not in path else path
    parts = tuple(part for part in posixpath.normpath(text).split("/") if part not in ("", "."))
    return (("/",) if text.startswith("/") else ()) + parts


def real_folder(parts: Parts) -> Parts:
    """A folder with links followed, where it is on this machine; as it is where no folder can be called so."""
    try:
        return parts_of(os.path.realpath(os.path.join(*parts) if parts else "."))  # noqa: PTH118
    except ValueError:  # a NUL, or what is no text
        return parts


def rewrite(parts: Parts, maps: Sequence[tuple[str, str]]) -> Parts:
    """A recorded path less the name of its weights, with the first prefix that fits rewritten."""
    if parts[-1:] and parts[-1] in _WEIGHT_FILES:
        parts = parts[:-1]
    elif parts[-1:] and parts[-1].endswith(_WEIGHTS_SUFFIX):
        # A checkpoint that is one file, as in ``{dataset}/{N}.safetensors``, is called by its path without the suffix.
        parts = (*parts[:-1], parts[-1].removesuffix(_WEIGHTS_SUFFIX))
    for old, new in maps:
        prefix = parts_of(old)
        if parts[: len(prefix)] == prefix:
            return parts_of(new) + parts[len(prefix) :]
    return parts


def unwrap(parts: Parts) -> Parts:
    """A path less a closing ``adapter``, unless that is all of it."""
    return parts[:-1] if len(parts) > 1 and parts[-1] == _WRAPPER else parts


def is_generic(part: str) -> bool:
    """Whether a component names no adapter in particular: only numbers and words of common use."""
    return all(word in _GENERIC for word in re.findall(r"[^\W\d_]+", part.lower()))
