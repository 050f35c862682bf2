"""The delta cache: both forms, verified loading, writers that lose nothing, and the lint for a fault of measuring."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from llgbm_pack.deltas.agree import LagCorrelation
from llgbm_pack.deltas.cache import DeltaCache
from llgbm_pack.deltas.file import load_delta, read_array
from llgbm_shards.errors import CheckpointError, StorageError, UsageError
from llgbm_shards.storage import write_file


def vector(seed=0, width=16, dtype="<f4"):
    return np.random.default_rng(seed).standard_normal(width).astype(dtype)


def norm(array):
    return float(np.linalg.norm(array.astype(np.float64)))


def make_first_form(directory, paths, **config):
    directory.mkdir(parents=True, exist_ok=True)
    adapters = {}
    for seed, path in enumerate(paths):
        key = hashlib.md5(path.encode()).hexdigest()[:12]
        np.save(directory / f"{key}.npy", vector(seed))
        adapters[key] = {"path": path, "norm": norm(vector(seed)), "shape": [16]}
    (directory / "manifest.json").write_text(json.dumps({"adapters": adapters, "config": config}))
    return directory


def make_second_form(directory, changes=None, top=None):
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / "base.npy", vector(9))
    adapters = {}
    for seed, name in enumerate(["arc_e_1", "arc_e_10"]):
        np.save(directory / f"{name}.npy", vector(seed))
        adapters[name] = {
            "adapter_path": f"/content/zoo/{name}/adapter",
            "delta_file": f"{name}.npy",
            "task": "arc_e",
            "delta_norm": norm(vector(seed)),
        }
    adapters["arc_e_1"].update(changes or {})
    value = {"base_activation_file": "base.npy", "adapters": adapters, **(top or {})}
    (directory / "delta_manifest.json").write_text(json.dumps(value))
    return directory


def test_first_form(tmp_path):
    paths = ["zoo/arc/x", "zoo/arc/y"]
    config = {"base_model": "Qwen/Qwen2.5-1.5B", "probes": ["a", "b"], "layer": -1, "dtype": "bfloat16"}
    cache = DeltaCache(make_first_form(tmp_path, paths, **config))
    entries = cache.entries()
    assert [entry.path for entry in entries] == paths
    assert [entry.name for entry in entries] == ["", ""]
    assert (entries[0].base_model, entries[0].layer, entries[0].dtype) == (
        "Qwen/Qwen2.5-1.5B",
        "-1",
        "bfloat16",
    )
    assert entries[0].probes.startswith("2 texts, blake3 ")
    assert list(cache.get_all_deltas()) == paths
    np.testing.assert_array_equal(cache.get_delta("zoo/arc/y"), vector(1))
    assert cache.get_delta("zoo/arc/y").dtype == np.float32
    assert cache.get_delta("zoo/arc") is None
    assert cache.get_base_activation() is None


def test_second_form(tmp_path):
    cache = DeltaCache(make_second_form(tmp_path, top={"model_name": "/models/base-x"}))
    first, second = cache.entries()
    assert (first.name, first.width, first.base_model) == ("arc_e_1", None, "base-x")
    assert first.norm == pytest.approx(norm(vector(0)))
    np.testing.assert_array_equal(cache.get_delta(second.path), vector(1))
    np.testing.assert_array_equal(cache.get_base_activation(), vector(9))
    assert cache.summary()["num_deltas"] == 2


def test_probes_and_digest_of_the_second_form(tmp_path):
    changes = {"probes_file": "probes/a.json", "source_digest": "ab", "base_model": "other"}
    first, second = DeltaCache(make_second_form(tmp_path, changes)).entries()
    assert (first.probes_file, first.source_digest, first.base_model) == (
        tmp_path / "probes/a.json",
        "ab",
        "other",
    )
    assert (second.probes_file, second.source_digest, second.base_model) == (None, "", "")


def test_moved_cache_with_absolute_names(tmp_path):
    DeltaCache(make_second_form(tmp_path, {"delta_file": "/content/deltas/arc_e_1.npy"}))
    entry = DeltaCache(tmp_path).entries()[0]
    assert entry.file == tmp_path / "arc_e_1.npy"
    np.testing.assert_array_equal(entry.load().array, vector(0))


@pytest.mark.parametrize(
    "changes",
    [
        {"delta_file": "../secret.npy"},
        {"delta_file": "a/../../secret.npy"},
        {"delta_file": "/content/../etc/passwd"},
        {"delta_file": "/content/arc_e_1.npy", "delta_norm": None},
        {"delta_file": ""},
        {"delta_file": 3},
        {"adapter_path": None},
        {"delta_norm": "1.0"},
        {"delta_norm": -1},
        {"delta_norm": True},
        {"shape": [16, 1]},
        {"probes_file": "../probes.json"},
        {"probes_file": 7},
    ],
)
def test_manifest_entries_that_are_refused(tmp_path, changes):
    make_second_form(tmp_path / "deltas", changes)
    with pytest.raises(UsageError, match="arc_e_1"):
        DeltaCache(tmp_path / "deltas").entries()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"adapters": []}',
        '{"adapters": {"a": 1}}',
        '{"adapters": {}, "adapters": {}}',
        "[" * 999,
    ],
)
def test_manifests_that_are_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match=r"manifest\.json"):
        DeltaCache(tmp_path).entries()


def test_two_manifests_are_refused(tmp_path):
    make_first_form(tmp_path, ["a"])
    make_second_form(tmp_path)
    with pytest.raises(UsageError, match="two manifests"):
        DeltaCache(tmp_path).entries()


def test_id_that_leads_out_of_the_cache(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"adapters": {"../x": {"path": "a", "norm": 1.0}}}))
    with pytest.raises(UsageError, match="outside"):
        DeltaCache(tmp_path).entries()


@pytest.mark.parametrize(("dtype", "note"), [("<f4", ""), ("<f2", "float16"), ("<f8", "float64")])
def test_casts_are_noted(tmp_path, dtype, note):
    np.save(tmp_path / "d.npy", vector(dtype=dtype))
    loaded = load_delta(tmp_path / "d.npy", norm=norm(vector(dtype=dtype)))
    assert loaded.array.dtype == np.dtype("<f4")
    assert note in loaded.note
    assert bool(note) == bool(loaded.note)
    np.testing.assert_array_equal(loaded.array, vector(dtype=dtype).astype("<f4"))


def with_value(value):
    array = vector()
    array[3] = value
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (with_value(np.nan), "not finite"),
        (with_value(np.inf), "not finite"),
        (np.array([1e300, 1.0]), "not finite"),
        (vector(width=16).reshape(1, 16), "shape"),
        (np.float32(1), "shape"),
        (np.zeros(0, "<f4"), "shape"),
        (vector(dtype=">f4"), "dtype"),
        (np.arange(16), "dtype"),
        (np.array([object()]), "dtype"),
        (vector(width=15), "width"),
        (vector(1), "norm"),
        (vector() * np.float32(1.002), "norm"),
    ],
)
def test_faulty_deltas_are_refused(tmp_path, array, message):
    np.save(tmp_path / "d.npy", array, allow_pickle=True)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_delta(tmp_path / "d.npy", width=16, norm=norm(vector()))
    assert "d.npy" in str(caught.value)
    assert str(tmp_path) not in str(caught.value), "the reason is packed into a set: no path of this machine"


def test_a_norm_within_its_tolerance_is_taken(tmp_path):
    np.save(tmp_path / "d.npy", vector())
    assert load_delta(tmp_path / "d.npy", norm=norm(vector()) * 1.0009).array.size == 16
    np.save(tmp_path / "z.npy", np.zeros(16, "<f4"))
    assert load_delta(tmp_path / "z.npy", norm=0.0).array.size == 16


def test_damaged_files_are_refused(tmp_path):
    np.save(tmp_path / "good.npy", vector())
    data = (tmp_path / "good.npy").read_bytes()
    cases = [
        b"",
        data[:5],
        data[:64],
        data[:-1],
        data + b"\0",
        b"PK" + data,
        data.replace(b"(16,)", b"(17,)"),
    ]
    cases += [data.replace(b"'<f4'", b"'|O8'"), data.replace(b"(16,)", b"(-1,)"), b"\x80\x04N."]
    for case in cases:
        (tmp_path / "d.npy").write_bytes(case)
        with pytest.raises(CheckpointError):
            load_delta(tmp_path / "d.npy")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_delta(tmp_path / "absent.npy")
    with (tmp_path / "huge.npy").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(CheckpointError, match="too large"):
        load_delta(tmp_path / "huge.npy")


def test_save_and_read_back(tmp_path):
    cache = DeltaCache(tmp_path / "new" / "deltas")
    assert (cache.entries(), cache.get_all_deltas(), cache.get_delta("a")) == ((), {}, None)
    key = cache.save_delta("zoo/a/x", vector(dtype="<f8"))
    assert key == hashlib.md5(b"zoo/a/x").hexdigest()[:12]
    cache.save_base_activation(vector(5).reshape(2, 8))
    cache.save_config({"base_model": "m"})
    manifest = json.loads((tmp_path / "new/deltas/manifest.json").read_text())
    assert manifest["adapters"][key]["path"] == "zoo/a/x"
    assert manifest["adapters"][key]["shape"] == [16]
    # Users read these files with numpy.
    np.testing.assert_array_equal(np.load(tmp_path / f"new/deltas/{key}.npy"), vector())
    other = DeltaCache(tmp_path / "new" / "deltas")
    np.testing.assert_array_equal(other.get_delta(Path("zoo/a/x")), vector())
    np.testing.assert_array_equal(other.get_base_activation(), vector(5).reshape(2, 8))
    assert other.entries()[0].base_model == "m"
    cache.save_delta("zoo/a/x", vector(1))
    np.testing.assert_array_equal(other.get_delta("zoo/a/x"), vector(1))
    summary = other.summary()
    assert (summary["num_deltas"], summary["hidden_size"], summary["has_base_activation"]) == (1, 16, True)
    assert summary["norm_mean"] == pytest.approx(norm(vector(1)))


def test_second_form_stays_the_second_form(tmp_path):
    cache = DeltaCache(make_second_form(tmp_path))
    assert cache.save_delta("/content/zoo/arc_e_1/adapter", vector(7)) == "arc_e_1"
    cache.save_delta("zoo/new", vector(8), task="t")
    assert not (tmp_path / "manifest.json").exists()
    entries = DeltaCache(tmp_path).entries()
    assert [entry.key for entry in entries[:2]] == ["arc_e_1", "arc_e_10"]
    np.testing.assert_array_equal(entries[0].load().array, vector(7))
    assert entries[2].path == "zoo/new"
    assert (
        json.loads((tmp_path / "delta_manifest.json").read_text())["adapters"][entries[2].key]["task"] == "t"
    )
    np.testing.assert_array_equal(entries[2].load().array, vector(8))


def test_clear_takes_only_its_own_files(tmp_path):
    cache = DeltaCache(make_second_form(tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    cache.clear()
    assert cache.entries() == ()
    assert cache.get_base_activation() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "delta_manifest.json", "notes.txt"]


@pytest.mark.parametrize(
    "bad", [with_value(np.nan), vector().reshape(4, 4), np.arange(4), np.zeros(0, "<f4")]
)
def test_only_finite_vectors_are_saved(tmp_path, bad):
    with pytest.raises(UsageError, match="a/x"):
        DeltaCache(tmp_path).save_delta("a/x", bad)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        DeltaCache(tmp_path / "file" / "deltas").save_delta("a", vector())


def test_lookup_by_checkpoint_is_never_by_substring(tmp_path):
    cache = DeltaCache(make_second_form(tmp_path))
    np.testing.assert_array_equal(cache.get_delta_for_checkpoint("/new/place/arc_e_1/adapter"), vector(0))
    np.testing.assert_array_equal(cache.get_delta_for_checkpoint("/new/place/arc_e_10"), vector(1))
    np.testing.assert_array_equal(cache.get_delta_for_checkpoint("/content/zoo/arc_e_1/adapter"), vector(0))
    for path in ("/new/arc_e", "/new/arc_e_100", "/new/e_1", "adapter"):
        assert cache.get_delta_for_checkpoint(path) is None


def test_lookup_by_checkpoint_with_two_candidates(tmp_path):
    cache = DeltaCache(make_first_form(tmp_path, ["/o1/arc/x", "/o2/arc/x", "/o1/gsm/seed_0"]))
    with pytest.raises(UsageError, match=r"/o1/arc/x.*/o2/arc/x"):
        cache.get_delta_for_checkpoint("/new/arc/x")
    np.testing.assert_array_equal(cache.get_delta_for_checkpoint("/o2/arc/x"), vector(1))
    np.testing.assert_array_equal(cache.get_delta_for_checkpoint("new/gsm/seed_0"), vector(2))
    assert cache.get_delta_for_checkpoint("/new/boolq/seed_0") is None


def test_two_adapters_of_one_path_are_not_chosen_between(tmp_path):
    cache = DeltaCache(make_second_form(tmp_path, {"adapter_path": "/content/zoo/arc_e_10/adapter"}))
    for call in (lambda: cache.get_delta("/content/zoo/arc_e_10/adapter"), cache.get_all_deltas):
        with pytest.raises(UsageError, match=r"arc_e_1 .*arc_e_10 "):
            call()


def test_a_manifest_replaced_by_another_process_is_read_again(tmp_path):
    cache = DeltaCache(make_first_form(tmp_path, ["a"]))
    assert len(cache.entries()) == 1
    make_first_form(tmp_path, ["a", "b"])
    assert len(cache.entries()) == 2
    (tmp_path / "manifest.json").unlink()
    assert cache.entries() == ()


def _write_many(directory, worker, count):
    cache = DeltaCache(directory)
    for number in range(count):
        cache.save_delta(f"zoo/w{worker}/{number}", vector(worker * 100 + number))


def test_two_writers_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(tmp_path, worker, 20)) for worker in range(3)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(60)
    assert [process.exitcode for process in workers] == [0, 0, 0]
    deltas = DeltaCache(tmp_path).get_all_deltas()
    assert len(deltas) == 60
    for worker in range(3):
        np.testing.assert_array_equal(deltas[f"zoo/w{worker}/19"], vector(worker * 100 + 19))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]


def test_a_crash_while_saving_leaves_the_old_cache(tmp_path, monkeypatch):
    cache = DeltaCache(tmp_path)
    cache.save_delta("a", vector(0))

    def fail(_fd):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="Input/output"):
        cache.save_delta("b", vector(1))
    monkeypatch.undo()
    again = DeltaCache(tmp_path)
    assert list(again.get_all_deltas()) == ["a"]
    again.save_delta("b", vector(1))
    assert list(again.get_all_deltas()) == ["a", "b"]


def test_lint_finds_differences_of_neighbours(tmp_path):
    rng = np.random.default_rng(3)
    activations = rng.standard_normal((40, 64)).astype("<f4")
    cache = DeltaCache(tmp_path)
    cache.save_deltas({f"a{i}": activations[i] - activations[i - 1] for i in range(1, 40)})
    lag = LagCorrelation()
    for entry in cache.entries():
        lag.add(entry.load().array)
    assert lag.pairs == 38
    assert lag.value == pytest.approx(-0.5, abs=0.05)
    assert lag.suspicious


@pytest.mark.parametrize("common", [0.0, 3.0])
def test_lint_leaves_sound_deltas_alone(common):
    rng = np.random.default_rng(4)
    direction = rng.standard_normal(64)
    lag = LagCorrelation()
    for _ in range(40):
        lag.add((rng.standard_normal(64) + common * direction).astype("<f4"))
    assert lag.value > -0.2
    assert not lag.suspicious


def test_lint_says_nothing_of_a_few():
    lag = LagCorrelation()
    for index in range(8):
        lag.add(vector() * (-1) ** index)
    assert (lag.pairs, lag.value, lag.suspicious) == (7, None, False)
    lag.add(vector())
    assert lag.value == pytest.approx(-1)
    lag.add(np.zeros(16, "<f4"))
    assert lag.pairs == 8, "a zero delta points nowhere"


def test_a_fifo_is_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "delta.npy")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_array(tmp_path / "delta.npy", dimensions=1)


class Killed(BaseException):
    """What no except of the cache's own catches."""


