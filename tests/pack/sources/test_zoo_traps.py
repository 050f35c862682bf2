"""Every trap in a tree of other people's files: refused by name, without being opened."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from llgbm_pack.sources import zoo as zoo_module
from llgbm_pack.sources.directory import file_fault
from llgbm_pack.sources.zoo import Rejected, walk_zoo
from llgbm_shards.errors import StorageError, UsageError
from support.listings import CONFIG, WEIGHTS, adapter, faults, paths

# --- refused


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "pytorch_lora_weights.bin"])
def test_a_pickle_is_refused_by_name_and_never_opened(name, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / CONFIG).write_text("{}")
    os.mkfifo(folder / name)  # opening it would hang
    listing = walk_zoo(tmp_path)
    assert listing.checkpoints == ()
    assert listing.rejected == (
        Rejected("old", f"{name} is a pickle, which is never opened; save it as safetensors", True),
    )


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path):
    (adapter(tmp_path / "a") / "adapter_model.bin").write_text("pickle")
    listing = walk_zoo(tmp_path)
    assert paths(listing) == ["a"]
    assert listing.rejected == ()


def test_numbered_pickles_are_listed_each(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.pt").write_text("pickle")
    (tmp_path / "d" / "2.bin").write_text("pickle")
    assert list(faults(walk_zoo(tmp_path))) == ["d/1.pt", "d/2.bin"]


def test_named_pickles_are_listed_each(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("lora_1.pt", "my_Adapter.ckpt", "tokenizer.bin", "training_args.bin"):
        (tmp_path / "d" / name).write_text("pickle")
    assert list(faults(walk_zoo(tmp_path))) == ["d/lora_1.pt", "d/my_Adapter.ckpt"]


def test_another_adapter_beside_the_adapter_is_not_lost_without_a_word(tmp_path):
    folder = adapter(tmp_path / "a")
    for name in ("adapter_model_best.safetensors", "value_head.safetensors", "new_embeddings.safetensors"):
        (folder / name).write_text("w")
    listing = walk_zoo(tmp_path)
    assert paths(listing) == ["a"]
    assert faults(listing) == {
        "a/adapter_model_best.safetensors": f"beside {WEIGHTS}, which is packed; move it to a folder of its own"
    }


def test_an_adapter_whose_name_begins_like_training_state(tmp_path):
    for name in ("scheduler_lora", "optimizer-7b"):
        (tmp_path / f"{name}.safetensors").write_text("w")
    assert paths(walk_zoo(tmp_path)) == ["optimizer-7b", "scheduler_lora"]


def test_a_config_without_weights_is_a_fault(tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / CONFIG).write_text("{}")
    assert faults(walk_zoo(tmp_path)) == {"half": f"{CONFIG} without {WEIGHTS}"}


def test_whole_models_and_adapters_in_parts(tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "model-00001-of-00002.safetensors").write_text("w")
    (tmp_path / "merged" / "model.safetensors").write_text("w")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "adapter_model-00001-of-00002.safetensors").write_text("w")
    listing = walk_zoo(tmp_path)
    assert listing.checkpoints == ()
    assert [(one.path, one.fault) for one in listing.rejected] == [
        ("merged/model-00001-of-00002.safetensors", False),
        ("merged/model.safetensors", False),
        ("parts/adapter_model-00001-of-00002.safetensors", True),
    ]


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("trap", ["fifo", "socket", "folder link", "out", "device", "broken", "loop"])
def test_special_files_and_links_are_refused_without_being_opened(trap, file, tmp_path, monkeypatch):
    zoo = tmp_path / "zoo"
    folder = adapter(zoo / "bad")
    adapter(zoo / "good")
    (tmp_path / "secret").write_text("outside")
    path = folder / file
    path.unlink()
    if trap == "fifo":
        os.mkfifo(path)
    elif trap == "socket":
        monkeypatch.chdir(folder)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(file)
    else:
        targets = {
            "folder link": zoo / "good",
            "out": tmp_path / "secret",
            "device": "/dev/zero",
            "broken": "nowhere",
            "loop": file,
        }
        path.symlink_to(targets[trap])
    listing = walk_zoo(zoo)
    assert paths(listing) == ["good"]
    reason = {
        "fifo": "is a FIFO, not a regular file",
        "socket": "is a socket, not a regular file",
        "folder link": "is a link to a directory",
        "out": "is a link out of the zoo",
        "device": "is a link out of the zoo",
        "broken": "broken link",
        "loop": "broken link",
    }[trap]
    assert file in faults(listing)["bad"]
    assert reason in faults(listing)["bad"]


def test_a_link_to_a_file_of_the_zoo_is_accepted(tmp_path):
    adapter(tmp_path / "a", "one")
    folder = adapter(tmp_path / "b", "two")
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("../a/" + WEIGHTS)
    assert paths(walk_zoo(tmp_path)) == ["a", "b"]


def test_links_to_directories_are_not_followed(tmp_path):
    zoo = tmp_path / "zoo"
    adapter(zoo / "run" / "checkpoint-2")
    (zoo / "run" / "latest").symlink_to("checkpoint-2")
    (zoo / "run" / "loop").symlink_to("..")
    adapter(tmp_path / "elsewhere")
    (zoo / "out").symlink_to(tmp_path / "elsewhere")
    (zoo / ".hidden").symlink_to(tmp_path / "elsewhere")
    listing = walk_zoo(zoo)
    assert paths(listing) == ["run/checkpoint-2"]
    assert [(one.path, one.fault) for one in listing.rejected] == [
        ("out", True),
        ("run/latest", False),
        ("run/loop", False),
    ]


def test_a_zoo_given_through_a_link(tmp_path):
    adapter(tmp_path / "real" / "a")
    (tmp_path / "link").symlink_to("real")
    assert paths(walk_zoo(tmp_path / "link")) == ["a"]


def test_an_unreadable_directory_is_a_fault_by_name(tmp_path, monkeypatch):
    adapter(tmp_path / "a")
    adapter(tmp_path / "locked" / "b")
    scan = os.scandir

    def refuse(path):  # tests may run as root, whom no permission stops
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(zoo_module.os, "scandir", refuse)
    listing = walk_zoo(tmp_path)
    assert paths(listing) == ["a"]
    assert faults(listing) == {"locked": "directory cannot be read: Permission denied"}
    with pytest.raises(StorageError, match="Permission denied"):
        walk_zoo(tmp_path / "locked")


def test_names_that_are_not_utf8(tmp_path):
    adapter(tmp_path / "good")
    bad = os.fsencode(tmp_path) + b"/b\xffd"
    os.mkdir(bad)
    with open(os.fsencode(tmp_path) + b"/\xfe.safetensors", "wb") as file:
        file.write(b"w")
    with open(os.fsencode(tmp_path) + b"/notes\xfe.txt", "wb") as file:
        file.write(b"of no interest")
    listing = walk_zoo(tmp_path)
    assert paths(listing) == ["good"]
    assert faults(listing) == {
        "\\xfe.safetensors": "its name is not UTF-8",
        "b\\xffd": "its name is not UTF-8",
    }


def test_a_file_and_a_folder_of_one_path(tmp_path):
    adapter(tmp_path / "d" / "3")
    (tmp_path / "d" / "3.safetensors").write_text("w")
    listing = walk_zoo(tmp_path)
    assert [one.weights.name for one in listing.checkpoints] == [WEIGHTS]
    assert "3.safetensors has the same path" in faults(listing)["d/3"]


def test_a_tree_deeper_than_pythons_stack(tmp_path):
    path = tmp_path
    for _ in range(400):
        path = path / "d"
    adapter(path)
    assert paths(walk_zoo(tmp_path)) == ["/".join("d" * 400)]


def test_what_is_not_a_zoo(tmp_path):
    with pytest.raises(UsageError, match="the zoo is not a directory"):
        walk_zoo(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="another kind of file"):
        walk_zoo(tmp_path / "file")
    assert walk_zoo(tmp_path).checkpoints == ()


def test_file_fault_says_nothing_of_a_plain_file(tmp_path):
    (tmp_path / "a").write_text("")
    assert file_fault(tmp_path / "a", tmp_path) == ""
    assert "No such file" in file_fault(tmp_path / "b", tmp_path)
    assert "a directory" in file_fault(tmp_path, tmp_path)
