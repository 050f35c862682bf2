"""Committed sets by direct calls of the codec: any number of samples, shards, splits; no zoo, no torch.

``write_set`` returns what went in, so that a test can compare what comes out with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llgbm_shards.canonical import blake3_hex, dump_json
from llgbm_shards.index import encode_index, index_columns
from llgbm_shards.layout import BIT_DTYPE, PADDING_BITS, SAFETENSORS_DTYPE, Layout, Module
from llgbm_shards.members import (
    EncodedMember,
    encode_delta,
    encode_json,
    encode_pieces,
    encode_scales,
    encode_source,
    encode_texts,
    sample_key,
)
from llgbm_shards.names import FORMS, INDEX_NAME, RECORD_NAME, SKIPPED_NAME
from llgbm_shards.record import CommitRecord, FileEntry, ShardEntry
from llgbm_shards.shard_writer import PackedSample, write_shard
from llgbm_shards.tensors import header_bytes

TEXTS_SPEC: dict[str, Any] = {
    "forms": list(FORMS),
    "joiner": "\n",
    "prefix": [1],
    "suffix": [2],
    "pad_id": 0,
    "padding_side": "right",
    "truncation_side": "right",
    "vocab_size": 1000,
}


@dataclass(frozen=True, kw_only=True)
class Written:
    """One sample as it was written."""

    key: str
    split: str
    task: str
    shard: str
    pieces: NDArray[Any]  # bits, (N, r, chunk)
    scales: NDArray[np.float32]
    texts: dict[str, tuple[NDArray[np.int32], NDArray[np.int64]]]
    delta: NDArray[np.float32] | None
    has_delta: bool


@dataclass(kw_only=True)
class SyntheticSet:
    """A set that was written."""

    path: Path
    record: CommitRecord
    samples: list[Written] = field(default_factory=list)

    @property
    def layout(self) -> Layout:
        return self.record.layout

    def by_key(self) -> dict[str, Written]:
        return {sample.key: sample for sample in self.samples}


def small_layout(
    *, dtype: str = "bfloat16", rank: int = 2, chunk: int = 4, modules: int = 2, tokens: int = 3
) -> Layout:
    """A layout of ``modules`` equal modules of ``tokens`` pieces each (all but one of A)."""
    table = tuple(
        Module(
            name=f"model.layers.{number}.self_attn.q_proj",
            layer=number,
            in_features=(tokens - 1) * chunk,
            out_features=chunk,
            first_token=number * tokens,
            tokens_a=tokens - 1,
            tokens_b=1,
        )
        for number in range(modules)
    )
    return Layout(dtype=dtype, rank=rank, chunk=chunk, token_order="sorted", modules=table)


def write_set(
    path: Path,
    samples: int = 12,
    *,
    layout: Layout | None = None,
    shard_samples: int = 5,
    splits: Sequence[str] = ("train",),
    tasks: Sequence[str] = ("arc_e", "boolq", "copa"),
    delta_width: int = 6,
    texts: bool = True,
    zero_std: bool = True,
    seed: int = 0,
    prefix: str = "zoo",
    text_counts: Sequence[int] = (1, 3, 5),
    spec: dict[str, Any] | None = None,
    has_delta: Callable[[int], bool] = lambda number: number % 4 != 3,
) -> SyntheticSet:
    """Write a committed set.

    Args:
        path: Directory, made if absent.
        samples: Number of samples; the i-th goes to split ``splits[i * len(splits) // samples]``.
        layout: Layout; :func:`small_layout` by default.
        shard_samples: Samples of a shard.
        splits: Names of splits, train before val.
        tasks: Tasks, dealt out in turn.
        delta_width: Width of deltas; 0 writes a set without them.
        texts: Whether there are texts.
        zero_std: Whether every third piece has std 0 (and is its mean), and sample 1's last piece is padding.
        seed: Seed of the content.
        prefix: First part of the checkpoints' paths, so that two sets have different keys.
        text_counts: Numbers of texts, dealt out in turn.
        spec: Other values for some of :data:`TEXTS_SPEC`.
        has_delta: Whether sample i has a delta; others get zeros.
    """
    path.mkdir(parents=True, exist_ok=True)
    layout = layout or small_layout()
    rng = np.random.default_rng(seed)
    written: list[Written] = []
    for number in range(samples):
        split = splits[number * len(splits) // samples]
        written.append(
            _make(
                number,
                layout,
                rng,
                split,
                tasks,
                delta_width,
                texts,
                zero_std,
                prefix,
                text_counts,
                has_delta,
            )
        )
    fields = ["pieces", "scales", *(["texts"] if texts else []), *(["delta"] if delta_width else [])]
    fields += ["source", "json"]
    rows: list[dict[str, Any]] = []
    shards: list[ShardEntry] = []
    final: list[Written] = []
    for split in dict.fromkeys(splits):
        of_split = [sample for sample in written if sample.split == split]
        for first in range(0, len(of_split), shard_samples):
            name = f"{split}-{first // shard_samples:06d}.tar"
            group = [
                Written(**{**sample.__dict__, "shard": name})
                for sample in of_split[first : first + shard_samples]
            ]
            packed = (_packed(sample, layout) for sample in group)
            shard = write_shard(path / name, packed, expected_bytes=0)
            assert shard is not None
            size, digest = shard.size, shard.digest
            shards.append(ShardEntry(name=name, split=split, samples=len(group), size=size, digest=digest))
            rows += shard.rows
            final += group
    columns = index_columns(rows, fields)
    files = {INDEX_NAME: encode_index(columns, fields), SKIPPED_NAME: dump_json({"skipped": []})}
    for name, data in files.items():
        (path / name).write_bytes(data)
    text_spec = {**TEXTS_SPEC, **(spec or {})} if texts else {**TEXTS_SPEC, "forms": []}
    record = CommitRecord(
        layout=layout,
        members=tuple(fields),
        texts=text_spec,
        delta_width=delta_width,
        options={"seed": seed},
        shards=tuple(shards),
        files=tuple(
            FileEntry(name=name, size=len(data), digest=blake3_hex(data)) for name, data in files.items()
        ),
    )
    (path / RECORD_NAME).write_bytes(record.to_bytes())
    return SyntheticSet(path=path, record=record, samples=final)


def _make(
    number: int,
    layout: Layout,
    rng: np.random.Generator,
    split: str,
    tasks: Sequence[str],
    delta_width: int,
    texts: bool,
    zero_std: bool,
    prefix: str,
    text_counts: Sequence[int],
    has_delta: Callable[[int], bool],
) -> Written:
    task = tasks[number % len(tasks)]
    values = rng.standard_normal(layout.pieces_shape, np.float32)
    pieces = _bits(values, layout.dtype)
    scales = np.abs(rng.standard_normal((layout.num_tokens, 2), np.float32)) + np.float32(0.01)
    scales = _values(_bits(scales, layout.dtype), layout.dtype)
    if zero_std:
        scales[::3, 1] = 0
        pieces[::3] = _bits(scales[::3, 0], layout.dtype)[:, None, None]
        if number == 1:
            scales[-1], pieces[-1] = 0, PADDING_BITS[layout.dtype]
    there = delta_width > 0 and has_delta(number)
    delta = rng.standard_normal(delta_width, np.float32) if there else np.zeros(delta_width, np.float32)
    return Written(
        key=sample_key(f"{prefix}/{task}/lora_{number}"),
        split=split,
        task=task,
        shard="",
        pieces=pieces,
        scales=scales,
        texts=_make_texts(text_counts[number % len(text_counts)], rng) if texts else {},
        delta=delta if delta_width else None,
        has_delta=there,
    )


def _bits(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """The bits of values in a dtype, cut off rather than rounded."""
    if dtype == "bfloat16":
        return (values.view("<u4") >> 16).astype(BIT_DTYPE[dtype])
    return (values.astype(np.float16) if dtype == "float16" else values.copy()).view(BIT_DTYPE[dtype])


def _values(bits: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    if dtype == "bfloat16":
        return (bits.astype("<u4") << 16).view("<f4")
    return bits.view("<f2" if dtype == "float16" else "<f4").astype("<f4")


def _make_texts(
    count: int, rng: np.random.Generator
) -> dict[str, tuple[NDArray[np.int32], NDArray[np.int64]]]:
    texts = {}
    for form in FORMS:
        lengths = rng.integers(0, 20, count)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        texts[form] = (rng.integers(3, 1000, int(offsets[-1])).astype(np.int32), offsets)
    return texts


def encode_sample(sample: Written, layout: Layout) -> list[EncodedMember]:
    """The members of a sample, in tar order."""
    members = [encode_pieces(sample.pieces, layout), encode_scales(sample.scales, layout)]
    if sample.texts:
        members.append(encode_texts(sample.texts))
    if sample.delta is not None:
        members.append(encode_delta(sample.delta))
    head, digest = _weights_file(sample, layout)
    members.append(encode_source(head, b""))
    info = {
        "checkpoint": sample.key,
        "task": sample.task,
        "base_model": "tiny",
        "rank": layout.rank,
        "alpha": 16.0,
        "scaling": 2.0,
        "lora_dropout": 0.0,
        "task_type": "CAUSAL_LM",
        "modules": [{"name": m.name, "rank": layout.rank, "scaling": 2.0} for m in layout.modules],
        "weights_file": "adapter_model.safetensors",
        "text_source": "name",
        "prompts_task": "",
        "source_digest": digest,
        "exact": True,
        "source_dtype": layout.dtype,
        "has_delta": sample.has_delta,
        "delta": {
            "file": "tiny.npy" if sample.has_delta else "",
            "norm": _norm(sample),
            "matched_by": "path" if sample.has_delta else "",
            **dict.fromkeys(("base_model", "probes", "layer", "dtype"), ""),
        },
        "texts": [{"prompt": "p", "answer": "a"}],
    }
    return [*members, encode_json(info, members)]


def _weights_file(sample: Written, layout: Layout) -> tuple[bytes, str]:
    """The header of the safetensors file that the pieces could be of, and the digest of the file."""
    arrays = {}
    for module in layout.modules:
        first_b = module.first_token + module.tokens_a
        pieces_a = sample.pieces[module.first_token : first_b]
        pieces_b = sample.pieces[first_b : first_b + module.tokens_b]
        for side, pieces, width in (
            ("A", pieces_a, module.in_features),
            ("B", pieces_b, module.out_features),
        ):
            matrix = np.concatenate(list(pieces), axis=1)[:, :width]
            arrays[f"{module.name}.lora_{side}.weight"] = matrix if side == "A" else matrix.T
    dtype = SAFETENSORS_DTYPE[layout.dtype]
    head = header_bytes({name: (dtype, array.shape) for name, array in arrays.items()})
    return head, blake3_hex(head + b"".join(arrays[name].tobytes() for name in sorted(arrays)))


def _packed(sample: Written, layout: Layout) -> PackedSample:
    columns = {
        "split": sample.split,
        "checkpoint": sample.key,
        "task": sample.task,
        "base_model": "tiny",
        "rank": layout.rank,
        "has_delta": sample.has_delta,
        "delta_norm": _norm(sample),
    }
    return PackedSample(sample.key, encode_sample(sample, layout), columns)


def _norm(sample: Written) -> float:
    return 0.0 if sample.delta is None else float(np.linalg.norm(sample.delta))
