"""What a build does with texts it does once: a tokenizer is loaded once and its copy once, a text is tokenized once."""

from __future__ import annotations

import gc
import itertools
import json

import numpy as np
import pytest

from llgbm_pack import PackOptions, build
from llgbm_pack.tokenize import text_tokenizer as condition_tokenizer
from llgbm_pack.tokenize.conditions import (
    ConditionEncoder,
    describe,
    load_tokenizer,
    save_loaded,
    save_tokenizer,
)
from llgbm_shards import ShardSet
from llgbm_shards.members import encode_texts
from support.tiny_tokenizers import KINDS, save_tiny, small_texts
from support.tiny_zoo import tree, write_zoo

FORMS = ("prompt", "answer", "prompt_answer")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A zoo whose three tasks each have one file of texts, and a tokenizer."""
    root = tmp_path_factory.mktemp("once")
    write_zoo(root / "zoo", 6, prompts=())
    (root / "texts").mkdir()
    for task in ("alpha", "beta", "gamma"):
        items = [{"prompt": text, "response": f"{task} {text[:9]}"} for text in small_texts()[:30]]
        (root / f"texts/{task}.json").write_text(json.dumps(items))
    save_tiny("bert", root / "tokenizer")
    return root


def pack(root, out, **options):
    given = {"texts": root / "texts", "text_tokenizer": str(root / "tokenizer"), "forms": FORMS, **options}
    build(PackOptions(zoo=root / "zoo", out=out, max_texts=20, **given))


def test_each_member_is_what_texts_tokenized_one_by_one_give(shared, tmp_path):
    pack(shared, tmp_path / "out", workers=1)
    tokenizer = load_tokenizer(str(shared / "tokenizer"))
    opened = ShardSet(tmp_path / "out")
    for key in opened.keys:
        sample = opened.read_sample(key)
        plain = {}
        for form in FORMS:
            rows = [plain_ids(tokenizer, text, form) for text in sample.json["texts"]]
            ids = list(itertools.chain.from_iterable(rows))
            offsets = [0, *itertools.accumulate(map(len, rows))]
            plain[form] = (np.array(ids, np.int32), np.array(offsets, np.int64))
        wanted = encode_texts(plain)
        (row,) = [row for row in sample.json["members"] if row["name"] == "texts.safetensors"]
        assert (row["size"], row["digest"]) == (wanted.size, wanted.blake3.hex())


def plain_ids(tokenizer, text, form):
    joined = {"prompt": text["prompt"], "answer": text["answer"]}
    joined["prompt_answer"] = f"{text['prompt']}\n{text['answer']}"
    return tokenizer(joined[form], add_special_tokens=False)["input_ids"]


def test_a_build_loads_the_tokenizer_and_its_saved_copy_once_each(shared, tmp_path, monkeypatch):
    loaded = []
    load = condition_tokenizer._load

    def watched(auto, name):
        loaded.append(name)
        return load(auto, name)

    monkeypatch.setattr(condition_tokenizer, "_load", watched)
    pack(shared, tmp_path / "out", workers=1)
    assert len(loaded) == 2
    assert loaded[0] == str(shared / "tokenizer")


def test_a_process_tokenizes_each_text_once(shared, tmp_path, monkeypatch):
    seen = []
    encode = ConditionEncoder._encode_new

    def watched(self, texts):
        seen.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(ConditionEncoder, "_encode_new", watched)
    pack(shared, tmp_path / "out", workers=1, forms=("prompt",))
    assert sorted(seen) == sorted(set(seen))
    packed = {text["prompt"] for sample in samples(tmp_path / "out") for text in sample.json["texts"]}
    assert set(seen) == packed


def samples(out):
    opened = ShardSet(out)
    return [opened.read_sample(key) for key in opened.keys]


@pytest.mark.parametrize("enabled", [True, False])
def test_loading_leaves_garbage_collection_as_it_was(shared, monkeypatch, enabled):
    """It is paused meanwhile: a vocabulary is all objects and no garbage."""
    during = []
    load = condition_tokenizer._load

    def watched(auto, name):
        during.append(gc.isenabled())
        return load(auto, name)

    monkeypatch.setattr(condition_tokenizer, "_load", watched)
    try:
        if not enabled:
            gc.disable()
        load_tokenizer(str(shared / "tokenizer"))
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
    assert during == [False]


@pytest.mark.parametrize("kind", KINDS)
def test_describing_a_tokenizer_changes_nothing_of_what_is_saved_of_it(kind, tmp_path):
    """Its own settings of truncation and padding are saved too, and a mere call of it puts them away."""
    save_tiny(kind, tmp_path / "source")
    tokenizer = load_tokenizer(str(tmp_path / "source"))
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.enable_truncation(7)
        tokenizer.backend_tokenizer.enable_padding(length=9, pad_id=3)
        tokenizer.save_pretrained(str(tmp_path / "source"))
        tokenizer = load_tokenizer(str(tmp_path / "source"))
    describe(tokenizer)
    save_loaded(tokenizer, kind, tmp_path / "used")
    save_tokenizer(str(tmp_path / "source"), tmp_path / "fresh")
    assert tree(tmp_path / "used") == tree(tmp_path / "fresh")
    if tokenizer.is_fast:
        saved = json.loads((tmp_path / "used/tokenizer.json").read_text())
        assert (saved["truncation"]["max_length"], saved["padding"]["pad_id"]) == (7, 3)