def written_paths(monkeypatch, stop_before=-1):
    """The files written and removed from now on, in order; killed before the one of the given number."""
    steps = []

    def step(call):
        def stepped(path, *rest, **options):
            if len(steps) == stop_before:
                raise Killed
            steps.append(path.name)
            return call(path, *rest, **options)

        return stepped

    monkeypatch.setattr("llgbm_pack.deltas.write.write_file", step(write_file))
    monkeypatch.setattr(Path, "unlink", step(Path.unlink))
    return steps


FORMS = [
    (lambda path: make_first_form(path, ["zoo/x", "zoo/y"]), "zoo/x"),
    (make_second_form, "/content/zoo/arc_e_1/adapter"),
]


@pytest.mark.parametrize(("make", "path"), FORMS, ids=["first", "second"])
def test_saved_again_and_killed_at_any_step_one_of_both_deltas_is_there(tmp_path, monkeypatch, make, path):
    file = DeltaCache(make(tmp_path / "whole")).entries()[0].file.name
    with monkeypatch.context() as patch:
        steps = written_paths(patch)
        DeltaCache(tmp_path / "whole").save_delta(path, vector(7))
    assert len(steps) == 6, steps
    for stop in range(len(steps)):
        cache = DeltaCache(make(tmp_path / str(stop)))
        names = {found.name for found in cache.cache_dir.iterdir()}
        with monkeypatch.context() as patch:
            written_paths(patch, stop)
            with pytest.raises(Killed):
                cache.save_delta(path, vector(7))
        found = DeltaCache(cache.cache_dir).get_all_deltas()[path]
        assert any(np.array_equal(found, vector(seed)) for seed in (0, 7)), stop
        DeltaCache(cache.cache_dir).save_delta(path, vector(8))
        np.testing.assert_array_equal(cache.get_delta(path), vector(8))
        if stop == len(steps) - 1:
            assert DeltaCache(cache.cache_dir).entries()[0].file.name == file
            assert names <= {found.name for found in cache.cache_dir.iterdir()}


