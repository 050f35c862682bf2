"""ShardDataset: random access by number or key, for ``torch.utils.data.DataLoader`` and its samplers."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, SupportsIndex

import torch
from torch.utils.data import Dataset

from llgbm_loader.batch import BatchPlan
from llgbm_loader.collate import ByName
from llgbm_loader.options import Filters, Overlays, Paths, ReadOptions, SelectOptions, from_arguments
from llgbm_loader.reader import SampleReader
from llgbm_shards.arguments import as_index, shown, whole_number
from llgbm_shards.errors import UsageError
from llgbm_shards.layout import Layout

if TYPE_CHECKING:
    from llgbm_loader.selection import Selection

#: In place of the number of a key that more than one set has.
_AMBIGUOUS: Final = -1


class ShardDataset(Dataset[dict[str, Any]]):
    """The samples of a shard set, by number or key. Each is a dict like one row of a StreamingLoader's batch.

    ``torch.utils.data.default_collate`` makes of rows exactly such a batch, but not of rows with
    ``padding="longest"``: their lengths differ, so a ``collate_fn`` of your own has to join them. Picklable, and right
    in forked and spawned workers: shards are opened when first read, by each process and thread for itself. The set stays
    the one that was opened here: another in its place is damage, also for a worker.

    Args:
        path: A set's directory, or several, which are taken as one.
        split: Samples of this split; None for all.
        fields: Some of ``tokens``, ``weights``, ``scales``, ``condition``, ``delta``; None for all the set has but
            ``weights``.
        overlay: An overlay of the set, whose deltas or texts stand in place of the set's own, or None; of several sets,
            a list with one for each.
        filters: Conditions on index columns in pyarrow's form.
        columns: Text columns of the index that go into each sample as str, e.g. ``("task", "checkpoint")``.
        view: Of ``weights``: ``pieces``, ``modules``, ``layers`` or ``flat``.
        frame: ``dnd``, ``fp32`` or ``none``.
        zero_std: ``nan`` or ``zeros``.
        dtype: dtype of tokens and weights; None for the stored one.
        form: ``prompt``, ``answer``, ``prompt_answer`` or ``mix``.
        mix: Under ``mix``, the probability of prompt_answer, for each text by itself.
        num_texts: None takes the first text; K draws K.
        max_text_length: Ids of a condition at most.
        padding: ``max_length``, or ``longest`` of the sample's own texts.
        verify: ``full`` or ``off``.
        seed: Seed of the draws.
        expect_digest: Digest that the set must have; one for each of several sets.

    Raises:
        UsageError: An option cannot be used, or not with this set; no sample is chosen; one would not fit the memory
            of this machine.
        DamageError: A set is unfinished or damaged.
        StorageError: A set cannot be read.
    """

    def __init__(
        self,
        path: Paths,
        *,
        split: str | None = "train",
        fields: Sequence[str] | None = None,
        overlay: Overlays = None,
        filters: Filters | None = None,
        columns: Sequence[str] = (),
        view: str = "pieces",
        frame: str = "dnd",
        zero_std: str = "nan",
        dtype: torch.dtype | None = torch.float32,
        form: str = "prompt",
        mix: float = 0.2,
        num_texts: int | None = None,
        max_text_length: int = 512,
        padding: str = "max_length",
        verify: str = "full",
        seed: int = 0,
        expect_digest: str | Sequence[str] | None = None,
    ) -> None:
        self._options = from_arguments(ReadOptions, locals())
        if verify == "first-epoch":
            raise UsageError(
                "a map-style dataset has no epochs", where="option verify", expected="full or off"
            )
        # Imported here: pyarrow takes half of the time that importing the loader may take.
        from llgbm_loader.selection import select  # noqa: PLC0415

        self._selection: Selection = select(
            SelectOptions.of(path, overlay, split, filters, expect_digest, columns), self._options.fields
        )
        self._epoch = 0
        self._prepare()

    def _prepare(self) -> None:
        self._plan = BatchPlan.of(self._selection, self._options, on_device=False, pinned=False)
        self._plan.refuse_too_large(rows=1, batches=1)
        self._local = threading.local()
        self._numbers: dict[str, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_options", "_selection", "_epoch")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __len__(self) -> int:
        return len(self._selection)

    @property
    def keys(self) -> list[str]:
        """Keys in number order."""
        keys: list[str] = self._selection.keys.to_pylist()
        return keys

    @property
    def layout(self) -> Layout:
        """Layout of the bodies: dtype, rank, chunk, token order, module table."""
        return self._selection.common.layout

    def set_epoch(self, epoch: int) -> None:
        """Draw texts and forms as StreamingLoader does in this epoch. Workers learn of it when they start."""
        self._epoch = whole_number("epoch", epoch, 0)

    def __getitem__(self, sample: SupportsIndex | str) -> dict[str, Any]:
        """One sample, by number (negative: from the end) or key.

        Raises:
            IndexError: No such number.
            UsageError: No such key, or several sets have it; or neither a number nor a key.
            DamageError: With shard, key and member.
        """
        number = self._number(sample)
        plan = self._plan
        nbytes = plan.buffer_bytes(1)
        buffer = torch.empty(nbytes, dtype=torch.uint8).numpy() if nbytes else None
        host = plan.allocate(1, buffer)
        host.fill(0, number)
        self._reader().read(number, self._epoch, host.row(0), verify=self._options.verify == "full")
        row: dict[str, Any] = plan.present({name: tensor[0] for name, tensor in host.finish().items()})
        nested = {name: ByName(value) for name, value in row.items() if isinstance(value, dict)}
        return {**row, **nested, **{name: texts[0] for name, texts in host.lists.items()}}

    def _number(self, sample: SupportsIndex | str) -> int:
        if isinstance(sample, str):
            return self._number_of_key(sample)
        number = as_index(sample)
        if number is None:
            raise UsageError(
                "no such sample", where="sample", expected="a number or a key", got=shown(sample)
            )
        if not -len(self) <= number < len(self):
            raise IndexError(f"no sample {number}: there are {len(self)}")
        return number % len(self)

    def _number_of_key(self, key: str) -> int:
        if self._numbers is None:
            keys = self.keys
            self._numbers = {name: number for number, name in enumerate(keys)}
            if len(self._numbers) < len(keys):
                counts = Counter(keys)
                self._numbers.update({name: _AMBIGUOUS for name in keys if counts[name] > 1})
        number = self._numbers.get(key)
        if number is None or number == _AMBIGUOUS:
            what = "no such sample" if number is None else "several sets have this key"
            raise UsageError(what, got=f"{key!r:.200}", do="`inspect` lists keys; numbers are always unique.")
        return number

    def _reader(self) -> SampleReader:
        # A forked worker opens its own, as a spawned one does; what it inherited goes with its copy of the reader.
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.reader = SampleReader(
                self._selection, self._plan.tokens, self._plan.weights, self._plan.conditions
            )
            self._local.pid = os.getpid()
        reader: SampleReader = self._local.reader
        return reader
