"""Texts as ids: every kept text gives the tokenizer's own padded result at every length, on both sides."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llgbm_pack.sources.texts import Text
from llgbm_pack.tokenize.conditions import (
    ConditionEncoder,
    describe,
    form_text,
    load_tokenizer,
    save_tokenizer,
)
from llgbm_shards.errors import CheckpointError, UsageError
from llgbm_shards.texts import rebuild_into
from support.commands import here
from support.tiny_tokenizers import KINDS, save_tiny, small_texts, tiny_tokenizer
from support.tiny_zoo import write_zoo

pytestmark = pytest.mark.slow

SHARED = Path(__file__).resolve().parents[4] / "shared"
QWEN = SHARED / "tokenizers" / "qwen2.5"
SIDES = [("right", "right"), ("left", "right"), ("right", "left"), ("left", "left")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: save_tiny(kind, root / kind) for kind in KINDS}


def assert_exact(tokenizer, spec, texts, ragged, lengths):
    """The rebuilt batch equals the tokenizer's own at each length."""
    rows = [ragged[index] for index in range(len(ragged))]
    for length in lengths:
        own = tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="np"
        )
        built = np.empty((len(texts), length), np.int64)
        mask = np.empty_like(built)
        rebuild_into(rows, spec, built, mask)
        np.testing.assert_array_equal(built, own["input_ids"], err_msg=f"length {length}")
        np.testing.assert_array_equal(mask, own["attention_mask"], err_msg=f"length {length}")


