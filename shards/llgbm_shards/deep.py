"""The deep check: do the values of a sample whose bytes are right make sense?

Right bytes prove that nothing changed since packing; this proves that what was packed keeps the format's promises.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llgbm_shards.canonical import dump_json
from llgbm_shards.errors import HeaderError
from llgbm_shards.extents import MemberExtent
from llgbm_shards.findings import Finding
from llgbm_shards.layout import PADDING_BITS, Layout
from llgbm_shards.members import SUFFIX, sample_key
from llgbm_shards.npy import vector_norm
from llgbm_shards.sample import Sample, decode_sample
from llgbm_shards.schema import SAMPLE, faults
from llgbm_shards.shardset import ShardSet
from llgbm_shards.texts import check_vocabulary

#: Bits of the exponent: all ones means NaN or infinity.
_EXPONENT: Final = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000}
_QUERIED: Final = ("checkpoint", "task", "base_model", "rank", "has_delta")
#: What is wrong, and with which member.
Fault = tuple[str, str]


class DeepCheck:
    """Judges the values of samples of one set, whose record and index say what they must agree with."""

    def __init__(self, shard_set: ShardSet) -> None:
        self._set = shard_set
        self._layout = shard_set.layout
        self._queries = shard_set.index([*_QUERIED, "delta_norm"])

    def inspect(self, extents: Sequence[MemberExtent], data: Mapping[str, bytes]) -> Iterator[Finding]:
        """List what is wrong with one sample: its members as the index places them, and their bytes, which are right."""
        key, shard = extents[0].key, extents[0].shard
        try:
            sample = decode_sample(key, dict(data), self._set.record)
        except HeaderError as error:
            member, _, part = error.where.partition(" ")
            what = f"{part}: {error.summary}" if part else error.summary
            yield Finding(shard=shard, key=key, member=member.rstrip(":"), what=what)
            return
        for member, what in self._faults(sample, extents, data):
            yield Finding(shard=shard, key=key, member=SUFFIX[member], what=what)

    def _faults(
        self, sample: Sample, extents: Sequence[MemberExtent], data: Mapping[str, bytes]
    ) -> Iterator[Fault]:
        wrong = [str(fault) for fault in faults(sample.json, SAMPLE, "json", "")]
        yield from (("json", what) for what in wrong)
        if wrong:
            return  # What follows relies on the json's form.
        yield from _json(sample, extents, data["json"], self._layout)
        row = self._queries.slice(self._set.number(sample.key), 1).to_pylist()[0]
        for name in _QUERIED:
            if sample.json[name] != row[name]:
                yield "json", f"{name} is not the index's: expected {row[name]!r}, got {sample.json[name]!r}"
        if row["delta_norm"] != sample.json["delta"]["norm"]:
            norms = f"expected {row['delta_norm']!r}, got {sample.json['delta']['norm']!r}"
            yield "json", f"delta.norm is not the index's: {norms}"
        if sample.pieces is not None and sample.scales is not None:
            yield from _weights(sample.pieces, sample.scales, _ranks(sample.json), self._layout)
        yield from _texts(sample, self._set.record.texts)
        if sample.delta is not None or not self._set.record.base:  # An overlay's json may tell of its base's.
            yield from _delta(sample)


def _json(sample: Sample, extents: Sequence[MemberExtent], raw: bytes, layout: Layout) -> Iterator[Fault]:
    info = sample.json
    if dump_json(info) != raw:
        yield "json", "not canonical JSON"
    if sample_key(info["checkpoint"]) != sample.key:
        yield "json", f"the key is not that of its checkpoint: expected {sample_key(info['checkpoint'])}"
    listed = [(row["name"], row["size"], row["digest"]) for row in info["members"]]
    others = [(SUFFIX[one.field], one.size, one.blake3) for one in extents if one.field != "json"]
    if listed != others:
        yield "json", f"its list of members is not the index's: expected {others}, got {listed}"
    names = [module["name"] for module in info["modules"]]
    if names != [module.name for module in layout.modules]:
        yield "json", "its modules are not those of the set, in their order"
    if max(_ranks(info), default=0) != info["rank"] or not 0 < info["rank"] <= layout.rank:
        yield "json", f"rank: expected the largest of its modules, at most {layout.rank}, got {info['rank']}"


def _ranks(info: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(module["rank"] for module in info["modules"])


@functools.lru_cache(maxsize=16)
def padding_mask(layout: Layout, ranks: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where pieces hold padding: (N, r, chunk), true in absent modules (rank 0), above a module's rank, past its width."""
    mask = np.zeros(layout.pieces_shape, np.bool_)
    for module, rank in zip(layout.modules, ranks, strict=True):
        middle = module.first_token + module.tokens_a
        end = middle + module.tokens_b
        mask[module.first_token : end, rank:] = True
        for last, width in ((middle - 1, module.in_features), (end - 1, module.out_features)):
            if width % layout.chunk:
                mask[last, :, width % layout.chunk :] = True
    mask.setflags(write=False)
    return mask


