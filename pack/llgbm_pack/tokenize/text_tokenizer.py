"""The text tokenizer: load it, save its files without a trace of this machine, and describe it."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from llgbm_shards.errors import StorageError, UsageError
from llgbm_shards.storage import read_file
from llgbm_shards.texts import FORMS, ConditionSpec

#: Settings that say how and from where a tokenizer was loaded, not what it is.
_LOADING_KEYS: Final = frozenset({"is_local", "local_files_only", "name_or_path", "_commit_hash"})
#: What a path starts with, and a name on the hub does not.
_PATH_STARTS: Final = (".", "/", "~")
#: Longest wait for the hub's first answer.
_HUB_S: Final = 5.0
_PROBES: Final = ("hello", "A b, c.", "x = 1\ny = 2", "Größe 12")


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection meanwhile: it would look through a growing vocabulary again and again, for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def load_tokenizer(name: str) -> Any:
    """Load a transformers tokenizer; no code that comes with it is run.

    Args:
        name: A directory, or a name on the hub; the hub is asked only for what its local cache does not have.

    Raises:
        UsageError: There is no such tokenizer, or it cannot be loaded.
        StorageError: transformers is not installed.
    """
    if not Path(name).is_dir() and (Path(name).exists() or name[:1] in _PATH_STARTS or name.count("/") > 1):
        raise UsageError("no such directory", where="--text-tokenizer", got=name)
    try:
        # Takes seconds to import, and only packing of texts needs it.
        from transformers import AutoTokenizer  # noqa: PLC0415
    except ImportError as error:
        raise StorageError(
            "transformers is missing", where="--text-tokenizer", do="pip install transformers"
        ) from error
    try:
        return _load(AutoTokenizer, name)
    except Exception as error:  # tokenizers raises bare ones, and each HTTP library its own.
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UsageError(
            "the text tokenizer cannot be loaded",
            where=name,
            expected="a directory that save_pretrained wrote, or a tokenizer of the hub",
            got=first,
            do="Without a network, give --text-tokenizer a directory.",
        ) from error


def _load(auto: Any, name: str) -> Any:
    try:
        return auto.from_pretrained(name, trust_remote_code=False, local_files_only=True)
    except OSError:
        if Path(name).is_dir():
            raise
    from huggingface_hub import HfApi  # noqa: PLC0415

    # One question first: from_pretrained goes on asking for a minute, aloud, where nobody answers.
    HfApi().model_info(name, timeout=_HUB_S)
    return auto.from_pretrained(name, trust_remote_code=False)


def save_tokenizer(name: str, directory: Path) -> tuple[Path, ...]:
    """Load a tokenizer and save its files, as :func:`save_loaded` does.

    Args:
        name: A directory, or a name on the hub.
        directory: Where to write; made if absent.

    Returns:
        The files written, sorted.

    Raises:
        UsageError: It cannot be loaded, saved, or loaded again as what it was.
    """
    save_loaded(load_tokenizer(name), name, directory)
    return tuple(sorted(path for path in directory.rglob("*") if path.is_file()))


def save_loaded(tokenizer: Any, name: str, directory: Path) -> Any:
    """Save a tokenizer's files, the same bytes each time and whatever place it was loaded from.

    The copy is loaded again and must agree with the original.

    Args:
        tokenizer: A transformers tokenizer.
        name: What it was loaded by, for messages.
        directory: Where to write; made if absent.

    Returns:
        The copy, loaded.

    Raises:
        UsageError: It cannot be saved, or loaded again as what it was.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(directory))
    _strip_places(directory / "tokenizer_config.json")
    copy = load_tokenizer(str(directory))
    if _portrait(tokenizer) != _portrait(copy):
        raise UsageError(
            "the saved text tokenizer is not what it was",
            where=name,
            expected="equal ids, special tokens and sides after save_pretrained",
            do="Convert it to a fast tokenizer (tokenizer.json) first.",
        )
    return copy


def describe(
    tokenizer: Any, *, forms: Sequence[str] = ("prompt",), joiner: str = "\n"
) -> tuple[ConditionSpec, str]:
    """What rebuilds this tokenizer's padded results from bare ids.

    Args:
        tokenizer: A transformers tokenizer.
        forms: Forms to pack.
        joiner: What stands between prompt and answer.

    Returns:
        The description, and a note for the report when the end-of-text id has to serve as padding (else empty).

    Raises:
        UsageError: It puts special tokens anywhere but before and after a text, or has nothing to pad with.
    """
    with _settings_kept(tokenizer):
        prefix, suffix = _affixes(tokenizer)
    pad_id, note = _pad_id(tokenizer)
    top = max([*tokenizer.get_vocab().values(), *prefix, *suffix, pad_id])
    unknown = sorted(set(forms) - set(FORMS))
    if unknown:
        raise UsageError("unknown form", where="--form", expected=", ".join(FORMS), got=", ".join(unknown))
    spec = ConditionSpec(
        forms=tuple(form for form in FORMS if form in forms),
        joiner=joiner,
        prefix=prefix,
        suffix=suffix,
        pad_id=pad_id,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        vocab_size=top + 1,
    )
    return spec, note


@contextlib.contextmanager
def _settings_kept(tokenizer: Any) -> Iterator[None]:
    """A call of a fast tokenizer puts its own truncation and padding away, and they are saved with it."""
    if not tokenizer.is_fast:
        yield
        return
    backend = tokenizer.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    yield
    if truncation is not None:
        backend.enable_truncation(**truncation)
    if padding is not None:
        backend.enable_padding(**padding)


def _pad_id(tokenizer: Any) -> tuple[int, str]:
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id), ""
    if tokenizer.eos_token_id is None:
        raise UsageError(
            "the text tokenizer has no padding token",
            where="--text-tokenizer",
            expected="a pad_token, or an eos_token to pad with",
            do="Set tokenizer.pad_token, save_pretrained() it and give that directory.",
        )
    note = f"the text tokenizer has no padding token: its end-of-text id {tokenizer.eos_token_id} pads"
    return int(tokenizer.eos_token_id), note


def _affixes(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special ids before and after every text: the one split that fits all probe texts."""
    common: set[tuple[tuple[int, ...], tuple[int, ...]]] | None = None
    for text in _PROBES:
        bare = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        full = tuple(tokenizer(text)["input_ids"])
        extra = len(full) - len(bare)
        starts = [at for at in range(extra + 1) if full[at : at + len(bare)] == bare]
        splits = {(full[:at], full[at + len(bare) :]) for at in starts}
        common = splits if common is None else common & splits
    if not common:
        raise UsageError(
            "the text tokenizer does more than put special tokens before and after a text",
            where="--text-tokenizer",
            do="Use a tokenizer whose special tokens do not depend on the text.",
        )
    return min(common)


def _portrait(tokenizer: Any) -> tuple[object, ...]:
    """What must survive saving."""
    ids = [
        (tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in _PROBES
    ]
    sides = (tokenizer.padding_side, tokenizer.truncation_side)
    return ids, sides, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.get_vocab()


def _strip_places(config: Path) -> None:
    """Drop paths of this machine from a tokenizer_config.json; a name on the hub is dropped as well."""
    values = json.loads(read_file(config))
    kept = {
        key: value
        for key, value in values.items()
        if key not in _LOADING_KEYS and not (key.endswith("_file") and isinstance(value, str))
    }
    text = json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    config.write_text(text, encoding="utf-8", newline="\n")
