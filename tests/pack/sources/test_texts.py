"""Where the texts of a checkpoint come from, which are kept, and what hostile text files meet."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llgbm_pack.sources.texts import Text, choose_texts, read_texts
from llgbm_shards.errors import CheckpointError, UsageError

DATA = Path(__file__).parents[2] / "data" / "texts"


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "zoo" / "ARC-c" / "run1"
    directory.mkdir(parents=True)
    return directory


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def read(checkpoint, **options):
    return read_texts(checkpoint, path="ARC-c/run1", **options)


@pytest.mark.parametrize(
    ("value", "texts", "task"),
    [
        ({"prompts": ["p", "q"], "answers": ["a"], "task": "t"}, [("p", "a"), ("q", "")], "t"),
        ({"prompts": ["p"]}, [("p", "")], ""),
        (["p", "q"], [("p", ""), ("q", "")], ""),
        ([{"prompt": "p", "response": "r", "system": "s"}], [("p", "r")], ""),
        ([{"prompt": "p", "answer": "a"}, "q"], [("p", "a"), ("q", "")], ""),
        ([{"prompt": "p", "completion": "c"}, {"prompt": "q", "output": "o"}], [("p", "c"), ("q", "o")], ""),
        ({"prompts": ["p", "q"], "answers": None}, [("p", ""), ("q", "")], ""),
        ([{"prompt": "p", "response": None}], [("p", "")], ""),
        (
            [{"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "p"}]}],
            [("p", "")],
            "",
        ),
        (
            [
                {
                    "conversations": [
                        {"from": "human", "value": "p"},
                        {"from": "gpt", "value": "a"},
                        {"from": "human", "value": "more"},
                        {"from": "gpt", "value": "b"},
                    ]
                }
            ],
            [("p", "a")],
            "",
        ),
    ],
)
def test_shapes(checkpoint, value, texts, task):
    write(checkpoint / "prompts.json", value)
    found = read(checkpoint)
    assert list(found.texts) == texts
    assert (found.task, found.source, found.files) == (task, "prompts.json", (checkpoint / "prompts.json",))


def test_order_of_sources(checkpoint, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    assert read(checkpoint, texts_dir=texts).source == "name"
    write(texts / "ARC-c_train.json", [{"prompt": "train"}])
    assert read(checkpoint, texts_dir=texts).texts == (Text("train", ""),)
    write(texts / "ARC-c.json", [{"prompt": "plain"}])
    found = read(checkpoint, texts_dir=texts)
    assert (found.source, found.texts, found.files) == (
        "texts-dir",
        (Text("plain", ""),),
        (texts / "ARC-c.json",),
    )
    write(texts / "other.json", ["of the task"])
    assert read(checkpoint, texts_dir=texts, task="other").texts == (Text("of the task", ""),)
    probes = write(tmp_path / "probes.json", {"probes": ["probe"], "task": "not this"})
    found = read(checkpoint, texts_dir=texts, probes_file=probes)
    assert (found.source, found.texts, found.task, found.files) == (
        "probes",
        (Text("probe", ""),),
        "",
        (probes,),
    )
    write(checkpoint / "prompts.json", ["own"])
    assert read(checkpoint, texts_dir=texts, probes_file=probes).source == "prompts.json"


def test_name_is_the_last_resort(checkpoint):
    found = read(checkpoint)
    assert (found.texts, found.source, found.files) == ((Text("run1", ""),), "name", ())
    assert read_texts(checkpoint, path=".").texts == (Text("run1", ""),)


@pytest.mark.parametrize("leaf", ["adapter", "checkpoint-300"])
def test_a_folder_that_names_no_checkpoint_in_particular(tmp_path, leaf):
    checkpoint = tmp_path / "zoo" / "arc" / "run1" / leaf
    checkpoint.mkdir(parents=True)
    path = f"arc/run1/{leaf}"
    assert read_texts(checkpoint, path=path).texts == (Text("run1", ""),)
    shared = write(checkpoint.parent / "prompts.json", {"prompts": ["of the run"], "task": "t"})
    found = read_texts(checkpoint, path=path)
    assert (found.texts, found.task, found.files) == ((Text("of the run", ""),), "t", (shared,))
    write(checkpoint / "prompts.json", ["its own"])
    assert read_texts(checkpoint, path=path).texts == (Text("its own", ""),)
    assert read_texts(checkpoint, path=leaf).texts == (Text("its own", ""),)


def test_texts_above_a_checkpoint_that_has_a_name_are_not_its_own(checkpoint):
    write(checkpoint.parent / "prompts.json", ["of the dataset"])
    assert read(checkpoint).source == "name"


def test_the_zoo_itself_named_adapter_has_no_texts_above(tmp_path):
    (tmp_path / "adapter").mkdir()
    write(tmp_path / "prompts.json", ["out of the zoo"])
    assert read_texts(tmp_path / "adapter", path=".").texts == (Text("adapter", ""),)


def test_a_byte_order_mark_is_no_fault(checkpoint):
    (checkpoint / "prompts.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(["p"]).encode())
    assert read(checkpoint).texts == (Text("p", ""),)


def test_dataset_file_of_the_task_cannot_lead_out(checkpoint, tmp_path):
    (tmp_path / "texts").mkdir()
    write(tmp_path / "secret.json", ["secret"])
    assert read(checkpoint, texts_dir=tmp_path / "texts", task="../secret").source == "name"


def test_a_changed_dataset_file_is_read_again(checkpoint, tmp_path):
    write(tmp_path / "ARC-c.json", ["before"])
    assert read(checkpoint, texts_dir=tmp_path).texts[0].prompt == "before"
    write(tmp_path / "ARC-c.json", ["after it changed"])
    assert read(checkpoint, texts_dir=tmp_path).texts[0].prompt == "after it changed"


@pytest.mark.parametrize("file", sorted(DATA.glob("*.json")), ids=lambda file: file.name)
def test_real_text_files(file, checkpoint):
    (checkpoint / "prompts.json").write_bytes(file.read_bytes())
    items = json.loads(file.read_text())
    assert list(read(checkpoint).texts) == [(item["prompt"], item.get("response", "")) for item in items]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no texts"),
        ({"prompts": []}, "no texts"),
        ({"answers": ["a"]}, "no prompts"),
        ({"prompts": "p"}, "not a list"),
        ({"prompts": ["p", 1]}, "prompts 1: not a string"),
        ({"prompts": ["p"], "answers": ["a", "b"]}, "more answers than prompts"),
        ({"prompts": ["p"], "answers": [None]}, "not a string"),
        ({"prompts": ["p"], "task": 3}, "task: not a string"),
        ([["p"]], "no known shape"),
        ([{"prompt": None}], "not a string"),
        ([{"question": "p"}], "no known shape"),
        ([{"conversations": []}], "without a prompt"),
        ([{"conversations": [{"from": "gpt", "value": "a"}]}], "without a prompt"),
        ([{"conversations": [{"from": "human"}]}], "turn"),
        ([{"conversations": "p"}], "list"),
        ("3", "no known shape"),
        ('{"prompts": ["a"], "prompts": ["b"]}', "duplicate key"),
        ('["\\ud800"]', "surrogates"),
        ('["a", NaN]', "NaN"),
        ("[" * 5000 + "]" * 5000, "nested"),
        ('["a"', "JSON"),
        ("", "JSON"),
        ('["a"] x', "JSON"),
    ],
)
def test_hostile_files_meet_a_clear_error(checkpoint, value, message):
    write(checkpoint / "prompts.json", value)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(checkpoint)
    assert "prompts.json" in str(caught.value)
    assert str(checkpoint) not in str(caught.value), (
        "the reason is packed into a set: no path of this machine"
    )


def test_bytes_that_are_no_text(checkpoint):
    (checkpoint / "prompts.json").write_bytes(b'["\xff"]')
    with pytest.raises(CheckpointError, match="JSON"):
        read(checkpoint)


def test_too_large_a_file_is_not_read_whole(checkpoint):
    with (checkpoint / "prompts.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="too large"):
        read(checkpoint, max_bytes=1000)


def test_a_faulty_source_is_no_reason_to_take_the_next(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(checkpoint, probes_file=tmp_path / "absent.json")
    (checkpoint / "prompts.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(checkpoint)


def test_name_that_is_no_text(tmp_path):
    with pytest.raises(CheckpointError, match="Rename"):
        read_texts(tmp_path, path="task/\udcff")


def test_choice_keeps_the_first_and_the_order():
    texts = tuple(Text(f"p{index}", "") for index in range(50))
    chosen = choose_texts(texts, path="t/x", seed=0, limit=10)
    assert len(chosen) == 10
    assert chosen[0] == texts[0]
    assert list(chosen) == sorted(chosen, key=texts.index)
    assert chosen == choose_texts(texts, path="t/x", seed=0, limit=10)
    assert chosen != choose_texts(texts, path="t/x", seed=1, limit=10)
    assert chosen != choose_texts(texts, path="t/y", seed=0, limit=10)
    assert set(choose_texts(texts, path="t/x", seed=0, limit=9)) < set(chosen)
    assert choose_texts(texts, path="t/x", seed=0, limit=None) == texts
    assert choose_texts(texts, path="t/x", seed=0, limit=50) == texts
    assert choose_texts(texts, path="t/x", seed=0, limit=1) == texts[:1]
    with pytest.raises(UsageError, match="at least 1"):
        choose_texts(texts, path="t/x", seed=0, limit=0)


def test_choice_is_the_same_on_every_machine():
    texts = tuple(Text(str(index), "") for index in range(20))
    chosen = choose_texts(texts, path="t/x", seed=7, limit=5)
    assert [text.prompt for text in chosen] == ["0", "5", "10", "15", "16"]


def test_so_many_texts_are_kept_unless_told_otherwise(checkpoint):
    write(checkpoint / "prompts.json", [str(index) for index in range(2000)])
    assert len(read(checkpoint).texts) == 1024
    assert len(read(checkpoint, max_texts=None).texts) == 2000


def test_a_fifo_is_refused_without_being_opened(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("os.open", lambda *args: pytest.fail("opened"))
    os.mkfifo(checkpoint / "prompts.json")
    with pytest.raises(CheckpointError, match="a FIFO"):
        read(checkpoint)
    (checkpoint / "prompts.json").unlink()
    os.mkfifo(tmp_path / "ARC-c.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read(checkpoint, texts_dir=tmp_path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read(checkpoint, probes_file=tmp_path / "ARC-c.json")


def test_a_link_out_of_the_zoo_is_not_followed(checkpoint, tmp_path):
    write(tmp_path / "secret.json", ["secret"])
    (checkpoint / "adapter_model.safetensors").touch()
    (checkpoint / "prompts.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="a link out of the zoo"):
        read(checkpoint)
    with pytest.raises(CheckpointError, match="a link out of the zoo"):
        read_texts(checkpoint, path="ARC-c/run1/7")  # an adapter that is a file among others
    with pytest.raises(CheckpointError, match="a link out of the zoo"):
        read_texts(checkpoint, path="elsewhere")


def test_a_link_within_the_zoo_is_followed(checkpoint, tmp_path):
    write(tmp_path / "zoo" / "shared.json", ["shared"])
    (checkpoint / "prompts.json").symlink_to("../../shared.json")
    with pytest.raises(CheckpointError, match="a link out of the zoo"):
        read(checkpoint)  # no adapter of its own: ARC-c/run1 would be a file of zoo/ARC-c
    (checkpoint / "adapter_model.safetensors").touch()
    assert read(checkpoint).texts == (Text("shared", ""),)
    assert read_texts(checkpoint, path="ARC-c/run1/7").texts == (Text("shared", ""),)
