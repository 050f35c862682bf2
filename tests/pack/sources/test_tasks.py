"""The task of a checkpoint: manifest, first folder, text file, default."""

from __future__ import annotations

import json
import os

import pytest

from llgbm_pack.sources.tasks import resolve_task, zoo_tasks
from llgbm_shards.errors import PlanError


@pytest.mark.parametrize(
    ("path", "zoo_task", "text_task", "task"),
    [
        ("arc/run_1", "from-manifest", "from-text", "from-manifest"),
        ("arc/run_1", "", "from-text", "arc"),
        ("run_1", "", "from-text", "from-text"),
        ("run_1", "", "", "default"),
        (".", "", "", "default"),
    ],
)
def test_order_of_sources(path, zoo_task, text_task, task):
    assert resolve_task(path, zoo_task, text_task) == task


PATHS = ["arc/run_1", "arc/run_2", "math/run_1", "math/seven"]


def tasks(tmp_path, manifest):
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    (tmp_path / "manifest.json").write_text(text)
    return zoo_tasks(tmp_path, PATHS)


def test_no_manifest_no_tasks(tmp_path):
    assert zoo_tasks(tmp_path, PATHS) == {}


@pytest.mark.parametrize(
    "manifest",
    [
        [{"path": "/old/machine/zoo/arc/run_1", "task": "T"}],
        {"adapters": [{"adapter_path": "zoo/arc/run_1", "task": "T"}]},
        {"adapters": {"x": {"checkpoint": "arc/run_1", "task": "T"}}},
        {"any": {"output_dir": "somewhere/arc/run_1/", "task": "T"}},
    ],
)
def test_manifests_by_path(tmp_path, manifest):
    assert tasks(tmp_path, manifest) == {"arc/run_1": "T"}


def test_by_name_only_when_it_names_one(tmp_path):
    assert tasks(tmp_path, {"seven": {"task": "T"}}) == {"math/seven": "T"}
    assert tasks(tmp_path, {"run_1": {"task": "T"}}) == {}


@pytest.mark.parametrize("entry", [{"task": 7}, {"task": ""}, {"task": None}, {}, "text", None, 3])
def test_entries_without_a_task_say_nothing(tmp_path, entry):
    assert tasks(tmp_path, {"adapters": {"math/seven": entry}, "list": [entry]}) == {}


@pytest.mark.parametrize(
    "manifest",
    [
        {"adapters": [{"path": "arc/run_1", "task": "S"}, {"path": "/moved/zoo/arc/run_1", "task": "T"}]},
        {"seven": {"task": "S"}, "adapters": [{"path": "math/seven", "task": "T"}]},
    ],
)
def test_two_tasks_for_one_checkpoint_are_refused(tmp_path, manifest):
    with pytest.raises(PlanError, match=r"(arc/run_1|math/seven).*two tasks.*'S' by .* and 'T' by"):
        tasks(tmp_path, manifest)


def test_one_task_told_twice_is_one(tmp_path):
    twice = [{"path": "arc/run_1", "task": "T"}, {"path": "/moved/zoo/arc/run_1", "task": "T"}]
    assert tasks(tmp_path, twice) == {"arc/run_1": "T"}


def test_a_path_of_another_zoo_is_nobodys(tmp_path):
    assert tasks(tmp_path, [{"path": "arc/run_3", "task": "T"}, {"path": "arc/run_11", "task": "T"}]) == {}


@pytest.mark.parametrize("text", ["{", '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100 + "]" * 100])
def test_an_unreadable_manifest_stops_the_plan(tmp_path, text):
    with pytest.raises(PlanError, match=r"manifest\.json"):
        tasks(tmp_path, text)


def test_a_manifest_that_may_not_be_opened(tmp_path):
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    os.mkfifo(zoo / "manifest.json")  # opening it would block
    with pytest.raises(PlanError, match="a FIFO"):
        zoo_tasks(zoo, PATHS)
    (zoo / "manifest.json").unlink()
    (tmp_path / "outside.json").write_text(json.dumps({"run": {"path": "arc/run_1", "task": "secret"}}))
    (zoo / "manifest.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(PlanError, match="a link out of the zoo"):
        zoo_tasks(zoo, PATHS)
    (tmp_path / "outside.json").rename(zoo / "inside.json")
    (zoo / "manifest.json").unlink()
    (zoo / "manifest.json").symlink_to("inside.json")
    assert zoo_tasks(zoo, PATHS) == {"arc/run_1": "secret"}
