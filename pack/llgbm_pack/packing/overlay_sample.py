"""Pack one sample of an overlay: its json and texts come from the base, its delta from another cache."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from llgbm_pack.packing.sample_json import columns, describe_delta, describe_texts
from llgbm_pack.packing.sample_parts import (
    Packed,
    condition_encoder,
    encode_conditions,
    input_file,
    read_delta,
    readable,
    stale_notes,
)
from llgbm_pack.plan.overlay import damage_of_base
from llgbm_pack.plan.values import InputFile, Note, PackContext, PlannedSample
from llgbm_pack.sources.texts import Text, choose_texts, read_shared
from llgbm_shards import members as codec
from llgbm_shards.canonical import load_json
from llgbm_shards.errors import CheckpointError, DamageError, HeaderError, PlanError
from llgbm_shards.extents import MemberExtent
from llgbm_shards.sample import MAX_JSON_BYTES
from llgbm_shards.schema import SAMPLE, refuse_faults
from llgbm_shards.shard_writer import PackedSample
from llgbm_shards.shardset import ShardSet
from llgbm_shards.storage import read_errors


class OverlayPacker:
    """Packs samples of an overlay one after another. A text tokenizer that this process does not have is the overlay's."""

    def __init__(self, context: PackContext, tokenizer: Any = None) -> None:
        self._context = context
        self._base = ShardSet(context.zoo, expect_digest=context.base)
        self._conditions = condition_encoder(context, tokenizer)
        self._shard, self._extents = "", dict[str, MemberExtent]()

    def pack(self, planned: PlannedSample) -> Packed:
        """Pack one sample.

        Raises:
            PlanError: It cannot be, and no sample of the base can be left out.
            DamageError: Its json in the base is damaged.
        """
        with damage_of_base(self._base.path):
            extent = self._json_of(planned)
            info = self._read_json(extent)
        try:
            return self._pack(planned, info, extent.size)
        except CheckpointError as error:
            do = f"{error.do} An overlay has every sample of its base.".lstrip()
            where = f"{planned.path}: {error.where}".removesuffix(": ")
            raise PlanError(error.what, where=where, expected=error.expected, got=error.got, do=do) from error

    def _pack(self, planned: PlannedSample, info: dict[str, Any], json_bytes: int) -> Packed:
        members, notes, fallbacks = [], list[str](), 0
        if self._conditions is not None:
            texts, source = self._texts(planned, info)
            encoded = encode_conditions(self._conditions, texts, where=planned.path)
            members.append(encoded.member)
            notes, fallbacks = encoded.notes, encoded.fallbacks
            info |= {"texts": describe_texts(encoded.kept), "text_source": source}
        if self._context.delta_width:
            notes = stale_notes(planned, info["source_digest"]) + notes
            delta = read_delta(planned, self._context.delta_width)
            members.append(codec.encode_delta(delta))
            info |= describe_delta(planned, delta)
        del info["members"]
        members.append(readable(codec.encode_json(info, members)))
        return Packed(
            sample=PackedSample(planned.key, members, columns(info)),
            source_bytes=json_bytes,
            inputs=self._inputs(planned),
            notes=[Note(checkpoint=planned.path, what=what) for what in notes],
            fallbacks=fallbacks,
        )

    def _json_of(self, planned: PlannedSample) -> MemberExtent:
        """Where the sample's json stands in the base; samples come shard by shard."""
        if self._shard != planned.weights.name:
            self._shard = planned.weights.name
            samples = self._base.shard_extents(self._shard)
            self._extents = {sample[-1].key: sample[-1] for sample in samples}
        return self._extents[planned.key]

    def _read_json(self, extent: MemberExtent) -> dict[str, Any]:
        try:
            info = load_json(self._base.read_member(extent), where="json", max_bytes=MAX_JSON_BYTES)
            refuse_faults(info, SAMPLE, "json", "")
        except HeaderError as error:
            raise error.as_(DamageError, shard=extent.shard, key=extent.key, member=error.where) from error
        return dict(info)

    def _texts(self, planned: PlannedSample, info: dict[str, Any]) -> tuple[tuple[Text, ...], str]:
        """The newer texts of its dataset, else those of the base; and where they come from."""
        if not planned.text_files:
            return tuple(Text(text["prompt"], text["answer"]) for text in info["texts"]), info["text_source"]
        found = read_shared(planned.text_files[0]).texts
        context = self._context
        chosen = choose_texts(found, path=planned.path, seed=context.seed, limit=context.max_texts)
        return chosen, "texts-dir"

    def _inputs(self, planned: PlannedSample) -> list[InputFile]:
        """The base is pinned by its digest; these are not."""
        delta = [planned.delta.file] if planned.delta and self._context.delta_width else []
        return [*map(_shared_input, planned.text_files), *map(input_file, delta)]


def _shared_input(path: Path) -> InputFile:
    """The state of a file that many samples are made of; read again only when it changed."""
    with read_errors(CheckpointError, path.name):
        status = path.stat()
    return _version_of(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _version_of(path: Path, _size: int, _mtime_ns: int) -> InputFile:
    return input_file(path)
