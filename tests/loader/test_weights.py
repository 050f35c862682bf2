"""The field ``weights`` in batches: every view, beside tokens, on the host and on a device, in damaged sets."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

from llgbm_loader import ShardDataset, StreamingLoader
from llgbm_loader.views import VIEWS, WeightView
from llgbm_shards.errors import DamageError, UsageError
from llgbm_shards.shardset import ShardSet
from support.fake_device import FakeOps
from support.synthetic import small_layout, write_set

_TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@pytest.fixture(params=["bfloat16", "float32"])
def made(tmp_path, request):
    # Eleven layers: 10 comes before 2 in token order.
    return write_set(tmp_path / "set", 9, layout=small_layout(dtype=request.param, modules=11, tokens=5))


def wanted(made, keys, view, dtype):
    """Weights and ranks of a batch, from the pieces that were written."""
    written = made.by_key()
    stored = torch.stack(
        [
            torch.from_numpy(written[key].pieces.view(f"<i{made.layout.itemsize}").copy()).view(
                _TORCH[made.layout.dtype]
            )
            for key in keys
        ]
    )
    whole = WeightView(made.layout, view)
    return whole.present(whole.gather(stored).to(dtype), whole.ranks(stored))


def equal(one, other):
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(equal, one, other))
    same = torch.equal(one.isnan(), other.isnan()) if one.is_floating_point() else True
    return one.dtype == other.dtype and same and torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, None])
@pytest.mark.parametrize("fields", [["weights"], ["weights", "tokens", "delta"]])
@pytest.mark.parametrize("verify", ["full", "off"])
@pytest.mark.parametrize("frame", ["dnd", "none"])
@pytest.mark.parametrize("device", ["host", "fake"])
def test_batches_hold_the_weights(made, monkeypatch, view, dtype, fields, verify, frame, device):
    monkeypatch.setattr("llgbm_loader.reader.BLOCK_BYTES", 100)
    monkeypatch.setattr("llgbm_loader.weights._WIDENED_BYTES", 48)
    if device == "fake":
        monkeypatch.setattr("llgbm_loader.stream.device_ops", lambda device: FakeOps())
    options = {"fields": fields, "dtype": dtype, "verify": verify, "frame": frame}
    loader = StreamingLoader(made.path, batch_size=3, view=view, **options)
    others = [name for name in fields if name != "weights"]
    plain = StreamingLoader(made.path, batch_size=3, **{**options, "fields": others}) if others else None
    batches = list(loader)
    assert len(batches) == 3
    for batch in batches:
        expected = wanted(made, batch["keys"], view, dtype or _TORCH[made.layout.dtype])
        assert equal(batch["weights"], expected["weights"])
        assert equal(batch["ranks"], expected["ranks"])
        assert set(batch) >= {"weights", "ranks", "valid", "keys"}
        assert ("scales" in batch) == ("scales" in fields)
    for batch, other in zip(batches, plain or (), strict=bool(plain)):
        assert equal(batch["tokens"], other["tokens"])
        assert torch.equal(batch["delta"], other["delta"])


@pytest.mark.parametrize("view", VIEWS)
def test_the_dataset_gives_rows_of_the_same(made, view):
    dataset = pickle.loads(pickle.dumps(ShardDataset(made.path, fields=["weights"], view=view)))
    loader = StreamingLoader(made.path, batch_size=9, fields=["weights"], view=view, shuffle=False)
    batch = next(iter(loader))
    for number in range(len(dataset)):
        row = dataset[number]
        assert equal(row["weights"], _row(batch["weights"], number))
        assert equal(row["ranks"], _row(batch["ranks"], number))
    joined = next(iter(torch.utils.data.DataLoader(dataset, batch_size=9)))
    assert equal(joined["weights"], batch["weights"])


@pytest.mark.parametrize("view", ["modules", "layers"])
def test_a_worker_sends_weights_in_few_storages(made, view):
    """Each takes a file descriptor: those of hundreds of modules are more than a process may have, and a hang."""
    dataset = ShardDataset(made.path, fields=["weights"], view=view)
    for workers in (0, 1):
        batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=workers)))
        for name in ("weights", "ranks"):
            assert type(batch[name]) is dict
            assert len({leaf.untyped_storage().data_ptr() for leaf in _leaves(batch[name])}) == 1


def _row(value, number):
    if isinstance(value, dict):
        return {name: _row(inner, number) for name, inner in value.items()}
    return tuple(_row(inner, number) for inner in value) if isinstance(value, tuple) else value[number]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("device", ["host", "fake"])
def test_rows_without_a_sample_are_zeros_of_rank_zero(tmp_path, monkeypatch, view, device):
    if device == "fake":
        monkeypatch.setattr("llgbm_loader.stream.device_ops", lambda device: FakeOps())
    made = write_set(tmp_path / "set", 5, layout=small_layout(modules=3))
    extent = ShardSet(made.path).extents(1)[0]
    with (made.path / extent.shard).open("r+b") as file:
        file.seek(extent.offset + extent.size - 1)
        last = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(DamageError, match=extent.key):
        list(StreamingLoader(made.path, batch_size=3, fields=["weights"], view=view, shuffle=False))
    options = {"shuffle": False, "remainder": "pad", "on_bad_sample": "skip"}
    loader = StreamingLoader(made.path, batch_size=3, fields=["weights", "tokens"], view=view, **options)
    for batch in loader:
        invalid = ~batch["valid"]
        assert invalid.any()
        for values in _leaves(batch["weights"]), _leaves(batch["ranks"]), [batch["tokens"]]:
            assert all(not value[invalid].count_nonzero() for value in values)


def _leaves(value):
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in _leaves(inner)]
    return [leaf for inner in value for leaf in _leaves(inner)] if isinstance(value, tuple) else [value]


def test_weights_are_asked_for_and_never_rounded(tmp_path):
    made = write_set(tmp_path / "set", 4)
    assert "weights" not in next(iter(StreamingLoader(made.path, batch_size=2)))
    with pytest.raises(UsageError, match=r"weights would be rounded.*got torch.float16"):
        StreamingLoader(made.path, fields=["weights"], dtype=torch.float16)
    with pytest.raises(UsageError, match=r"option view: .*'pieces', 'modules', 'layers', 'flat'"):
        StreamingLoader(made.path, fields=["weights"], view="tensors")


def test_a_buffer_of_weights_is_kept_while_one_matrix_of_it_is(tmp_path):
    made = write_set(tmp_path / "set", 24, layout=small_layout(modules=3))
    loader = StreamingLoader(made.path, batch_size=2, fields=["weights"], view="modules", prefetch_batches=1)
    kept, copies = [], []
    for batch in loader:
        one = next(iter(batch["weights"].values()))[1]
        kept.append(one)
        copies.append(one.clone())
        del batch
    assert all(map(torch.equal, kept, copies))


def test_sets_of_other_layouts_are_told_by_what_differs(tmp_path):
    layout = small_layout(modules=3)
    last = dataclasses.replace(layout.modules[-1], name="model.layers.2.self_attn.v_proj")
    others = {
        "rank.*expected 2, got 3": dataclasses.replace(layout, rank=3),
        "the number of modules.*expected 3, got 2": small_layout(modules=2),
        "a module.*layers.2.self_attn.q_proj.*layers.2.self_attn.v_proj": dataclasses.replace(
            layout, modules=(*layout.modules[:-1], last)
        ),
    }
    write_set(tmp_path / "set", 4, layout=layout)
    for number, (said, other) in enumerate(others.items()):
        made = write_set(tmp_path / f"{number}", 4, layout=other, prefix="other")
        with pytest.raises(UsageError, match=f"they differ in weight layout: {said}"):
            StreamingLoader([tmp_path / "set", made.path], fields=["weights"])