def _weights(
    pieces: NDArray[Any], scales: NDArray[np.float32], ranks: tuple[int, ...], layout: Layout
) -> Iterator[Fault]:
    if len(ranks) != len(layout.modules) or not all(0 <= rank <= layout.rank for rank in ranks):
        return  # Said by the check of the json.
    mask = padding_mask(layout, ranks)
    exponent = _EXPONENT[layout.dtype]
    is_padding = pieces == PADDING_BITS[layout.dtype]
    yield from _count("pieces", "padding is not the one NaN pattern", mask & ~is_padding)
    yield from _count("pieces", "NaN or infinity outside padding", ~mask & ((pieces & exponent) == exponent))
    if not np.isfinite(scales).all():
        yield from _count("scales", "not finite", ~np.isfinite(scales))
        return
    yield from _count("scales", "negative std", scales[:, 1] < 0)
    yield from _count("scales", f"not a {layout.dtype} value", ~_fits(scales, layout.dtype))
    absent = mask.all(axis=(1, 2))
    yield from _count("scales", "not (0, 0) for an absent module", (scales != 0).any(axis=1) & absent)
    constant = scales[:, 1] == 0
    other = np.zeros(pieces.shape, np.bool_)
    other[constant] = _widened(pieces[constant], layout.dtype) != scales[constant, 0][:, None, None]
    yield from _count("pieces", "not the mean in a piece of std 0", other & ~mask)


def _widened(bits: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """The float32 values of a dtype's bits."""
    if dtype == "bfloat16":
        return (bits.astype("<u4") << 16).view("<f4")
    return bits.view("<f2" if dtype == "float16" else "<f4").astype("<f4")


def _fits(scales: NDArray[np.float32], dtype: str) -> NDArray[np.bool_]:
    """Whether each scale is a value of the source's dtype, widened."""
    if dtype == "bfloat16":
        return np.asarray((scales.view("<u4") & 0xFFFF) == 0)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return np.asarray(scales.astype(np.float16).astype(np.float32) == scales)
    return np.ones(scales.shape, np.bool_)


def _count(member: str, what: str, wrong: NDArray[np.bool_]) -> Iterator[Fault]:
    """A fault with the number of values it concerns and the first of their tokens."""
    if wrong.any():
        token = int(np.argwhere(wrong)[0][0])
        yield member, f"{what}: {int(wrong.sum())} values, the first in token {token}"


def _texts(sample: Sample, spec: Mapping[str, Any]) -> Iterator[Fault]:
    """Ids and counts; the offsets were proven when the member was decoded."""
    for form, (ids, offsets) in (sample.texts or {}).items():
        try:
            check_vocabulary(ids, where=form, vocab_size=spec["vocab_size"])
        except HeaderError as error:
            yield "texts", f"{form}: {error.summary}"
            continue
        got, want = len(offsets) - 1, len(sample.json["texts"])
        if got != want:
            yield "texts", f"{form}: expected {want} texts, as in the json, got {got}"


def _delta(sample: Sample) -> Iterator[Fault]:
    stated = sample.json["delta"]["norm"]
    if sample.delta is None or not sample.json["has_delta"]:
        if stated != 0 or (sample.delta is not None and sample.delta.any()):
            yield "delta", "not zero, though the json says that there is no delta"
        return
    if not np.isfinite(sample.delta).all():
        yield from _count("delta", "not finite", ~np.isfinite(sample.delta))
        return
    norm = vector_norm(sample.delta)
    if norm != stated:
        yield "delta", f"its norm is not the json's: expected {stated!r}, got {norm!r}"
