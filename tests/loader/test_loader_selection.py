"""Which samples: splits, filters, several sets as one; and what opening costs."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

import llgbm_loader
from llgbm_loader import ShardDataset, StreamingLoader
from llgbm_shards.errors import DamageError, UsageError
from support.synthetic import small_layout, write_set


def _keys(path, **options):
    loader = StreamingLoader(path, batch_size=1, fields=["scales"], **options)
    return sorted(key for batch in loader for key in batch["keys"])


def _want(made, keep):
    return sorted(sample.key for sample in made.samples if keep(sample))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("selection") / "set"
    return write_set(path, 24, splits=("train", "val"), shard_samples=5)


def test_splits(made):
    assert _keys(made.path) == _want(made, lambda sample: sample.split == "train")
    assert _keys(made.path, split="val") == _want(made, lambda sample: sample.split == "val")
    assert _keys(made.path, split=None) == _want(made, lambda sample: True)
    with pytest.raises(UsageError, match=r"no sample is chosen.*train, val"):
        _keys(made.path, split="test")


@pytest.mark.parametrize(
    ("filters", "keep"),
    [
        ([("task", "in", ["arc_e"])], lambda s: s.task == "arc_e"),
        ([("task", "not in", ["arc_e"])], lambda s: s.task != "arc_e"),
        ([("task", "=", "copa"), ("has_delta", "=", True)], lambda s: s.task == "copa" and s.has_delta),
        (
            [[("task", "=", "copa")], [("has_delta", "=", False)]],
            lambda s: s.task == "copa" or not s.has_delta,
        ),
        ([("delta_norm", ">", 0.0)], lambda s: s.has_delta),
        ([], lambda s: True),
        ([("rank", "==", 2)], lambda s: True),
        ([("rank", "==", np.int32(2)), ("rank", "in", range(3))], lambda s: True),
        ([("task", "in", np.array(["arc_e", "copa"]))], lambda s: s.task != "boolq"),
        ([("task", "in", pa.chunked_array([["arc_e"], ["copa"]]))], lambda s: s.task != "boolq"),
        ([("task", "in", [np.str_("arc_e"), pa.scalar("copa")])], lambda s: s.task != "boolq"),
    ],
)
def test_filters(made, filters, keep):
    assert _keys(made.path, split=None, filters=filters) == _want(made, keep)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ([("tusk", "=", "arc_e")], "no column 'tusk'"),
        ([("task", "like", "arc")], "not a filter"),
        ([("task", "=")], "not a list of filters"),
        ([("rank", ">", "two")], "not a filter"),
        ([[]], "not a list of filters"),
        ([("task", "=", "no such task")], "no sample is chosen"),
        ([("rank", ">", 10**30)], "not a filter"),
        ([("rank", "in", [10**30])], "not a filter"),
        ([("task", "in", "arc_e")], r"column task: not a value for 'in': expected a list.*'arc_e'"),
        ([("task", "==", ["arc_e"])], r"not a value for '==': expected a bool, a number or a text"),
        ([("task", "in", [["arc_e"]])], "not a value"),
        ([("task", "==", b"arc_e")], "not a value"),
        ([("task", "in", [b"arc_e"])], "not a value"),
        ([("task", "==", None)], "not a value"),
        ([("task", "==", datetime.date(2026, 1, 1))], "not a value"),
        ([("task", "in", {"arc_e": 1})], "not a value"),
        (5, "not a list of filters"),
        ([5], "not a list of filters"),
        ([None], "not a list of filters"),
        ("task", "not a list of filters"),
        ("", "not a list of filters"),
    ],
)
def test_impossible_filters_are_refused(made, filters, message):
    with pytest.raises(UsageError, match=message):
        _keys(made.path, filters=filters)


def test_several_sets_are_one(made, tmp_path):
    other = write_set(tmp_path / "other", 7, prefix="more", seed=1)
    both = sorted(_want(made, lambda sample: sample.split == "train") + _want(other, lambda sample: True))
    assert _keys([made.path, other.path]) == both
    loader = StreamingLoader([made.path, other.path], batch_size=19, verify="full")
    written = made.by_key() | other.by_key()
    (batch,) = list(loader)
    for row, key in enumerate(batch["keys"]):
        assert (batch["scales"][row].numpy() == written[key].scales).all()
    assert len(loader.state_dict()["sets"]) == 2
    with pytest.raises(UsageError, match="the same set twice"):
        _keys([made.path, made.path])


@pytest.mark.parametrize("path", [[], 5, None, [5], b"set", [b"set"]])
def test_no_path_to_a_set(path):
    with pytest.raises(UsageError, match=r"option path: .* a set's directory, or a list of such"):
        StreamingLoader(path)


def test_a_pinned_set(made):
    digest = StreamingLoader(made.path).state_dict()["sets"][0]
    ShardDataset([made.path], expect_digest=[digest])
    with pytest.raises(UsageError, match="another set than expected"):
        ShardDataset(made.path, expect_digest="00" * 32)


@pytest.mark.parametrize("digest", [[], [None], 5, b"00", ["00", "00"], [5]])
def test_a_pin_that_pins_nothing_is_refused(made, digest):
    with pytest.raises(UsageError, match=r"option expect_digest: .*a digest for each of the sets: 1, got"):
        StreamingLoader(made.path, expect_digest=digest)


@pytest.mark.parametrize("split", [["train", "val"], b"train", 5])
def test_a_split_is_one_name(made, split):
    with pytest.raises(UsageError, match=r"option split: .*the name of one split, or None for all"):
        StreamingLoader(made.path, split=split)


def test_a_relative_path_stays_the_same_set_when_the_directory_changes(made, monkeypatch):
    monkeypatch.chdir(made.path.parent)
    loader, dataset = StreamingLoader(made.path.name), ShardDataset(made.path.name)
    monkeypatch.chdir("/")  # as Hydra does, before the first shard is opened
    assert next(iter(loader))["keys"]
    assert dataset[0]["keys"] == made.samples[0].key


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"layout": small_layout(chunk=8)}, "weight layout"),
        ({"layout": small_layout(dtype="float16")}, "weight layout"),
        ({"delta_width": 8}, "delta width"),
        ({"delta_width": 0}, "fields"),
        ({"spec": {"pad_id": 3}}, "text tokenizer"),
    ],
)
def test_sets_that_do_not_fit_are_refused_saying_why(made, tmp_path, other, message):
    made2 = write_set(tmp_path / "other", 5, prefix="more", **other)
    with pytest.raises(UsageError, match=f"do not fit together: they differ in {message}"):
        StreamingLoader([made.path, made2.path])
    if "delta_width" in other:
        StreamingLoader([made.path, made2.path], fields=["tokens"])


def test_a_first_batch_of_a_large_set_takes_few_reads(tmp_path, monkeypatch):
    made, reads, plain = write_set(tmp_path / "set", 3000, shard_samples=300), [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: reads.append(args) or plain(*args))
    loader = StreamingLoader(made.path, batch_size=4, prefetch_batches=2)
    assert not reads, "no shard is read before it is asked for"
    iterator = iter(loader)
    next(iterator)
    iterator.close()
    # Three reads a sample: small members, the body's header, the body. One batch, two ahead, one being begun.
    assert 0 < len(reads) <= 3 * 4 * (1 + 2 + 1)


def test_a_committed_index_that_contradicts_its_record_is_damage(tmp_path, monkeypatch):
    from support import synthetic

    plain = synthetic.encode_index
    monkeypatch.setattr(
        synthetic,
        "encode_index",
        lambda rows, fields: plain(rows | {"offset": [at + (1 << 40) for at in rows["offset"]]}, fields),
    )
    made = write_set(tmp_path / "set", 4)
    with pytest.raises(DamageError, match="sizes do not fit"):
        StreamingLoader(made.path)


def test_public_names_are_pinned_and_lazy():
    assert llgbm_loader.__all__ == ["ShardDataset", "StreamingLoader", "frame_tokens"]
    assert all(hasattr(llgbm_loader, name) for name in llgbm_loader.__all__)
    assert set(llgbm_loader.__all__) <= set(dir(llgbm_loader))
    with pytest.raises(AttributeError):
        llgbm_loader.NoSuchName  # noqa: B018


def test_import_is_cheap_beside_torch():
    script = """
import time, torch, torch.utils.data
start = time.process_time()
from llgbm_loader import StreamingLoader, ShardDataset, frame_tokens
print(time.process_time() - start)
import sys
assert "transformers" not in sys.modules
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    runs = [
        float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=env).stdout)
        for _ in range(2)
    ]
    assert min(runs) < 0.3
