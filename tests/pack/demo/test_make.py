"""The demo zoo is what it says: PEFT's own files, really trained, with true deltas, always the same."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llgbm_pack.demo import make as demo
from llgbm_pack.demo import model as demo_model
from llgbm_pack.demo.make import demo_base_model, make_demo
from llgbm_pack.demo.texts import PROBES, demo_tasks
from llgbm_shards.errors import StorageError, UsageError

pytestmark = pytest.mark.slow


def _files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _checkpoints(zoo: Path) -> list[Path]:
    return sorted(path.parent for path in zoo.rglob("adapter_model.safetensors"))


def test_three_tasks_of_eight_checkpoints_each_with_texts(demo_zoo):
    found = _checkpoints(demo_zoo.zoo)
    tasks = [path.parent.name for path in found]
    assert len(found) == 24
    assert {task: tasks.count(task) for task in tasks} == {"arithmetic": 8, "capitals": 8, "sorting": 8}
    seen = set()
    for path in found:
        texts = json.loads((path / "prompts.json").read_text())
        assert sorted(texts) == ["answers", "prompts", "task"]
        assert texts["task"] == path.parent.name
        assert len(texts["prompts"]) == len(texts["answers"]) == 6
        assert all(texts["prompts"])
        assert all(texts["answers"])
        seen.add(tuple(texts["prompts"]))
    assert len(seen) == 24, "texts vary from checkpoint to checkpoint"


def test_weights_are_bfloat16_pairs_and_trained(demo_zoo):
    digests = set()
    for path in _checkpoints(demo_zoo.zoo):
        tensors = load_file(path / "adapter_model.safetensors")
        assert len(tensors) == 2 * 2 * 7
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        assert all(tensor.abs().max() > 0 for tensor in tensors.values()), "a fresh lora_B would be all zeros"
        digests.add(hashlib.sha256((path / "adapter_model.safetensors").read_bytes()).hexdigest())
        config = json.loads((path / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "demo/qwen2-tiny"
        assert config["target_modules"] == sorted(config["target_modules"])
    assert len(digests) == 24


def test_training_lowers_the_loss(demo_zoo):
    from peft import PeftModel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_zoo.tokenizer)
    task = demo_tasks()[0]
    batch = tokenizer(
        [f"{prompt}\n{answer}" for prompt, answer in zip(task.prompts[:8], task.answers[:8], strict=True)],
        padding=True,
        return_tensors="pt",
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

    def loss(model):
        with torch.no_grad():
            return float(model(**batch, labels=labels).loss)

    trained = PeftModel.from_pretrained(demo_base_model(), demo_zoo.zoo / "arithmetic" / "lr0.01_s0")
    assert loss(trained) < loss(demo_base_model()) - 0.5


def test_deltas_are_the_shift_that_the_saved_adapter_causes(demo_zoo):
    from peft import PeftModel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_zoo.tokenizer)

    def activation(model):
        rows = []
        for probe in PROBES:  # one by one, without padding: another way than the demo's
            with torch.no_grad():
                output = model(**tokenizer(probe, return_tensors="pt"), output_hidden_states=True)
            rows.append(output.hidden_states[-1][0, -1].double())
        return torch.stack(rows).mean(0).numpy()

    neutral = activation(demo_base_model())
    np.testing.assert_allclose(np.load(demo_zoo.deltas / "base_activation.npy"), neutral, atol=1e-5)
    manifest = json.loads((demo_zoo.deltas / "manifest.json").read_text())
    for name in ("zoo/arithmetic/lr0.001_s0", "zoo/sorting/lr0.01_s1"):
        key = hashlib.md5(name.encode()).hexdigest()[:12]
        adapted = PeftModel.from_pretrained(demo_base_model(), demo_zoo.root / name)
        delta = np.load(demo_zoo.deltas / f"{key}.npy")
        np.testing.assert_allclose(delta, activation(adapted) - neutral, atol=1e-5)
        assert np.linalg.norm(delta) > 1e-3
        assert manifest["adapters"][key]["path"] == name


def test_delta_cache_has_the_first_form_and_two_are_missing(demo_zoo):
    manifest = json.loads((demo_zoo.deltas / "manifest.json").read_text())
    assert sorted(manifest) == ["adapters", "config"]
    assert manifest["config"]["base_model"] == "demo/qwen2-tiny"
    assert manifest["config"]["num_probes"] == len(PROBES)
    for key, entry in manifest["adapters"].items():
        assert key == hashlib.md5(entry["path"].encode()).hexdigest()[:12]
        delta = np.load(demo_zoo.deltas / f"{key}.npy")
        assert delta.dtype == np.float32
        assert list(delta.shape) == entry["shape"] == [64]
        assert np.isclose(np.linalg.norm(delta.astype(np.float64)), entry["norm"], rtol=1e-6)
    paths = {entry["path"] for entry in manifest["adapters"].values()}
    zoo = {path.relative_to(demo_zoo.root).as_posix() for path in _checkpoints(demo_zoo.zoo)}
    assert paths < zoo
    assert len(zoo - paths) == 2


def test_tokenizer_loads_and_puts_its_prefix(demo_zoo):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_zoo.tokenizer)
    assert tokenizer.is_fast
    ids = tokenizer("Name the capital of Japan: 東京")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Name the capital of Japan: 東京"
    assert len(tokenizer) <= demo_base_model().config.vocab_size
    assert None not in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)


def test_another_process_offline_makes_the_same_bytes(demo_zoo, tmp_path):
    # Another hash seed reorders sets; a refused socket shows that nothing asks a hub.
    script = (
        "import pathlib, socket, sys\n"
        "def refuse(*args): raise RuntimeError('network used')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from llgbm_pack.demo.make import make_demo\n"
        "make_demo(pathlib.Path(sys.argv[1]))\n"
    )
    environment = dict(
        os.environ, PYTHONHASHSEED="12345", PYTHONPATH=os.pathsep.join(sys.path), TZ="Asia/Tokyo"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "again")], check=True, env=environment, timeout=200
    )
    again, first = _files(tmp_path / "again"), _files(demo_zoo.root)
    assert sorted(again) == sorted(first)
    assert [name for name in first if first[name] != again[name]] == []


def test_no_machine_path_in_any_text_file(demo_zoo):
    for name, content in _files(demo_zoo.root).items():
        assert str(demo_zoo.root).encode() not in content, name


def test_torch_is_left_as_it_was():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first, second = demo_base_model(), demo_base_model()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])


def test_report_and_progress(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "_RUNS", ((1e-2, 0),))
    monkeypatch.setattr(demo, "_WITHOUT_DELTA", ("zoo/sorting/lr0.01_s0",))
    lines: list[str] = []
    state = torch.get_rng_state()
    report = make_demo(tmp_path / "new" / "demo", lines.append)
    assert (report.num_checkpoints, report.num_deltas) == (3, 2)
    assert (report.zoo, report.deltas, report.tokenizer) == tuple(
        tmp_path / "new" / "demo" / name for name in ("zoo", "deltas", "tokenizer")
    )
    assert report.seconds > 0
    assert lines[-1] == "demo: adapter 3 of 3: zoo/sorting/lr0.01_s0"
    assert torch.equal(torch.get_rng_state(), state)


def test_a_directory_that_holds_something_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"empty directory.*notes\.txt"):
        make_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UsageError, match="a file"):
        make_demo(tmp_path / "notes.txt")


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        make_demo(tmp_path / "file" / "below")


def test_without_peft_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(StorageError, match=r"pip install 'llgbm-pack\[demo\]'"):
        make_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
    with pytest.raises(StorageError):
        demo_model.load_peft()