@pytest.mark.parametrize(("padding", "truncation"), SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_small_texts_exact(kind, padding, truncation, tmp_path):
    directory = save_tiny(kind, tmp_path, padding_side=padding, truncation_side=truncation)
    spec, _ = describe(load_tokenizer(str(directory)))
    assert (spec.padding_side, spec.truncation_side) == (padding, truncation)
    encoded = ConditionEncoder.from_directory(directory, spec).encode(
        [Text(text, "") for text in small_texts()]
    )
    assert not encoded.dropped
    own = load_tokenizer(str(directory))
    if own.pad_token is None:
        own.pad_token = own.eos_token
    lengths = [spec.num_special + 1, spec.num_special + 2, 7, 33, 128, 512]
    assert_exact(own, spec, small_texts(), encoded.forms["prompt"], lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_found(kind):
    tokenizer = tiny_tokenizer(kind)
    spec, note = describe(tokenizer)
    names = {
        "bert": (["[CLS]"], ["[SEP]"], "[PAD]"),
        "qwen2": ([], [], "<|endoftext|>"),
        "t5": ([], ["</s>"], "<pad>"),
        "llama": (["<s>"], [], "</s>"),
        "byt5": ([], ["</s>"], "<pad>"),
    }
    prefix, suffix, pad = names[kind]
    assert list(spec.prefix) == tokenizer.convert_tokens_to_ids(prefix)
    assert list(spec.suffix) == tokenizer.convert_tokens_to_ids(suffix)
    assert spec.pad_id == tokenizer.convert_tokens_to_ids(pad)
    assert spec.vocab_size == max(tokenizer.get_vocab().values()) + 1
    assert bool(note) == (kind == "llama"), "only the Llama-like one has to pad with its end-of-text id"


@pytest.mark.parametrize("bad", ["ends in </s>", "one </s> inside", "</s>"])
def test_texts_that_change_what_byt5_adds_are_dropped_and_named(bad):
    tokenizer = tiny_tokenizer("byt5")
    spec, _ = describe(tokenizer, forms=["prompt", "answer"])
    encoder = ConditionEncoder(tokenizer, spec)
    encoded = encoder.encode([Text("good", "fine"), Text("x", bad), Text("also good", "")])
    assert encoded.kept == (0, 2)
    assert [(drop.index, drop.form) for drop in encoded.dropped] == [(1, "answer")]
    assert "</s>" in encoded.dropped[0].reason
    assert {len(ragged) for ragged in encoded.forms.values()} == {2}
    with pytest.raises(CheckpointError, match="first text") as caught:
        encoder.encode([Text(bad, ""), Text("good", "")], where="t/x")
    assert "t/x" in str(caught.value)


@pytest.mark.filterwarnings("ignore:This sequence already has")
def test_the_inner_special_token_really_breaks_a_length():
    # Why "one </s> inside" is dropped: at the length that cuts right after it, ByT5 adds no further </s>.
    tokenizer = tiny_tokenizer("byt5")
    own = tokenizer("ab</s>cd", padding="max_length", truncation=True, max_length=4)["input_ids"]
    assert own == [100, 101, 1, 0]


def test_literal_special_tokens_are_kept_where_they_do_no_harm(saved):
    for kind, text in [
        ("bert", "x [SEP]"),
        ("t5", "a </s>"),
        ("llama", "<s> b </s>"),
        ("qwen2", "<|endoftext|>"),
    ]:
        tokenizer = load_tokenizer(str(saved[kind]))
        spec, _ = describe(tokenizer)
        encoded = ConditionEncoder(tokenizer, spec).encode([Text(text, "")])
        lengths = range(spec.num_special + 1, 12)
        assert_exact(tokenizer, spec, [text], encoded.forms["prompt"], lengths)


def test_forms_and_missing_answers(saved):
    tokenizer = load_tokenizer(str(saved["qwen2"]))
    spec, _ = describe(tokenizer, forms=["prompt_answer", "prompt", "answer"], joiner="answer: ")
    assert spec.forms == ("prompt", "answer", "prompt_answer")
    encoded = ConditionEncoder(tokenizer, spec).encode([Text("one", "two"), Text("three", "")])
    expected = {
        "prompt": ["one", "three"],
        "answer": ["two", "three"],
        "prompt_answer": ["oneanswer: two", "three"],
    }
    for form, texts in expected.items():
        ids = [encoded.forms[form][index].tolist() for index in range(2)]
        assert ids == tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert encoded.forms[form].ids.dtype == np.int32
        assert encoded.forms[form].offsets.dtype == np.int64
    assert encoded.fallbacks == 1


def test_prompts_alone_miss_no_answer(saved):
    tokenizer = load_tokenizer(str(saved["qwen2"]))
    spec, _ = describe(tokenizer)
    assert ConditionEncoder(tokenizer, spec).encode([Text("one", "")]).fallbacks == 0
    with pytest.raises(CheckpointError, match="no texts"):
        ConditionEncoder(tokenizer, spec).encode([])


def test_joined_text_is_tokenized_as_a_whole(saved):
    # The ids of prompt + answer are not those of the parts: a merge may cross the seam.
    tokenizer = load_tokenizer(str(saved["qwen2"]))
    spec, _ = describe(tokenizer, forms=["prompt_answer"], joiner="")
    text = Text("the ques", "tion is")
    joined = ConditionEncoder(tokenizer, spec).encode([text]).forms["prompt_answer"][0].tolist()
    parts = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in text]
    assert joined == tokenizer("the question is", add_special_tokens=False)["input_ids"]
    assert joined != parts[0] + parts[1]
    assert form_text(text, "prompt_answer", "\n") == "the ques\ntion is"


def test_a_wrong_description_drops_every_text(saved):
    # The verification can fail: with another prefix, side or padding nothing is rebuilt.
    tokenizer = load_tokenizer(str(saved["bert"]))
    spec, _ = describe(tokenizer)
    values = spec.to_json()
    for change in (
        {"prefix": []},
        {"suffix": [5]},
        {"pad_id": 7},
        {"padding_side": "left"},
        {"truncation_side": "left"},
    ):
        other = type(spec).from_json({**values, **change})
        with pytest.raises(CheckpointError, match="first text"):
            ConditionEncoder(load_tokenizer(str(saved["bert"])), other).encode(
                [Text("one two three four", "")]
            )


def test_remembered_texts_give_equal_ids(saved, monkeypatch):
    monkeypatch.setattr("llgbm_pack.tokenize.conditions._MEMORY_CHARACTERS", 40)
    tokenizer = load_tokenizer(str(saved["t5"]))
    spec, _ = describe(tokenizer)
    encoder = ConditionEncoder(tokenizer, spec)
    batches = [
        ["one", "two", "one"],
        ["two", "three" * 9],
        ["one", "two"],
        ["x" * 30, "y" * 5],
        ["y" * 5, "three" * 9],
    ]
    for batch in batches:
        encoded = encoder.encode([Text(text, "") for text in batch])
        ids = [encoded.forms["prompt"][index].tolist() for index in range(len(batch))]
        assert ids == tokenizer(batch, add_special_tokens=False)["input_ids"]
        assert sum(map(len, encoder._known)) <= 40


def test_long_and_short_texts_are_padded_in_bounded_groups(saved, monkeypatch):
    monkeypatch.setattr("llgbm_pack.tokenize.conditions._CALL_CELLS", 600)
    tokenizer = load_tokenizer(str(saved["bert"]))
    spec, _ = describe(tokenizer)
    texts = [*small_texts()[:20], "word " * 700]
    encoded = ConditionEncoder(tokenizer, spec).encode([Text(text, "") for text in texts])
    assert_exact(tokenizer, spec, texts, encoded.forms["prompt"], [16, 800])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_files_are_equal_each_time_and_name_no_place(kind, saved, tmp_path):
    save_tokenizer(str(saved[kind]), tmp_path / "one")
    # Other use, another place, and copied from a copy: the same bytes.
    files = save_tokenizer(str(tmp_path / "one"), tmp_path / "deep" / "two")
    names = sorted(os.listdir(tmp_path / "one"))
    assert [file.name for file in files] == names
    for name in names:
        data = (tmp_path / "one" / name).read_bytes()
        assert data == (tmp_path / "deep" / "two" / name).read_bytes(), name
        assert str(tmp_path).encode() not in data
        assert str(saved[kind]).encode() not in data
    spec, note = describe(load_tokenizer(str(saved[kind])), forms=["prompt"])
    assert describe(load_tokenizer(str(tmp_path / "one")), forms=["prompt"]) == (spec, note)


def test_places_in_the_config_are_dropped(saved, tmp_path):
    source = save_tiny(
        "bert", tmp_path / "source", vocab_file="/home/me/vocab.txt", name_or_path="/home/me/x"
    )
    save_tokenizer(str(source), tmp_path / "saved")
    config = (tmp_path / "saved" / "tokenizer_config.json").read_text()
    assert "/home/me" not in config
    assert "local" not in config, "a tokenizer of the hub and its copy on disk are the same tokenizer"
    assert json.loads(config)["pad_token"] == "[PAD]"


def test_tokenizer_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path / "empty"))
    for name in (str(tmp_path / "absent"), str(tmp_path / "file"), "./absent", "~/absent", "a/b/c"):
        with pytest.raises(UsageError, match="no such directory"):
            load_tokenizer(name)