@pytest.mark.parametrize(("make", "path"), FORMS, ids=["first", "second"])
def test_a_delta_saved_again_keeps_its_file_and_nothing_is_left_over(tmp_path, make, path):
    cache = DeltaCache(make(tmp_path))
    before = {found.name for found in tmp_path.iterdir()}
    keys = [entry.key for entry in cache.entries()]
    for seed in (5, 6):
        cache.save_delta(path, vector(seed, width=8), source_digest="ab")
    assert {found.name for found in tmp_path.iterdir()} == before | {".lock"}
    assert [entry.key for entry in cache.entries()] == keys
    assert cache.entries()[0].source_digest == "ab"
    np.testing.assert_array_equal(np.load(cache.entries()[0].file), vector(6, width=8))
    cache.save_delta(path, vector(7))
    assert cache.entries()[0].source_digest == "", "the digest was of the weights measured before"
    assert "file" not in json.loads(next(tmp_path.glob("*manifest.json")).read_text())["adapters"][keys[0]]


def test_a_reader_that_was_overtaken_reads_the_new_delta(tmp_path, monkeypatch):
    reader, writer = DeltaCache(make_first_form(tmp_path, ["x"])), DeltaCache(tmp_path)
    entries = reader.entries()

    def overtaken():
        monkeypatch.undo()
        writer.save_delta("x", vector(7))
        return entries

    monkeypatch.setattr(reader, "entries", overtaken)
    np.testing.assert_array_equal(reader.get_delta("x"), vector(7))


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("x", {"task": object()}, "JSON cannot hold"),
        ("x", {"loss": float("nan")}, "JSON cannot hold"),
        ("x", {"task": "\ud800"}, "JSON cannot hold"),
        ("x", {"probes_file": "../p.json"}, "outside its cache"),
        ("", {}, "no path"),
        ("zoo/\ud800", {}, "lone surrogate"),
    ],
)
def test_what_a_manifest_cannot_hold_is_refused_before_anything_is_written(tmp_path, path, fields, said):
    cache = DeltaCache(make_first_form(tmp_path, ["x"]))
    before = {found.name: found.read_bytes() for found in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=said):
        cache.save_delta(path, vector(7), **fields)
    (tmp_path / ".lock").unlink(missing_ok=True)
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == before


