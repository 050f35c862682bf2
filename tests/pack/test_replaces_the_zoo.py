"""A set in place of its zoo: the zoo is deleted, the set damaged, repaired by itself, checked, and the zoo written again."""

from __future__ import annotations

import json
import shutil

import numpy as np

from llgbm_pack import DeltaCache
from llgbm_shards import ShardSet
from llgbm_shards.parity import stretch
from support.commands import here
from support.tiny_tokenizers import save_tiny
from support.tiny_zoo import tree, write_deltas, write_zoo

GROUPS = 2


def build(zoo, out, root):
    return here("build", zoo, out, "--deltas", root / "deltas", "--text-tokenizer", root / "tokenizer",
                "--parity", GROUPS, "--shard-bytes", 8000, "--split", "val=0.4", "--workers", 1, "-q")  # fmt: skip


def spoil_one_sample_of_each_group(out):
    opened = ShardSet(out)
    for shard in opened.record.shards:
        data = bytearray((out / shard.name).read_bytes())
        for sample in list(opened.shard_extents(shard.name))[:GROUPS]:
            for extent in sample:
                data[extent.offset + extent.size // 2] ^= 1
            assert stretch(sample)[1] > 0
        (out / shard.name).write_bytes(data)


def test_the_zoo_comes_back_from_a_damaged_set(tmp_path):
    paths = write_zoo(tmp_path / "zoo", 9, prompts=("What is it?", "Größe 12 🙂"))
    write_deltas(tmp_path / "deltas", paths)
    save_tiny("byt5", tmp_path / "tokenizer")
    assert build(tmp_path / "zoo", tmp_path / "out", tmp_path).code == 0
    zoo, sound = tree(tmp_path / "zoo"), tree(tmp_path / "out")
    deltas = DeltaCache(tmp_path / "deltas").get_all_deltas()
    shutil.rmtree(tmp_path / "zoo")
    shutil.rmtree(tmp_path / "deltas")

    spoil_one_sample_of_each_group(tmp_path / "out")
    assert here("check", tmp_path / "out").code == 1
    assert here("repair", tmp_path / "out").code == 0
    assert tree(tmp_path / "out") == sound
    assert here("check", tmp_path / "out", "--level", "deep").code == 0

    assert here("export", tmp_path / "out", tmp_path / "again" / "zoo", "--all", "--deltas").code == 0
    back = tree(tmp_path / "again" / "zoo")
    assert back.keys() == zoo.keys()
    for name, data in zoo.items():
        if name.endswith("prompts.json"):
            assert json.loads(back[name]) == json.loads(data)
        else:
            assert back[name] == data
    given = DeltaCache(tmp_path / "again" / "zoo.deltas").get_all_deltas()
    assert {path.removeprefix("zoo/") for path in given} == set(paths)
    for path, delta in given.items():
        assert np.array_equal(delta, deltas[f"zoo/{path.removeprefix('zoo/')}"])

    (tmp_path / "again" / "zoo.deltas").rename(tmp_path / "deltas")
    assert build(tmp_path / "again" / "zoo", tmp_path / "out2", tmp_path).code == 0
    repacked = tree(tmp_path / "out2")
    assert [
        name for name in sound if name.endswith((".tar", ".parity")) and repacked[name] != sound[name]
    ] == []
