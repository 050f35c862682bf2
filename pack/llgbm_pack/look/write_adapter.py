"""write_adapter: tokens that a generator made, as an adapter directory that PEFT loads."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llgbm_loader.frame import unframe
from llgbm_loader.tensors import bits, require_values
from llgbm_pack.look.peft_config import generated_config
from llgbm_pack.look.restore import Blank, blank_of
from llgbm_pack.sources.directory import CONFIG, WEIGHTS
from llgbm_pack.tokenize.decode import decode_body
from llgbm_shards.arguments import local_path, require
from llgbm_shards.errors import DamageError, UsageError
from llgbm_shards.layout import BIT_DTYPE, Layout
from llgbm_shards.out_directory import refuse_in_set
from llgbm_shards.sample import Sample
from llgbm_shards.shardset import ShardSet
from llgbm_shards.storage import Buffer, fsync_directory, make_directory, new_file, storage_errors, write_all

_LIKE = "(set, sample): a ShardSet or the path of one, and a key or number in it"


def write_adapter(tokens: Tensor, dest: str | os.PathLike[str], *, like: Any) -> Path:
    """Write generated tokens as ``adapter_model.safetensors`` and ``adapter_config.json``.

    Modules, ranks, keys, dtype and config are those of a packed sample; its weights do not matter. Mean and std are
    decoded from the frame of the tokens. The weights are ``body * std + mean``, computed in float64 and rounded once to
    the set's dtype. A token whose body is NaN all over, as DnD shows a piece of zero std, becomes its mean; what the
    sample pads (absent modules, rows beyond a module's rank, columns beyond its width) is left out.

    Args:
        tokens: (N, r+2, chunk+2) floats, as a loader with ``frame="dnd"`` or ``"fp32"`` gives them.
        dest: A directory that is new or empty, and not in a set.
        like: ``(set, sample)``: a :class:`llgbm_shards.ShardSet` or the path of one, and a key or number in it.

    Returns:
        The directory.

    Raises:
        UsageError: Tokens of another shape or with values that are not finite; ``like`` is no such pair; ``dest`` holds
            files.
        DamageError: The sample is not what was written.
        StorageError: The set cannot be read, or ``dest`` cannot be written.
    """
    require_values("tokens", tokens)
    target = local_path("dest", dest)
    require(isinstance(like, tuple | list) and len(like) == 2, "like", _LIKE, like)
    opened = like[0] if isinstance(like[0], ShardSet) else ShardSet(like[0])
    opened.require_weights()
    if tuple(tokens.shape) != opened.layout.tokens_shape:
        expected, got = f"{opened.layout.tokens_shape}", f"{tuple(tokens.shape)}"
        raise UsageError("tokens do not fit the set", where="tokens", expected=expected, got=got)
    refuse_in_set(target, "DEST")
    with storage_errors(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError("the destination is not empty", where=str(target), do="Choose another DEST.")
    sample = opened.read_sample(like[1])
    if sample.source is None:
        raise DamageError("the sample has no source", key=sample.key)
    head, config = sample.source
    blank = blank_of(head, sample.json, opened.layout)
    files: dict[str, list[Buffer]] = {
        WEIGHTS: [blank.head, _values(tokens, blank, sample, opened.layout)],
        CONFIG: [config or generated_config(sample.json)],
    }
    _write(target, files)
    return target


def _values(tokens: Tensor, blank: Blank, sample: Sample, layout: Layout) -> memoryview:
    """The data section of the weights file."""
    data = np.empty(blank.size - len(blank.head), np.uint8)
    values = data.view(BIT_DTYPE[layout.dtype])
    ranks = {module["name"]: module["rank"] for module in sample.json["modules"]}
    tokens = tokens.detach().cpu()
    body, scales = unframe(tokens)
    constant = body.isnan().flatten(1).all(1) & ~tokens[:, -1].isnan().any(1)
    body = torch.where(constant[:, None, None], torch.zeros_like(body), body)
    _refuse_empty_frames(tokens, blank)
    pairs = decode_body(body, scales, layout, ranks=ranks)
    for place in blank.places:
        for target, matrix in zip(blank.sides(place, values), pairs[place.module.name], strict=True):
            if lost := int((~matrix.isfinite()).sum()):
                got = f"{lost} of {matrix.numel()} values are not finite"
                raise UsageError("no adapter", where=f"tokens of {place.module.name}", got=got)
            target[...] = bits(matrix).numpy().view(values.dtype)
    return data.data


def _refuse_empty_frames(tokens: Tensor, blank: Blank) -> None:
    """A frame of NaN is that of an absent module; the sample has this one."""
    lost = (tokens[:, -2:].isnan().flatten(1).any(1) | tokens[:, :, -2:].isnan().flatten(1).any(1)).tolist()
    for place in blank.places:
        module = place.module
        tokens_of = range(module.first_token, module.first_token + module.tokens_a + module.tokens_b)
        if missing := [number for number in tokens_of if lost[number]]:
            got = f"NaN in the frame of {len(missing)} of {len(tokens_of)} tokens"
            raise UsageError("no adapter", where=f"tokens of {module.name}", got=got)


def _write(target: Path, files: dict[str, list[Buffer]]) -> None:
    """Both files durably, or none."""
    whole = target.resolve()
    temporary = whole.parent / f".{whole.name}-{os.getpid()}-{secrets.token_hex(4)}"
    with storage_errors(target):
        make_directory(whole.parent)
        temporary.mkdir()
        try:
            for name, parts in files.items():
                with new_file(temporary / name) as fd:
                    write_all(fd, parts)
            temporary.rename(whole)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_directory(whole.parent)
