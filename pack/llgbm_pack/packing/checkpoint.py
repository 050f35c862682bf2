"""Pack one checkpoint: read its files once, tokenize weights and texts, join its delta, encode the members."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray

from llgbm_loader.tensors import TORCH_DTYPE
from llgbm_pack.packing.sample_json import columns, describe
from llgbm_pack.packing.threads import one_thread
from llgbm_pack.plan.values import InputFile, Note, PackContext, PlannedSample
from llgbm_pack.sources.adapter import Adapter, parse_adapter
from llgbm_pack.sources.adapter_config import public_config, read_config
from llgbm_pack.sources.texts import CheckpointTexts, read_texts
from llgbm_pack.sources.weights_file import Source, SourceReader
from llgbm_pack.tokenize.casts import Casts
from llgbm_pack.tokenize.conditions import ConditionEncoder
from llgbm_pack.tokenize.encode import PieceEncoder
from llgbm_shards import members as codec
from llgbm_shards.canonical import load_json
from llgbm_shards.errors import CheckpointError, HeaderError
from llgbm_shards.layout import BIT_DTYPE, SAFETENSORS_DTYPE
from llgbm_shards.members import EncodedMember
from llgbm_shards.names import TOKENIZER_DIRECTORY
from llgbm_shards.sample import MAX_JSON_BYTES
from llgbm_shards.shard_writer import PackedSample
from llgbm_shards.storage import opened_file, read_errors, read_range
from llgbm_shards.tensors import TensorSpec

#: A json of at most this many bytes is within every limit of the readers.
_SURELY_READABLE: Final = 1 << 20
_HEADER_DTYPE: Final = {SAFETENSORS_DTYPE[name]: dtype for name, dtype in TORCH_DTYPE.items()}


@dataclass(slots=True)
class Packed:
    """One packed checkpoint: what to write, what it was made of, and what is worth telling."""

    sample: PackedSample
    inputs: list[InputFile]  # the weights first
    notes: list[Note]
    fallbacks: int  # texts whose prompt stood in for a missing answer


class Packer:
    """Packs checkpoints one after another; holds the buffers they share.

    Each result uses these buffers, so it must be written before the next checkpoint is packed. Peak memory is
    one source file and its pieces. A text tokenizer that this process does not have is loaded from the set.
    """

    def __init__(self, context: PackContext, tokenizer: Any = None) -> None:
        self.context = context
        layout = context.layout
        self._reader = SourceReader()
        self._encoder = PieceEncoder(layout)
        self._pieces = torch.empty(layout.pieces_shape, dtype=TORCH_DTYPE[layout.dtype])
        self._scales = torch.empty((layout.num_tokens, 2), dtype=torch.float32)
        self._casts = Casts(self._pieces.dtype, layout.chunk)
        self._conditions: ConditionEncoder | None = None
        if context.conditions is not None:
            self._conditions = (
                ConditionEncoder.from_directory(context.out / TOKENIZER_DIRECTORY, context.conditions)
                if tokenizer is None
                else ConditionEncoder(tokenizer, context.conditions)
            )

    @one_thread()
    def pack(self, planned: PlannedSample) -> Packed:
        """Pack one checkpoint; a CheckpointError says why it cannot be."""
        source = self._reader.read(planned.weights)
        config = None if planned.config is None else read_config(planned.config)
        config_name = planned.config.name if planned.config else ""
        adapter = parse_adapter(
            source.head, source.size, planned.weights.name, config, config_name, alpha=self.context.alpha
        )
        self._encode_weights(adapter, source)
        texts = self._read_texts(planned)
        inputs = self._inputs(planned, source, texts)
        notes = self._weight_notes(planned, source)
        members = self._weight_members()
        kept, fallbacks = texts.texts, 0
        if self._conditions is not None:
            encoded = self._conditions.encode(texts.texts, where=planned.path)
            notes += [f"text {drop.index} dropped: {drop.reason}" for drop in encoded.dropped]
            kept, fallbacks = tuple(texts.texts[index] for index in encoded.kept), encoded.fallbacks
            forms = {form: (ragged.ids, ragged.offsets) for form, ragged in encoded.forms.items()}
            members.append(codec.encode_texts(forms))
        delta = self._read_delta(planned)
        if self.context.delta_width:
            members.append(codec.encode_delta(delta))
        kept_config = b"" if config is None else public_config(config)
        if kept_config != (config or b""):
            notes.append(f"{config_name}: a URL with credentials; the set holds it without these")
        members.append(codec.encode_source(source.head, kept_config))
        info = describe(planned, adapter, source, kept, texts.source, delta, self.context.layout)
        members.append(_readable(codec.encode_json(info, members)))
        return Packed(
            sample=PackedSample(planned.key, members, columns(info)),
            inputs=inputs,
            notes=[Note(checkpoint=planned.path, what=what) for what in notes],
            fallbacks=fallbacks,
        )

    def _encode_weights(self, adapter: Adapter, source: Source) -> None:
        layout = self.context.layout
        if adapter.dtype != layout.dtype and not self.context.cast:
            raise CheckpointError(
                "its dtype changed since the plan was made", expected=layout.dtype, got=adapter.dtype
            )
        pairs = {}
        self._casts.begin()
        for name, pair in adapter.pairs.items():
            a, b = _tensor(source.data, pair.a), _tensor(source.data, pair.b)
            pairs[name] = (
                self._casts.cast(pair.a_key, a, across=0),
                self._casts.cast(pair.b_key, b, across=1),
            )
        self._encoder.encode(pairs, self._pieces, self._scales)

    def _weight_notes(self, planned: PlannedSample, source: Source) -> list[str]:
        """A stale delta; pieces whose values are all too small for the set's dtype (values in a larger piece are not told)."""
        stale = planned.delta and planned.delta.source_digest not in ("", source.digest)
        notes = ["stale delta: it was measured on other weights (its source_digest differs)"] if stale else []
        dtype = self.context.layout.dtype
        return notes + [
            f"{key}: {lost} pieces of tiny weights became zeros in {dtype}"
            for key, lost in self._casts.vanished.items()
        ]

    def _weight_members(self) -> list[EncodedMember]:
        layout = self.context.layout
        bits = self._pieces.view(torch.int32 if layout.itemsize == 4 else torch.int16).numpy()
        pieces = codec.encode_pieces(bits.view(BIT_DTYPE[layout.dtype]), layout)
        return [pieces, codec.encode_scales(self._scales.numpy(), layout)]

    def _read_texts(self, planned: PlannedSample) -> CheckpointTexts:
        context = self.context
        return read_texts(
            planned.weights.parent,
            path=planned.path,
            texts_dir=context.texts,
            task=planned.zoo_task,
            probes_file=planned.delta.probes_file if planned.delta else None,
            max_texts=context.max_texts,
            seed=context.seed,
        )

    def _read_delta(self, planned: PlannedSample) -> NDArray[np.float32]:
        """The joined delta; zeros where the policy asked for them, and then has_delta says so."""
        if planned.delta is None:
            return np.zeros(self.context.delta_width, np.float32)
        loaded = planned.delta.load()
        if len(loaded.array) != self.context.delta_width:
            raise CheckpointError(
                "delta changed its width since the plan",
                where=planned.delta.file.name,
                expected=f"{self.context.delta_width}",
                got=f"{len(loaded.array)}",
            )
        return loaded.array

    def _inputs(self, planned: PlannedSample, source: Source, texts: CheckpointTexts) -> list[InputFile]:
        weights = InputFile(
            path=str(planned.weights), size=source.size, mtime_ns=source.mtime_ns, digest=source.digest
        )
        small = [planned.config, *texts.files, planned.delta.file if planned.delta else None]
        return [weights, *(_input(path) for path in small if path is not None)]


def _input(path: Path) -> InputFile:
    with read_errors(CheckpointError, path.name), opened_file(path) as fd:
        status = os.fstat(fd)
        data = read_range(fd, 0, status.st_size)
    return InputFile(
        path=str(path), size=status.st_size, mtime_ns=status.st_mtime_ns, digest=blake3(data).hexdigest()
    )


def _tensor(data: memoryview, spec: TensorSpec) -> torch.Tensor:
    """A view on the file's data section."""
    dtype = _HEADER_DTYPE[spec.dtype]
    count = (spec.end - spec.start) // dtype.itemsize
    return torch.frombuffer(data, dtype=dtype, count=count, offset=spec.start).view(spec.shape)


def _readable(member: EncodedMember) -> EncodedMember:
    """Refuse a json that readers would refuse for its size: too many or too long texts."""
    if member.size > _SURELY_READABLE:
        try:
            load_json(bytes(member.parts[0]), where="json", max_bytes=MAX_JSON_BYTES)
        except HeaderError as error:
            do = "Keep fewer texts of it, with --max-texts."
            raise error.as_(CheckpointError, f"its json would be {error.what}", where="", do=do) from error
    return member
