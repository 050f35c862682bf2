"""Index columns in batches and items: lists of str, in step with the keys."""

from __future__ import annotations

import pickle

import pyarrow as pa
import pytest
import torch

from llgbm_loader import ShardDataset, StreamingLoader
from llgbm_shards.errors import UsageError
from llgbm_shards.index import index_schema
from llgbm_shards.shardset import ShardSet
from support.synthetic import write_set

COLUMNS = ("task", "checkpoint")
BATCH_KEYS = (
    *("tokens", "scales", "condition_ids", "attention_mask", "delta", "has_delta", "valid"),
    "keys",
)


@pytest.fixture
def made(tmp_path):
    return write_set(tmp_path / "set", 10, shard_samples=4)


def _index(made, name):
    table = ShardSet(made.path).index()
    return dict(zip(table.column("key").to_pylist(), table.column(name).to_pylist(), strict=True))


def test_columns_stand_beside_the_keys(made):
    batches = list(StreamingLoader(made.path, batch_size=4, columns=COLUMNS, remainder="pad"))
    assert [len(batch["keys"]) for batch in batches] == [4, 4, 4]
    for name in COLUMNS:
        index = {"": "", **_index(made, name)}  # a row that only fills up the batch has no sample
        for batch in batches:
            assert batch[name] == [index[key] for key in batch["keys"]]
    assert batches[-1]["task"][2:] == ["", ""]


def test_every_text_column_of_the_index_can_be_had(made):
    texts = [field.name for field in index_schema(made.record.members) if field.type == pa.string()]
    for batch in StreamingLoader(made.path, batch_size=5, columns=texts, fields=["delta"]):
        for name in texts:
            index = _index(made, name)
            assert batch[name] == [index[key] for key in batch["keys"]]
    assert {*COLUMNS, "base_model"} < set(texts)
    assert not set(texts) & set(BATCH_KEYS)


def test_none_unless_asked_for(made):
    assert set(next(iter(StreamingLoader(made.path, batch_size=5)))) == set(BATCH_KEYS)


def test_of_several_sets_with_filters(tmp_path):
    sets = [write_set(tmp_path / name, 6, prefix=name) for name in ("one", "two")]
    index = {key: task for made in sets for key, task in _index(made, "task").items()}
    paths = [made.path for made in sets]
    options = {"columns": ["task"], "filters": [("task", "!=", "copa")]}
    seen = {}
    for batch in StreamingLoader(paths, batch_size=2, **options):
        seen.update(zip(batch["keys"], batch["task"], strict=True))
    assert seen == {key: task for key, task in index.items() if task != "copa"}


def test_a_damaged_row_keeps_what_the_index_says(made):
    extent = next(iter(ShardSet(made.path).extents(3)))
    path = made.path / extent.shard
    data = bytearray(path.read_bytes())
    data[extent.offset] ^= 1
    path.write_bytes(data)
    options = {"batch_size": 5, "shuffle": False, "on_bad_sample": "skip"}
    batch = next(iter(StreamingLoader(made.path, columns=COLUMNS, **options)))
    assert batch["valid"].tolist() == [True, True, True, False, True]
    for name in COLUMNS:
        assert batch[name] == [_index(made, name)[key] for key in batch["keys"]]


def test_items_of_a_dataset_collate_to_the_batch(made):
    dataset = ShardDataset(made.path, columns=COLUMNS)
    assert isinstance(dataset[0]["task"], str)
    for batch in StreamingLoader(made.path, batch_size=5, columns=COLUMNS):
        rows = [pickle.loads(pickle.dumps(dataset))[key] for key in batch["keys"]]
        collated = torch.utils.data.default_collate(rows)
        assert {name: collated[name] for name in COLUMNS} == {name: batch[name] for name in COLUMNS}
        assert collated.keys() == batch.keys()


@pytest.mark.parametrize("kind", [StreamingLoader, ShardDataset])
@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (("task", "adapter"), r"option columns: .*expected key, split, .*task, base_model, got 'adapter'$"),
        (("rank",), r"option columns: .*expected key, split, .*task, base_model, got 'rank' of int32$"),
        (("has_delta",), r"got 'has_delta' of bool$"),
        ("task", "option columns"),
        ((5,), "option columns"),
        (None, "option columns"),
    ],
)
def test_what_cannot_be_a_column_is_refused(made, kind, columns, told):
    with pytest.raises(UsageError, match=told):
        kind(made.path, columns=columns)


def test_no_object_of_python_a_sample(made):
    selection = ShardDataset(made.path, columns=COLUMNS)._selection
    assert all(isinstance(column, pa.ChunkedArray) for column in selection.columns.values())
