"""One directory of a zoo: which of its files are adapters, which are refused, without opening any."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
#: A pickle in the place of the weights, and pickles that are an adapter each.
_PICKLED_WEIGHTS: Final = re.compile(r"(adapter_model|pytorch_lora_weights)\.(bin|pt|pth|ckpt|pkl)")
_PICKLES: Final = re.compile(r"(.*(adapter|lora).*|[0-9]+)\.(bin|pt|pth|ckpt|pkl)", re.IGNORECASE)
_PICKLE: Final = "a pickle, which is never opened; save it as safetensors"
_SHARD: Final = re.compile(r".*-[0-9]+-of-[0-9]+\.safetensors")
_WHOLE_MODEL: Final = re.compile(r"(pytorch_)?model(-[0-9]+-of-[0-9]+)?\.safetensors")
#: Training state beside an adapter, files that a writer had not finished, and what is no LoRA by its name.
_IGNORED_FILES: Final = re.compile(
    r"tmp-.*|\..*|(optimizer|scheduler)([-_.]?[0-9]+)?\.[a-z]+"
    r"|(optim_|rng_state|random_states|training_state).*|(value_head|new_embeddings)\.safetensors"
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint to be, not yet opened."""

    # POSIX path relative to the zoo, "." for the zoo itself. Of an adapter without a folder of its own
    # (``{dataset}/{N}.safetensors``) it is the file's path without the suffix.
    path: str
    weights: Path  # the safetensors file: a regular file in the zoo, or a link to one
    config: Path | None  # ``adapter_config.json``, None when there is none


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that looks like a checkpoint and is not packed."""

    path: str  # as in :class:`Candidate`
    reason: str  # why, in one clause
    fault: bool  # False when nothing is lost: the same adapter lies elsewhere, or it never was one


def file_fault(path: Path, root: Path) -> str:
    """Why a file must not be opened; "" when it may be.

    A regular file may be opened; so may a link to one within ``root``, but from within a repository of a hub
    cache (``models--*``) only into that repository's own ``blobs``. Opening a FIFO or a device may hang.
    The directory of ``path`` is reached without links, and ``root`` is the resolved zoo.
    """
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode):
            return "" if stat.S_ISREG(mode) else f"{path.name} is {_kind(mode)}, not a regular file"
        target = Path(os.path.realpath(path, strict=True))
        mode = target.lstat().st_mode
    except OSError as error:
        return f"{path.name} is a broken link or cannot be read: {error.strerror}"
    repository = next((parent for parent in path.parents if parent.name.startswith("models--")), None)
    home = root if repository is None or not repository.is_relative_to(root) else repository / "blobs"
    if not target.is_relative_to(home):
        where = "out of the zoo" if home == root else "out of its repository's blobs"
        return f"{path.name} is a link {where}"
    return "" if stat.S_ISREG(mode) else f"{path.name} is a link to {_kind(mode)}"


def adapters_of(directory: Path, path: str, names: set[str], root: Path) -> Iterator[Candidate | Rejected]:
    """What a directory holds of its own; ``names`` are its files, links and special files, ``root`` is resolved."""
    refused = {name: why for name in sorted(names) if (why := _refusal(name, names))}
    loose = sorted(name for name in names - refused.keys() if _is_loose(name))
    if WEIGHTS in names:
        yield _checked(path, directory, WEIGHTS, names, root)
    elif pickles := sorted(name for name in names if _PICKLED_WEIGHTS.fullmatch(name)):
        yield Rejected(path, f"{pickles[0]} is {_PICKLE}", True)
    elif CONFIG in names and not loose:
        yield Rejected(path, f"{CONFIG} without {WEIGHTS}", True)
    for name, (reason, fault) in refused.items():
        yield Rejected(_below(path, name), reason, fault)
    for name in loose:
        stem = name.removesuffix(".safetensors")
        yield _checked(_below(path, stem), directory, name, names, root)


def _is_loose(name: str) -> bool:
    """Whether a file is an adapter without a folder of its own."""
    return name.endswith(".safetensors") and name != WEIGHTS and not _IGNORED_FILES.fullmatch(name)


def _refusal(name: str, names: set[str]) -> tuple[str, bool] | None:
    """Why a file that looks like a checkpoint by itself is not packed, and whether that is a fault."""
    if _IGNORED_FILES.fullmatch(name) or _PICKLED_WEIGHTS.fullmatch(name):
        return None
    if _PICKLES.fullmatch(name):
        return _PICKLE, True
    if _WHOLE_MODEL.fullmatch(name):
        return "a whole model, not an adapter", False
    if _SHARD.fullmatch(name):
        return "a part of an adapter in several files; save it as one file", True
    if WEIGHTS in names and _is_loose(name) and not name.removesuffix(".safetensors").isdecimal():
        return f"beside {WEIGHTS}, which is packed; move it to a folder of its own", True
    return None


def _checked(path: str, directory: Path, name: str, names: set[str], root: Path) -> Candidate | Rejected:
    config = directory / CONFIG if CONFIG in names else None
    fault = file_fault(directory / name, root) or (file_fault(config, root) if config else "")
    return Rejected(path, fault, True) if fault else Candidate(path, directory / name, config)


def _below(path: str, name: str) -> str:
    return name if path == "." else f"{path}/{name}"


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a directory",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")
