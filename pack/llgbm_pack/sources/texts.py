"""The texts of one checkpoint: where they come from, and which of them are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Final

from blake3 import blake3

from llgbm_pack.sources.directory import WEIGHTS, file_fault
from llgbm_pack.sources.text_files import MAX_TEXT_BYTES, Text, TextFile, read_text_file
from llgbm_shards.errors import CheckpointError, UsageError
from llgbm_shards.storage import read_errors

__all__ = [
    "DEFAULT_MAX_TEXTS",
    "PROMPTS",
    "CheckpointTexts",
    "Text",
    "choose_texts",
    "dataset_file",
    "read_shared",
    "read_texts",
    "unwrapped",
]

#: Texts kept of a checkpoint unless more or fewer are asked for.
DEFAULT_MAX_TEXTS: Final = 1024
PROMPTS: Final = "prompts.json"
_WRAPPER: Final = re.compile(r"adapter|checkpoint-[0-9]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointTexts:
    """The texts of one checkpoint."""

    texts: tuple[Text, ...]  # the texts kept, in file order; the first one is always the file's first
    task: str  # the task its prompts.json names, or empty
    source: str  # ``prompts.json``, ``probes``, ``texts-dir`` or ``name``
    files: tuple[Path, ...]  # files that were read; none for ``name``


def read_texts(
    checkpoint_dir: Path,
    *,
    path: str,
    texts_dir: Path | None = None,
    task: str = "",
    probes_file: Path | None = None,
    max_texts: int | None = DEFAULT_MAX_TEXTS,
    seed: int = 0,
    max_bytes: int = MAX_TEXT_BYTES,
) -> CheckpointTexts:
    """Find and read the texts of a checkpoint.

    The first source that exists is taken: ``prompts.json`` in the checkpoint, the delta cache's probes file,
    ``{dataset}.json`` or ``{dataset}_train.json`` in ``texts_dir`` (dataset: ``task``, else the first folder of
    ``path``), the checkpoint's own name. A source that exists and is faulty is an error, not a reason to try the next.
    A closing ``adapter`` or ``checkpoint-N`` names no checkpoint: of ``run/adapter`` the name is ``run``, and
    ``run/prompts.json`` holds its texts unless it has its own.

    Args:
        checkpoint_dir: The checkpoint.
        path: Its POSIX path relative to the zoo.
        texts_dir: Directory of DnD text files, if one was given.
        task: The checkpoint's task where the zoo's manifest names one.
        probes_file: Probes file that the delta cache names for this checkpoint, if any.
        max_texts: Most texts to keep; None keeps all.
        seed: Seed of the choice.
        max_bytes: Largest file read, in bytes.

    Raises:
        CheckpointError: A source is unreadable, hostile, of no known shape or empty; or ``prompts.json`` is no
            regular file, or a link out of the zoo.
    """
    prompts = _own_prompts(checkpoint_dir, path)
    dataset = dataset_file(texts_dir, path, task)
    if prompts is not None:
        file, source, content = prompts, PROMPTS, read_text_file(prompts, max_bytes=max_bytes)
    elif probes_file is not None:
        file, source, content = probes_file, "probes", read_shared(probes_file, max_bytes)
    elif dataset is not None:
        file, source, content = dataset, "texts-dir", read_shared(dataset, max_bytes)
    else:
        texts = (Text(_own_name(checkpoint_dir, path), ""),)
        return CheckpointTexts(texts=texts, task="", source="name", files=())
    return CheckpointTexts(
        texts=choose_texts(content.texts, path=path, seed=seed, limit=max_texts),
        task=content.task if source == PROMPTS else "",
        source=source,
        files=(file,),
    )


def choose_texts(texts: tuple[Text, ...], *, path: str, seed: int, limit: int | None) -> tuple[Text, ...]:
    """Keep at most ``limit`` texts, the same ones on every machine.

    Text 0 is always kept; the others are taken by the least BLAKE3 of (seed, path, index). Their order stays.

    Raises:
        UsageError: The limit is below 1.
    """
    if limit is None or len(texts) <= limit:
        return texts
    if limit < 1:
        raise UsageError(
            "no texts would be kept", where="--max-texts", expected="at least 1, or all", got=f"{limit}"
        )
    stem = f"{seed}\0{path}\0".encode(errors="surrogateescape")
    ranked = sorted(range(1, len(texts)), key=lambda index: blake3(stem + b"%d" % index).digest())
    return tuple(texts[index] for index in [0, *sorted(ranked[: limit - 1])])


def _own_prompts(checkpoint_dir: Path, path: str) -> Path | None:
    """The checkpoint's prompts.json; refused when it must not be opened.

    A FIFO may hang, a link may lead to any file of this machine.
    """
    directory = checkpoint_dir.resolve()
    parts = PurePosixPath(path).parts
    wrapped = directory.parts[-1:] == parts[-1:] and unwrapped(parts) != parts
    for home in [checkpoint_dir, checkpoint_dir.parent] if wrapped else [checkpoint_dir]:
        prompts = home / PROMPTS
        if prompts.exists() or prompts.is_symlink():
            fault = file_fault(home.resolve() / PROMPTS, _zoo_of(directory, path))
            if fault:
                do = "Put a regular file in its place, or remove it."
                raise CheckpointError("texts are not read", where=PROMPTS, got=fault, do=do)
            return prompts
    return None


def unwrapped(parts: tuple[str, ...]) -> tuple[str, ...]:
    """A path without a closing folder that names no checkpoint in particular."""
    return parts[:-1] if len(parts) > 1 and _WRAPPER.fullmatch(parts[-1]) else parts


def _zoo_of(directory: Path, path: str) -> Path:
    """The zoo's root: a checkpoint's directory, resolved, less its path within the zoo.

    The last component of the path is no directory where the adapter is a file among others (``dataset/3``).
    """
    below = PurePosixPath(path).parts
    if not (directory / WEIGHTS).exists() or directory.parts[-1:] != below[-1:]:
        below = below[:-1]
    root = directory.parts[: len(directory.parts) - len(below)]
    # A path that is not the directory's: then links stay within the directory.
    return Path(*root) if root + below == directory.parts else directory


def dataset_file(texts_dir: Path | None, path: str, task: str) -> Path | None:
    """The file of a checkpoint's dataset, ``{dataset}.json`` or ``{dataset}_train.json``; None without one."""
    if texts_dir is None:
        return None
    parts = PurePosixPath(path).parts
    names = [task, parts[0] if len(parts) > 1 else ""]
    # A task comes from a file: it must not lead out of the directory.
    safe = [name for name in names if name and not set(name) & set("/\\\0")]
    files = [texts_dir / f"{name}{ending}" for name in safe for ending in (".json", "_train.json")]
    return next((file for file in files if file.exists()), None)


def read_shared(file: Path, max_bytes: int = MAX_TEXT_BYTES) -> TextFile:
    """Read a file that many checkpoints share; parsed again only when it changed."""
    with read_errors(CheckpointError, file.name, "texts cannot be read"):
        stat = file.stat()
    return _read_version(file, stat.st_size, stat.st_mtime_ns, max_bytes)


@lru_cache(maxsize=8)
def _read_version(file: Path, _size: int, _mtime_ns: int, max_bytes: int) -> TextFile:
    return read_text_file(file, max_bytes=max_bytes)


def _own_name(checkpoint_dir: Path, path: str) -> str:
    name = "".join(unwrapped(PurePosixPath(path).parts)[-1:]) or checkpoint_dir.resolve().name
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            "the checkpoint's name cannot be its text",
            where=path.encode(errors="backslashreplace").decode(),
            expected="a name in UTF-8",
            got=str(error),
            do="Rename the directory or add a prompts.json.",
        ) from error
    return name
