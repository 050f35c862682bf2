"""Pack one shard, start to finish; the same code runs in the builder's own process and in worker processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from llgbm_pack.packing.checkpoint import Packer
from llgbm_pack.packing.overlay_sample import OverlayPacker
from llgbm_pack.packing.unfinished import ShardRecord, record_path
from llgbm_pack.plan.values import InputFile, Note, PackContext, ShardJob, Skip
from llgbm_shards.errors import CheckpointError
from llgbm_shards.members import fixed_sizes
from llgbm_shards.names import parity_name
from llgbm_shards.parity import ParityRows
from llgbm_shards.shard_writer import PackedSample, write_shard
from llgbm_shards.storage import storage_errors

#: Called after each checkpoint with the bytes its source had (0 when it was skipped).
OnSample = Callable[[int], None]


def make_packer(context: PackContext, tokenizer: Any = None) -> Packer | OverlayPacker:
    """What packs the samples of a set, or of an overlay."""
    return OverlayPacker(context, tokenizer) if context.base else Packer(context, tokenizer)


class ShardPacker:
    """Packs shards one after another with one set of buffers."""

    def __init__(self, context: PackContext, on_sample: OnSample, tokenizer: Any = None) -> None:
        self._context = context
        self._packer = make_packer(context, tokenizer)
        self._on_sample = on_sample
        self._parity = ParityRows(context.parity) if context.parity else None

    def pack(self, job: ShardJob) -> None:
        """Write the shard and then its record; nothing partial is left of what cannot be written."""
        out = self._context.out
        # Should this shard be packed again because an input changed, its old record must not outlive its bytes.
        with storage_errors(out / job.name):
            record_path(out, job.name).unlink(missing_ok=True)
        run = _Run(self._packer, job, self._on_sample)
        fixed = fixed_sizes(self._context.layout, self._context.delta_width)
        expected = len(job.samples) * sum(fixed.get(field, 0) for field in self._context.members)
        shard = write_shard(out / job.name, run.samples(), expected_bytes=expected, parity=self._parity)
        parity = self._parity.save(out / parity_name(job.name)) if shard and self._parity else None
        if shard is None:
            with storage_errors(out / job.name):
                (out / job.name).unlink(missing_ok=True)
                (out / parity_name(job.name)).unlink(missing_ok=True)
        ShardRecord(
            name=job.name,
            split=job.split,
            plan=job.digest(),
            size=shard.size if shard else 0,
            digest=shard.digest if shard else "",
            parity_size=parity.size if parity else 0,
            parity_digest=parity.digest if parity else "",
            rows=tuple({**row, "split": job.split} for row in shard.rows) if shard else (),
            skipped=tuple(run.skipped),
            notes=tuple(run.notes),
            inputs=tuple(run.inputs),
            matched_by=dict(run.matched_by),
            fallbacks=run.fallbacks,
        ).save(out)


class _Run:
    """What packing the samples of one shard leaves behind besides their bytes."""

    def __init__(self, packer: Packer | OverlayPacker, job: ShardJob, on_sample: OnSample) -> None:
        self._packer, self._job, self._on_sample = packer, job, on_sample
        self.skipped: list[Skip] = []
        self.notes: list[Note] = []
        self.inputs: list[InputFile] = []
        self.matched_by: Counter[str] = Counter()
        self.fallbacks = 0

    def samples(self) -> Iterator[PackedSample]:
        """Pack one checkpoint after another; a faulty one is skipped and never stops the others."""
        for planned in self._job.samples:
            try:
                packed = self._packer.pack(planned)
            except CheckpointError as error:
                self.skipped.append(Skip(planned.path, str(error)))
                self.inputs += [InputFile.unread(path) for path in planned.files]
                self._on_sample(0)
                continue
            yield packed.sample
            self.notes += packed.notes
            self.inputs += packed.inputs
            self.fallbacks += packed.fallbacks
            if planned.matched_by:
                self.matched_by[planned.matched_by] += 1
            self._on_sample(packed.source_bytes)
