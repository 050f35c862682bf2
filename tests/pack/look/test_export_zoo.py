"""The zoo again: zoo, set, export --all; equal files, and an equal set when it is packed again."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llgbm_pack import DeltaCache, PackOptions, build
from llgbm_pack.look.export import export
from llgbm_shards import ShardSet
from llgbm_shards.errors import DamageError, StorageError, UsageError
from support.commands import here, started, wait_until
from support.edited_set import rewrite
from support.tiny_zoo import (
    DTYPES,
    MODULES,
    TASKS,
    random_pairs,
    tree,
    write_adapter,
    write_deltas,
    write_zoo,
)

T5 = {
    "encoder.block.0.layer.0.SelfAttention.q": (32, 48),
    "decoder.block.0.layer.1.EncDecAttention.v": (16, 40),
}
ODD = {"model.layers.0.self_attn.q_proj": (37, 53), "model.layers.10.mlp.down_proj": (19, 7)}


def pack(root, **options):
    report = build(PackOptions(zoo=root / "zoo", out=root / "set", workers=1, **options))
    assert not report.skipped
    return report


def without_texts(directory):
    return {name: data for name, data in tree(directory).items() if not name.endswith("prompts.json")}


def assert_same(first, second):
    """Equal shards and rows of the index; the record says what the zoo is called, which differs."""
    one, other = (
        {name: data for name, data in tree(path).items() if name.endswith(".tar")} for path in (first, second)
    )
    assert one == other
    assert ShardSet(first).index().equals(ShardSet(second).index())


def again(root, **options):
    """Export all and pack what comes out, with the same options; returns the first report."""
    report = export(root / "set", root / "new", everything=True)
    assert without_texts(root / "new") == without_texts(root / "zoo")
    build(PackOptions(zoo=root / "new", out=root / "second", workers=1, **options))
    assert_same(root / "set", root / "second")
    assert not (root / "new/.export").exists()
    return report


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zoo_with_texts(tmp_path, dtype):
    write_zoo(tmp_path / "zoo", 4, dtype=dtype)
    named = tmp_path / "zoo/beta/run_001/prompts.json"
    named.write_text(json.dumps({**json.loads(named.read_text()), "task": "another"}))
    write_adapter(tmp_path / "zoo/alone", 9, dtype=dtype, prompts=())
    write_adapter(tmp_path / "zoo/alpha/run/adapter", 10, dtype=dtype)
    write_adapter(tmp_path / "zoo/alpha/run/checkpoint-3", 11, dtype=dtype, prompts=())
    pack(tmp_path)
    report = again(tmp_path)
    assert (report.checkpoints, report.inexact, report.texts_apart) == (7, (), ())
    for path in ("alpha/run_000", "beta/run_001"):
        original, exported = (
            json.loads((tmp_path / name / path / "prompts.json").read_text()) for name in ("zoo", "new")
        )
        assert exported == original
    assert not (tmp_path / "new/alone/prompts.json").exists()


@pytest.mark.parametrize("modules", [MODULES, T5, ODD], ids=["plain", "T5", "odd"])
@pytest.mark.parametrize("order", ["sorted", "dnd"])
def test_names_and_widths(tmp_path, modules, order):
    for number in range(3):
        write_adapter(tmp_path / f"zoo/a/{number}", number, modules=modules)
    options = {"token_order": order, "chunk": 16}
    pack(tmp_path, **options)
    again(tmp_path, **options)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_adapter(tmp_path_factory, data):
    """Ranks by module, absent modules, keys as PEFT has written them, metadata, the order of tensors in the file."""
    root = tmp_path_factory.mktemp("any")
    dtype = data.draw(st.sampled_from(sorted(DTYPES)))
    widths = st.integers(1, 40)
    modules = {
        f"model.layers.{n}.q_proj": (data.draw(widths), data.draw(widths))
        for n in range(data.draw(st.integers(1, 4)))
    }
    some = st.sets(st.sampled_from(sorted(modules)), min_size=1)
    for number in range(3):  # the first two settle the layout
        present = modules if number < 2 else {name: modules[name] for name in sorted(data.draw(some))}
        prefix, suffix = (
            data.draw(st.sampled_from(["", "base_model.model."])),
            data.draw(st.sampled_from(["", ".default"])),
        )
        tensors = {}
        for seed, (name, shape) in enumerate(present.items()):
            rank = data.draw(st.integers(1, 4)) if number == 2 else 4
            for key, value in random_pairs(
                seed + 7 * number, dtype=dtype, rank=rank, modules={name: shape}
            ).items():
                tensors[
                    prefix + key.removeprefix("base_model.model.").replace(".weight", f"{suffix}.weight")
                ] = value
        folder = root / f"zoo/t/{number}"
        folder.mkdir(parents=True)
        metadata = data.draw(st.sampled_from([None, {"format": "pt"}, {"ä": "\n"}]))
        save_file(tensors, folder / "adapter_model.safetensors", metadata=metadata)
        config = {"peft_type": "LORA", "lora_alpha": 3, "use_rslora": data.draw(st.booleans())}
        (folder / "adapter_config.json").write_text(
            json.dumps(config, indent=data.draw(st.sampled_from([None, 2])))
        )
    options = {"rank": 4, "chunk": data.draw(st.integers(1, 17))}
    pack(root, **options)
    again(root, **options)


def dnd_zoo(zoo, count=3):
    """``{dataset}/{N}.safetensors`` without configs, as DnD keeps them."""
    for dataset in ("arc", "piqa"):
        (zoo / dataset).mkdir(parents=True)
        for number in range(count):
            save_file(random_pairs(number + len(dataset)), zoo / dataset / f"{number}.safetensors")


def test_the_layout_of_dnd(tmp_path):
    dnd_zoo(tmp_path / "zoo")
    (tmp_path / "zoo/arc/prompts.json").write_text('["one", "two"]')
    (tmp_path / "zoo/piqa/adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 3}')
    pack(tmp_path, alpha=8)
    again(tmp_path, alpha=8)
    key = ShardSet(tmp_path / "set").keys[0]
    export(tmp_path / "set", tmp_path / "one", [key])
    assert {"adapter_model.safetensors", "adapter_config.json"} <= tree(tmp_path / "one").keys()


def test_texts_that_differ_within_a_folder_are_told_and_kept(tmp_path):
    dnd_zoo(tmp_path / "zoo")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/arc.json").write_text(json.dumps([f"text {number}" for number in range(40)]))
    pack(tmp_path, alpha=8, texts=tmp_path / "texts", max_texts=3)
    done = here("export", tmp_path / "set", tmp_path / "new", "--all")
    assert done.code == 0
    assert "differ within a folder" in done.out
    opened = ShardSet(tmp_path / "set")
    for number in range(3):
        row = next(
            sample
            for sample in map(opened.read_sample, range(6))
            if sample.json["checkpoint"] == f"arc/{number}"
        )
        texts = json.loads((tmp_path / f"new/arc/{number}.prompts.json").read_text())
        assert texts["prompts"] == [text["prompt"] for text in row.json["texts"]]
    assert not (tmp_path / "new/arc/prompts.json").exists()


def test_tasks_of_a_manifest_stay(tmp_path):
    paths = write_zoo(tmp_path / "zoo", 3)
    write_adapter(tmp_path / "zoo/bare", 5, prompts=())
    entries = [{"path": paths[0], "task": "other"}, {"path": "bare", "task": "mine"}]
    (tmp_path / "zoo/manifest.json").write_text(json.dumps(entries))
    pack(tmp_path)
    export(tmp_path / "set", tmp_path / "new", everything=True)
    build(PackOptions(zoo=tmp_path / "new", out=tmp_path / "second", workers=1))
    assert_same(tmp_path / "set", tmp_path / "second")
    assert sorted(ShardSet(tmp_path / "second").index(["task"]).column("task").to_pylist()) == [
        "beta",
        "gamma",
        "mine",
        "other",
    ]


def test_deltas_beside_the_tree(tmp_path):
    paths = write_zoo(tmp_path / "zoo", 5)
    write_deltas(tmp_path / "deltas", paths[:4])
    measured = {"base_model": "tiny/base", "probes": "7 texts", "layer": "-1", "dtype": "float32"}
    DeltaCache(tmp_path / "deltas").save_config(measured)
    options = {"missing_delta": "zeros"}
    pack(tmp_path, deltas=tmp_path / "deltas", **options)
    done = here("export", tmp_path / "set", tmp_path / "new", "--all", "--deltas", "--format", "json")
    assert (done.json["deltas"], done.json["num_deltas"]) == (f"{tmp_path}/new.deltas", 4)
    cache = DeltaCache(tmp_path / "new.deltas")
    assert {path: delta.tobytes() for path, delta in cache.get_all_deltas().items()} == {
        path.removeprefix("zoo/"): delta.tobytes()
        for path, delta in DeltaCache(tmp_path / "deltas").get_all_deltas().items()
    }
    assert {name: getattr(cache.entries()[0], name) for name in measured} == measured
    report = build(
        PackOptions(
            zoo=tmp_path / "new",
            out=tmp_path / "second",
            deltas=tmp_path / "new.deltas",
            workers=1,
            strict=False,
            **options,
        )
    )
    assert not [note for note in report.notes if "stale" in note.what]
    columns = ["key", "has_delta", "delta_norm", "delta.blake3"]
    first, second = (ShardSet(tmp_path / name).index(columns) for name in ("set", "second"))
    assert first.equals(second)


def test_packed_again_with_its_deltas_it_gives_the_same_shards(tmp_path):
    """Ids of deltas are those of the cache they came from, which called the zoo by another path."""
    paths = write_zoo(tmp_path / "zoo", 4)
    write_deltas(tmp_path / "deltas", paths, prefix="somewhere/zoo")
    pack(tmp_path, deltas=tmp_path / "deltas", parity=2)
    export(tmp_path / "set", tmp_path / "new", everything=True, deltas=True)
    again_from = PackOptions(
        zoo=tmp_path / "new", deltas=tmp_path / "new.deltas", out=tmp_path / "second", workers=1, parity=2
    )
    build(again_from)
    assert_same(tmp_path / "set", tmp_path / "second")


@pytest.mark.parametrize("names", ["one", "out", "base"])
def test_deltas_of_a_set_that_tells_no_sound_names_get_ids_of_their_paths(made, names):
    def edit(key, members):
        file = {"one": "0.npy", "out": f"../{key}.npy", "base": "base_activation.npy"}[names]
        info = json.loads(members["json"])
        return {**members, "json": json.dumps({**info, "delta": {**info["delta"], "file": file}}).encode()}

    rewrite(made / "set", edit)
    export(made / "set", made / "new", everything=True, deltas=True)
    assert len(DeltaCache(made / "new.deltas").get_all_deltas()) == 6
    assert len(list((made / "new.deltas").glob("*.npy"))) == 6


def test_texts_that_a_limit_may_have_cut_are_told(tmp_path):
    write_adapter(tmp_path / "zoo/t/long", 1, prompts=[str(number) for number in range(9)])
    write_adapter(tmp_path / "zoo/t/short", 2)
    pack(tmp_path, max_texts=4)
    report = export(tmp_path / "set", tmp_path / "new", everything=True)
    assert report.texts_full == ("t/long",)
    done = here("export", tmp_path / "set", tmp_path / "new", "--all")
    assert "1 checkpoints have as many as --max-texts let in" in done.out


def test_a_cast_is_written_in_the_dtype_of_the_set_and_named(tmp_path):
    write_adapter(tmp_path / "zoo/t/wide", 1, dtype="float32")
    write_adapter(tmp_path / "zoo/t/plain", 2)
    pack(tmp_path, dtype="bfloat16")
    done = here("export", tmp_path / "set", tmp_path / "new", "--all", "--format", "json")
    assert (done.code, [row["checkpoint"] for row in done.json["inexact"]]) == (0, ["t/wide"])
    source, cast = (
        load_file(tmp_path / name / "t/wide/adapter_model.safetensors") for name in ("zoo", "new")
    )
    assert source.keys() == cast.keys()
    assert all(torch.equal(cast[name], value.bfloat16()) for name, value in source.items())
    assert (
        "packed from float32, written in bfloat16"
        in here("export", tmp_path / "set", tmp_path / "new", "--all").out
    )


@pytest.fixture
def made(tmp_path):
    paths = write_zoo(tmp_path / "zoo", 6)
    write_deltas(tmp_path / "deltas", paths)
    pack(tmp_path, deltas=tmp_path / "deltas")
    return tmp_path


class Stop(BaseException):
    pass


def broken_off(root, after=0):
    def progress(done, total):
        if done > after:
            raise Stop

    with pytest.raises(Stop):
        export(root / "set", root / "new", everything=True, deltas=True, progress=progress)
    assert (root / "new/.export").is_dir()


def test_it_goes_on_where_it_stopped(made):
    broken_off(made)
    (made / "new" / ".tmp-left").write_text("by a killed one")
    before = {path: path.stat().st_mtime_ns for path in (made / "new").rglob("*.safetensors")}
    assert before
    report = export(made / "set", made / "new", everything=True, deltas=True)
    assert report.standing >= len(before)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert without_texts(made / "new") == without_texts(made / "zoo")
    finished = tree(made)
    report = export(made / "set", made / "new", everything=True, deltas=True)
    assert (report.written, report.standing, tree(made)) == (0, 6 * 3 + 7, finished)


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 5, 12])
def test_killed_and_run_again(made, files):
    with started("export", made / "set", made / "new", "--all", "--deltas", env={**os.environ}) as process:
        wait_until(lambda: len(tree(made / "new")) > files or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
    done = here("export", made / "set", made / "new", "--all", "--deltas")
    assert done.code == 0, done.err
    assert without_texts(made / "new") == without_texts(made / "zoo")
    assert len(DeltaCache(made / "new.deltas").get_all_deltas()) == 6


@pytest.mark.parametrize("where", ["new", "new.deltas"])
def test_foreign_files_are_refused(made, where):
    (made / where / "deep").mkdir(parents=True)
    (made / where / "deep/mine").write_text("mine")
    with pytest.raises(UsageError, match="files that this export does not write"):
        export(made / "set", made / "new", everything=True, deltas=True)
    assert tree(made / where) == {"deep/mine": b"mine"}


@pytest.mark.parametrize("name", [".tmp-mine", "alpha/.tmp-mine"])
def test_a_temporary_file_of_somebody_else_is_not_removed(made, name):
    (made / "new" / name).parent.mkdir(parents=True, exist_ok=True)
    (made / "new" / name).write_text("mine")
    with pytest.raises(UsageError, match="files that this export does not write"):
        export(made / "set", made / "new", everything=True)
    assert tree(made / "new") == {name: b"mine"}


def test_nothing_stands_beside_the_root(made):
    done = here("export", made / "set", "/", "--all", "--deltas")
    assert (done.code, "no directory can stand beside it" in done.err) == (2, True)


def test_a_file_gone_from_a_finished_export_is_told(made):
    export(made / "set", made / "new", everything=True)
    (made / "new" / TASKS[0] / "run_000/adapter_config.json").unlink()
    with pytest.raises(UsageError, match="got no file"):
        export(made / "set", made / "new", everything=True)


def test_another_file_in_a_finished_export_is_not_replaced(made):
    export(made / "set", made / "new", everything=True)
    (made / "new" / TASKS[0] / "run_000/adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="not what this export gives"):
        export(made / "set", made / "new", everything=True)
    assert (made / "new" / TASKS[0] / "run_000/adapter_config.json").read_text() == "{}"


def test_an_unfinished_export_of_something_else_is_refused(made):
    broken_off(made)
    with pytest.raises(UsageError, match="an unfinished export of something else"):
        export(made / "set", made / "new", ShardSet(made / "set").keys[:2])


def test_links_in_the_destination_are_refused(made):
    (made / "away").mkdir()
    (made / "new").mkdir()
    (made / "new/alpha").symlink_to(made / "away")
    with pytest.raises(UsageError, match="alpha, a link"):
        export(made / "set", made / "new", everything=True)
    broken = made / "other"
    with pytest.raises(StorageError, match="symbolic link"):
        export(made / "set", broken, everything=True, progress=lambda *_: _swap(broken, made / "away"))
    assert not list((made / "away").iterdir())


def _swap(root, away):
    for task in TASKS:
        if not (root / task).exists():
            (root / task).symlink_to(away)


EVIL = {
    "up": {"checkpoint": "../evil"},
    "up within": {"checkpoint": "a/../../evil"},
    "absolute": {"checkpoint": "/tmp/evil"},
    "hidden": {"checkpoint": ".export"},
    "nul": {"checkpoint": "a\0b"},
    "empty": {"checkpoint": ""},
    "slash": {"checkpoint": "a//b"},
    "other file": {"weights_file": "evil.safetensors"},
    "hidden file": {"weights_file": "..safetensors"},
    "file above": {"weights_file": "../evil.safetensors"},
    "rank": {"modules": [{"name": "x", "rank": 3, "scaling": 1.0}]},
    "dtype": {"source_dtype": "float32"},
    "digest": {"source_digest": "0" * 64},
}


@pytest.mark.parametrize("case", EVIL)
def test_a_hostile_set_writes_nothing_anywhere_else(made, case):
    def edit(_, members):
        return {**members, "json": json.dumps({**json.loads(members["json"]), **EVIL[case]}).encode()}

    rewrite(made / "set", edit)
    before = set(made.rglob("*"))
    with pytest.raises(DamageError):
        export(made / "set", made / "new", everything=True)
    assert not [path for path in set(made.rglob("*")) - before if not path.is_relative_to(made / "new")]
    assert not list(made.rglob("*evil*"))
    assert not list((made / "new").rglob("*.safetensors"))


def test_damaged_pieces_get_no_name(made):
    shard = next((made / "set").glob("train-*.tar"))
    extent = ShardSet(made / "set").extents(0)[0]
    data = bytearray(shard.read_bytes())
    data[extent.offset + extent.size - 3] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamageError, match=r"pieces\.safetensors: damaged"):
        export(made / "set", made / "new", [extent.key])
    assert not list((made / "new").glob("*.safetensors"))