def test_a_delta_saved_again_keeps_its_task(tmp_path):
    cache = DeltaCache(make_second_form(tmp_path))
    cache.save_delta("/content/zoo/arc_e_1/adapter", vector(7))
    assert (
        json.loads((tmp_path / "delta_manifest.json").read_text())["adapters"]["arc_e_1"]["task"] == "arc_e"
    )


def test_the_base_activation_keeps_its_file(tmp_path):
    cache = DeltaCache(make_second_form(tmp_path))
    before = {found.name for found in tmp_path.iterdir()}
    cache.save_base_activation(vector(5))
    np.testing.assert_array_equal(cache.get_base_activation(), vector(5))
    assert {found.name for found in tmp_path.iterdir()} == before | {".lock"}


@pytest.mark.parametrize(
    ("recorded", "kept"),
    [
        ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B"),
        ("/home/jane/models/base-x", "base-x"),
        ("/home/jane/models/base-x/", "base-x"),
        ("~/models/base-x", "base-x"),
        ("~jane/base-x", "base-x"),
        ("../jane/base-x", "base-x"),
        ("home/jane/base-x", "base-x"),
        ("C:\\Users\\jane\\base-x", "base-x"),
        ("C:/Users/jane/base-x", "base-x"),
        ("D:/base-x", "base-x"),
        ("\\\\jane\\share\\base-x", "base-x"),
        ("/root/.cache/huggingface/hub/models--Qwen--Qwen2.5-1.5B/snapshots/abc", "Qwen/Qwen2.5-1.5B"),
        ("~jane", ""),
        ("\\\\jane\\share", ""),
        ("C:\\", ""),
    ],
)
def test_of_a_path_only_the_last_component_is_kept(tmp_path, recorded, kept):
    fields = ("base_model", "probes", "layer", "dtype")
    (entry,) = DeltaCache(make_first_form(tmp_path, ["x"], **dict.fromkeys(fields, recorded))).entries()
    assert [getattr(entry, field) for field in fields] == [kept] * 4


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        ([-1, 14], "[-1,14]"),
        (["last"], '["last"]'),
        (0, "0"),
        ([], ""),
        (["/home/jane/x"], '["x"]'),
        ({"at": "/home/jane"}, ""),
    ],
)
def test_layers_are_kept_as_text(tmp_path, layer, kept):
    assert DeltaCache(make_first_form(tmp_path, ["x"], layer=layer)).entries()[0].layer == kept
