"""check --against: what besides the weights makes a checkpoint another one, and what cannot be judged."""

from __future__ import annotations

import json

import pytest

from llgbm_pack import PackOptions, build
from support.commands import here
from support.peft_files import change_config
from support.tiny_tokenizers import save_tiny
from support.tiny_zoo import write_adapter, write_deltas, write_zoo


def against(root, code=0):
    done = here("check", root / "out", "--against", root / "zoo", "--format", "json")
    assert done.code == code, done.err
    return done.json["against"]


def changes(found):
    return {change["checkpoint"]: change["what"] for change in found["changed"]}


@pytest.fixture
def packed(tmp_path):
    paths = write_zoo(tmp_path / "zoo", 8)
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", workers=1))
    return tmp_path, paths


def write_prompts(directory, **values):
    (directory / "prompts.json").write_text(json.dumps(values))


def test_changed_configs_are_told(packed):
    root, paths = packed
    for path, change in zip(
        paths,
        (
            {"lora_alpha": 16},
            {"use_rslora": True},
            {"alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
            {"base_model_name_or_path": "tiny/other"},
            {"r": 8},
            {"use_dora": True},
            {"lora_dropout": 0.5},
            {"inference_mode": True},
        ),
        strict=False,
    ):
        change_config(root / "zoo" / path, **change)
    found = against(root)
    told = changes(found)
    assert told[paths[0]] == "other alpha (8.0, now 16.0), scaling (2.0, now 4.0), modules"
    assert told[paths[1]] == "other scaling (2.0, now 4.0), modules"
    assert told[paths[2]] == "other modules"
    assert told[paths[3]] == "other base_model ('tiny/base', now 'tiny/other')"
    assert "rank of the tensor is not that of the config" in told[paths[4]]
    assert "DoRA" in told[paths[5]]
    assert told[paths[6]] == "other lora_dropout (0.0, now 0.5)"
    assert (found["unchanged"], len(told), found["unjudged"]) == (1, 7, [])


def test_changed_texts_are_told(packed):
    root, paths = packed
    write_prompts(root / "zoo" / paths[0], prompts=["Another?", "Say it again."], answers=["It is 0."] * 2)
    write_prompts(
        root / "zoo" / paths[1], prompts=["What is it?", "Say it again.", "More?"], answers=["It is 1."] * 2
    )
    (root / "zoo" / paths[2] / "prompts.json").unlink()
    (root / "zoo" / paths[3] / "prompts.json").write_text("[")
    found = against(root)
    told = changes(found)
    assert told.keys() == set(paths[:4])
    assert {told[path] for path in paths[:3]} == {"other texts"}
    assert "prompts.json" in told[paths[3]]
    assert (found["unchanged"], found["unjudged"]) == (4, [])


def test_a_changed_task_is_told(packed):
    root, paths = packed
    (root / "zoo" / "manifest.json").write_text(json.dumps([{"path": paths[0], "task": "delta"}]))
    assert changes(against(root)) == {paths[0]: "other task ('alpha', now 'delta')"}


def test_texts_that_the_tokenizer_drops_are_no_change(tmp_path):
    """What a build leaves out of the texts, it would leave out again."""
    prompts = ["good", "ends in </s>", "fine"]
    for number in range(2):
        write_adapter(tmp_path / f"zoo/t/run_{number}", number, prompts=prompts)
    tokenizer = save_tiny("byt5", tmp_path / "tokenizer")
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", text_tokenizer=str(tokenizer), workers=1))
    assert against(tmp_path)["unchanged"] == 2
    write_prompts(tmp_path / "zoo/t/run_1", prompts=[*prompts, "also </s>"], answers=["It is 1."] * 3)
    assert against(tmp_path)["unchanged"] == 2
    write_prompts(tmp_path / "zoo/t/run_1", prompts=["good", "new"], answers=["It is 1."] * 2)
    assert changes(against(tmp_path)) == {"t/run_1": "other texts"}


def test_texts_from_elsewhere_are_not_judged(tmp_path):
    for number in range(3):
        prompts = ("One?",) if number == 0 else ()
        write_adapter(tmp_path / f"zoo/alpha/run_{number}", number, prompts=prompts)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/alpha.json").write_text(json.dumps(["Shared?", "Both?"]))
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", texts=tmp_path / "texts", workers=1))
    found = against(tmp_path)
    assert (found["unchanged"], found["changed"], found["same"]) == (3, [], True)
    assert found["unjudged"] == [
        "texts of 2 checkpoints: not from their prompts.json, and check is given no other texts"
    ]
    change_config(tmp_path / "zoo/alpha/run_1", lora_alpha=16)
    write_prompts(tmp_path / "zoo/alpha/run_2", prompts=["Own?"])
    told = changes(against(tmp_path))
    assert told["alpha/run_1"].startswith("other alpha")
    assert told["alpha/run_2"] == "other texts"
    text = here("check", tmp_path / "out", "--against", tmp_path / "zoo").out
    assert "not judged  texts of 1 checkpoints" in text


def test_deltas_are_not_judged(tmp_path):
    write_deltas(tmp_path / "deltas", write_zoo(tmp_path / "zoo", 2, prompts=()))
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", deltas=tmp_path / "deltas", workers=1))
    found = against(tmp_path)
    assert (found["unchanged"], found["unjudged"]) == (2, ["deltas: check is given no delta cache"])


def test_alpha_of_the_build_counts(tmp_path):
    for number in range(2):
        write_adapter(tmp_path / f"zoo/t/run_{number}", number)
        (tmp_path / f"zoo/t/run_{number}/adapter_config.json").unlink()
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", alpha=5, workers=1))
    assert against(tmp_path)["same"]


def test_comparing_imports_no_torch(packed):
    import subprocess
    import sys

    root, _ = packed
    code = (
        "import sys; from llgbm_pack.cli.commands import check_main\n"
        "try: check_main([*sys.argv[1:], '-q'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    command = [sys.executable, "-c", code, root / "out", "--against", root / "zoo"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "8 unchanged" in done.stdout
