"""Every layout that people keep adapters in; order and choice."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from llgbm_pack.sources import zoo as zoo_module
from llgbm_pack.sources.zoo import Candidate, Rejected, natural_key, walk_zoo
from support.listings import CONFIG, WEIGHTS, adapter, faults, paths

# --- layouts


def test_llgbm_script_layout(tmp_path):
    adapter(tmp_path / "gsm8k" / "lr1e-3.5_a")
    adapter(tmp_path / "arc" / "b")
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "arc" / "b" / "prompts.json").write_text("{}")
    listing = walk_zoo(tmp_path)
    assert listing.checkpoints == (
        Candidate("arc/b", tmp_path / "arc/b" / WEIGHTS, tmp_path / "arc/b" / CONFIG),
        Candidate(
            "gsm8k/lr1e-3.5_a",
            tmp_path / "gsm8k/lr1e-3.5_a" / WEIGHTS,
            tmp_path / "gsm8k/lr1e-3.5_a" / CONFIG,
        ),
    )
    assert listing.rejected == ()
    assert (listing.excluded, listing.ignored) == (0, ())


def test_the_demo_zoo(demo_zoo):
    listing = walk_zoo(demo_zoo.zoo)
    assert len(listing.checkpoints) == 24
    assert listing.rejected == ()


def test_notebook_layout(tmp_path):
    adapter(tmp_path / "run_1" / "adapter")
    (tmp_path / "run_1" / "prompts.json").write_text("{}")
    assert paths(walk_zoo(tmp_path)) == ["run_1/adapter"]


def test_an_adapter_that_is_the_zoo(tmp_path):
    adapter(tmp_path, config=None)
    listing = walk_zoo(tmp_path)
    assert listing.checkpoints == (Candidate(".", tmp_path / WEIGHTS, None),)


def test_dnd_layout_one_checkpoint_a_file_in_natural_order(tmp_path):
    folder = tmp_path / "ARC-c"
    folder.mkdir()
    for number in (1, 2, 10, 100):
        (folder / f"{number}.safetensors").write_text("w")
    (tmp_path / "5.safetensors").write_text("w")
    listing = walk_zoo(tmp_path)
    assert paths(listing) == ["5", "ARC-c/1", "ARC-c/2", "ARC-c/10", "ARC-c/100"]
    assert {one.config for one in listing.checkpoints} == {None}
    assert listing.checkpoints[1].weights == folder / "1.safetensors"


def test_dnd_files_share_the_config_beside_them(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.safetensors").write_text("w")
    (tmp_path / "d" / CONFIG).write_text("{}")
    listing = walk_zoo(tmp_path)
    assert listing.checkpoints == (Candidate("d/1", tmp_path / "d/1.safetensors", tmp_path / "d" / CONFIG),)
    assert listing.rejected == ()


def test_trainer_keeps_the_root_once_when_its_last_checkpoint_equals_it(tmp_path):
    adapter(tmp_path / "run", "last")
    for number, content in ((9, "early"), (100, "last"), (20, "last")):
        adapter(tmp_path / "run" / f"checkpoint-{number}", content)
    listing = walk_zoo(tmp_path)
    assert paths(listing) == ["run", "run/checkpoint-9", "run/checkpoint-20"]
    assert listing.rejected == (
        Rejected("run/checkpoint-100", "the same adapter as run, which is kept", False),
    )


@pytest.mark.parametrize(
    ("content", "config"), [("tsal", "{}"), ("longer", "{}"), ("last", '{"a":1}'), ("last", None)]
)
def test_trainer_keeps_both_when_weights_or_config_differ(content, config, tmp_path):
    adapter(tmp_path / "run", "last")
    adapter(tmp_path / "run" / "checkpoint-100", content, config)
    assert paths(walk_zoo(tmp_path)) == ["run", "run/checkpoint-100"]


def test_trainer_keeps_the_last_checkpoint_when_the_root_is_excluded(tmp_path):
    adapter(tmp_path / "run")
    adapter(tmp_path / "run" / "checkpoint-100")
    listing = walk_zoo(tmp_path, exclude=["run"])
    assert paths(listing) == ["run/checkpoint-100"]
    assert listing.excluded == 1


def test_trainer_leftovers_are_skipped(tmp_path):
    run = adapter(tmp_path / "run" / "checkpoint-5")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"):
        (run / name).write_text("state")
    (run / "optimizer.safetensors").write_text("state")
    (run / "value_head.safetensors").write_text("companion of an adapter")
    alone = tmp_path / "state"
    alone.mkdir()
    (alone / "optimizer_0.safetensors").write_text("state")
    (alone / "tmp-7.safetensors").write_text("half")
    adapter(tmp_path / "run" / "tmp-checkpoint-6")
    adapter(tmp_path / ".cache" / "x")
    listing = walk_zoo(tmp_path)
    assert paths(listing) == ["run/checkpoint-5"]
    assert listing.rejected == ()
    assert listing.ignored == (".cache", "run/tmp-checkpoint-6")


def _hub(root: Path, name: str = "models--org--lora", revision: str = "abc") -> tuple[Path, Path]:
    """A repository of a hub cache; returns its snapshot and its blobs."""
    snapshot, blobs = root / name / "snapshots" / revision, root / name / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir(exist_ok=True)
    for file, blob in ((WEIGHTS, "0f0f"), (CONFIG, "1e1e")):
        (blobs / blob).write_text("{}")
        (snapshot / file).symlink_to(f"../../blobs/{blob}")
    (root / name / "refs").mkdir()
    (root / name / "refs" / "main").write_text(revision)
    return snapshot, blobs


def test_hub_cache(tmp_path):
    snapshot, blobs = _hub(tmp_path)
    (blobs / "copy.safetensors").write_text("a blob is no checkpoint")
    listing = walk_zoo(tmp_path)
    assert listing.checkpoints == (
        Candidate("models--org--lora/snapshots/abc", snapshot / WEIGHTS, snapshot / CONFIG),
    )
    assert listing.rejected == ()
    assert listing.ignored == ()
    assert paths(walk_zoo(tmp_path / "models--org--lora")) == ["snapshots/abc"]


def test_hub_links_into_another_repositorys_blobs_are_refused(tmp_path):
    _, blobs = _hub(tmp_path, "models--org--one")
    snapshot, _ = _hub(tmp_path, "models--org--two")
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(blobs / "0f0f")
    listing = walk_zoo(tmp_path)
    assert paths(listing) == ["models--org--one/snapshots/abc"]
    assert faults(listing) == {
        "models--org--two/snapshots/abc": f"{WEIGHTS} is a link out of its repository's blobs"
    }


def test_multi_adapter_peft_save(tmp_path):
    from peft import LoraConfig, get_peft_model

    from llgbm_pack.demo.make import demo_base_model

    base = demo_base_model()
    base.name_or_path = base.config._name_or_path = ""
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    model.add_adapter("second", LoraConfig(target_modules=["v_proj"], r=4))
    model.save_pretrained(tmp_path / "run")
    assert paths(walk_zoo(tmp_path)) == ["run", "run/second"]


# --- order and choice


def test_order_is_natural_and_the_same_on_any_file_system(tmp_path, monkeypatch):
    names = [
        "t1/r2",
        "t1/r10",
        "t1/r10/a",
        "t1/r010",
        "t2/a",
        "t10/a",
        "T1/a",
        "t1-x/a",
        "t/a",
        "9/a",
        "10/a",
        "é/a",
    ]
    for name in names:
        adapter(tmp_path / name)
    expected = [
        "9/a",
        "10/a",
        "T1/a",
        "t/a",
        "t1/r2",
        "t1/r010",
        "t1/r10",
        "t1/r10/a",
        "t1-x/a",
        "t2/a",
        "t10/a",
        "é/a",
    ]
    scan = os.scandir

    class Shuffled:
        def __init__(self, path):
            with scan(path) as listing:
                self.entries = list(listing)
            random.Random(len(self.entries)).shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *exception):
            return None

    assert paths(walk_zoo(tmp_path)) == expected
    monkeypatch.setattr(zoo_module.os, "scandir", Shuffled)
    assert paths(walk_zoo(tmp_path)) == expected


def test_natural_key_never_ties_different_paths():
    assert natural_key("a01") != natural_key("a1")
    assert sorted(["a1", "a01", "a001"], key=natural_key) == sorted(["a001", "a1", "a01"], key=natural_key)


def test_include_and_exclude(tmp_path):
    for name in ("arc/a", "arc/b", "gsm/a", "gsm/deep/b"):
        adapter(tmp_path / name)
    (tmp_path / "gsm" / "half").mkdir()
    (tmp_path / "gsm" / "half" / CONFIG).write_text("{}")
    listing = walk_zoo(tmp_path, include=["gsm/*"])
    assert paths(listing) == ["gsm/a", "gsm/deep/b"]
    assert (listing.excluded, list(faults(listing))) == (2, ["gsm/half"])
    listing = walk_zoo(tmp_path, include=["arc/*", "gsm/*"], exclude=["*/b", "gsm/half"])
    assert paths(listing) == ["arc/a", "gsm/a"]
    assert (listing.excluded, listing.rejected) == (3, ())
    assert walk_zoo(tmp_path, include=["ARC/*"]).checkpoints == (), "globs mind case everywhere"