def load_in_a_child(name, **environment):
    """A process of its own: transformers and the hub's client read their settings when they are imported."""
    code = "import sys\nfrom llgbm_pack.tokenize.conditions import load_tokenizer\nprint(load_tokenizer(sys.argv[1]).vocab_size)"
    # A port on which nobody listens stands for a hub that cannot be reached.
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", **environment}
    return subprocess.run(
        [sys.executable, "-c", code, name],
        check=False,
        capture_output=True,
        text=True,
        timeout=40,
        env=os.environ | settings,
    )


def test_a_mistyped_name_is_refused_at_once_and_quietly(tmp_path):
    for name in ("qwen-nope", "Qwen/Nope"):
        done = load_in_a_child(name, HF_HUB_CACHE=str(tmp_path))
        said = done.stderr.strip().splitlines()
        assert f"{name}: the text tokenizer cannot be loaded" in said[-1]
        assert "Retry" not in done.stderr


def test_the_local_cache_of_the_hub_is_enough(saved, tmp_path):
    cached = tmp_path / "models--some--one"
    commit = "0" * 40
    shutil.copytree(saved["bert"], cached / "snapshots" / commit)
    for name, content in (("refs/main", commit), (f".no_exist/{commit}/config.json", "")):
        (cached / name).parent.mkdir(parents=True)
        (cached / name).write_text(content)
    done = load_in_a_child("some/one", HF_HUB_CACHE=str(tmp_path))
    assert done.stdout.strip() == str(load_tokenizer(str(saved["bert"])).vocab_size), done.stderr


@pytest.mark.parametrize("damage", [{"model": {"type": "Nonsense"}}, {"pre_tokenizer": 7}, None])
def test_a_tokenizer_json_that_cannot_be_read(saved, tmp_path, damage):
    source = tmp_path / "tokenizer"
    shutil.copytree(saved["qwen2"], source)
    whole = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").write_text(json.dumps(whole | damage) if damage else "{")
    write_zoo(tmp_path / "zoo", 2)
    done = here("build", tmp_path / "zoo", tmp_path / "out", "--text-tokenizer", source)
    assert (done.code, "the text tokenizer cannot be loaded" in done.err) == (2, True), done.err
    assert not (tmp_path / "out").exists()


def test_tokenizer_with_nothing_to_pad_with():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "u": 1}, unk_token="u"))
    )
    with pytest.raises(UsageError, match="padding token"):
        describe(bare)


def test_unknown_form(saved):
    with pytest.raises(UsageError, match="question"):
        describe(load_tokenizer(str(saved["bert"])), forms=["prompt", "question"])


@pytest.mark.skipif(not QWEN.is_dir(), reason="shared/tokenizers/qwen2.5 is absent")
@pytest.mark.parametrize(("padding", "truncation"), [("right", "right"), ("left", "left")])
def test_real_qwen_tokenizer_exact(padding, truncation):
    tokenizer = load_tokenizer(str(QWEN))
    tokenizer.padding_side, tokenizer.truncation_side = padding, truncation
    spec, _ = describe(tokenizer)
    texts = shared_texts() or small_texts()
    encoded = ConditionEncoder(tokenizer, spec).encode([Text(text, "") for text in texts])
    assert not encoded.dropped
    assert_exact(tokenizer, spec, texts, encoded.forms["prompt"], [1, 2, 30, 512])


@pytest.mark.skipif(not (SHARED / "texts").is_dir(), reason="shared/texts is absent")
@pytest.mark.parametrize("kind", KINDS)
def test_every_shared_text_exact(kind, saved):
    tokenizer = load_tokenizer(str(saved[kind]))
    spec, _ = describe(tokenizer)
    texts = shared_texts()
    encoded = ConditionEncoder(tokenizer, spec).encode([Text(text, "") for text in texts])
    assert not encoded.dropped
    assert_exact(tokenizer, spec, texts, encoded.forms["prompt"], [spec.num_special + 1, 31, 512])


def shared_texts():
    files = sorted((SHARED / "texts").glob("*.json"))
    items = [item for file in files for item in json.loads(file.read_text())]
    return [item["prompt"] + ("\n" + item["response"] if item.get("response") else "") for item in items]
