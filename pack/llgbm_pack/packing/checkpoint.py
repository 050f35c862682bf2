"""Pack one checkpoint: read its files once, tokenize weights and texts, join its delta, encode the members."""

from __future__ import annotations

from typing import Any, Final

import torch

from llgbm_loader.tensors import TORCH_DTYPE, bits
from llgbm_pack.packing.sample_json import columns, describe
from llgbm_pack.packing.sample_parts import (
    Packed,
    condition_encoder,
    encode_conditions,
    input_file,
    read_delta,
    readable,
    stale_notes,
)
from llgbm_pack.packing.threads import one_thread
from llgbm_pack.plan.values import InputFile, Note, PackContext, PlannedSample
from llgbm_pack.sources.adapter import Adapter, parse_adapter
from llgbm_pack.sources.adapter_config import public_config, read_config
from llgbm_pack.sources.texts import CheckpointTexts, read_texts
from llgbm_pack.sources.weights_file import Source, SourceReader
from llgbm_pack.tokenize.casts import Casts
from llgbm_pack.tokenize.encode import PieceEncoder
from llgbm_shards import members as codec
from llgbm_shards.errors import CheckpointError
from llgbm_shards.layout import BIT_DTYPE, SAFETENSORS_DTYPE
from llgbm_shards.members import EncodedMember
from llgbm_shards.shard_writer import PackedSample
from llgbm_shards.tensors import TensorSpec

_HEADER_DTYPE: Final = {SAFETENSORS_DTYPE[name]: dtype for name, dtype in TORCH_DTYPE.items()}


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
        self._conditions = condition_encoder(context, tokenizer)

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
            encoded = encode_conditions(self._conditions, texts.texts, where=planned.path)
            notes += encoded.notes
            kept, fallbacks = encoded.kept, encoded.fallbacks
            members.append(encoded.member)
        delta = read_delta(planned, self.context.delta_width)
        if self.context.delta_width:
            members.append(codec.encode_delta(delta))
        kept_config = b"" if config is None else public_config(config)
        if kept_config != (config or b""):
            notes.append(f"{config_name}: a URL with credentials; the set holds it without these")
        members.append(codec.encode_source(source.head, kept_config))
        info = describe(planned, adapter, source, kept, texts, delta, self.context.layout)
        members.append(readable(codec.encode_json(info, members)))
        return Packed(
            sample=PackedSample(planned.key, members, columns(info)),
            source_bytes=source.size,
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
        dtype = self.context.layout.dtype
        return stale_notes(planned, source.digest) + [
            f"{key}: {lost} pieces of tiny weights became zeros in {dtype}"
            for key, lost in self._casts.vanished.items()
        ]

    def _weight_members(self) -> list[EncodedMember]:
        layout = self.context.layout
        pieces = codec.encode_pieces(bits(self._pieces).numpy().view(BIT_DTYPE[layout.dtype]), layout)
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

    def _inputs(self, planned: PlannedSample, source: Source, texts: CheckpointTexts) -> list[InputFile]:
        weights = InputFile(
            path=str(planned.weights), size=source.size, mtime_ns=source.mtime_ns, digest=source.digest
        )
        small = [planned.config, *texts.files, planned.delta.file if planned.delta else None]
        return [weights, *(input_file(path) for path in small if path is not None)]


def _tensor(data: memoryview, spec: TensorSpec) -> torch.Tensor:
    """A view on the file's data section."""
    dtype = _HEADER_DTYPE[spec.dtype]
    count = (spec.end - spec.start) // dtype.itemsize
    return torch.frombuffer(data, dtype=dtype, count=count, offset=spec.start).view(spec.shape)
