"""Text2Qwen25LoRA_DeltaDataset and create_dataloader: the users' own scripts, acceptance list, and what must not fail."""

from __future__ import annotations

import json
import logging
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llgbm_loader.frame import unframe
from llgbm_pack import DeltaCache, LoraTokenizer2D
from llgbm_pack.raw import Text2Qwen25LoRA_DeltaDataset, create_dataloader
from llgbm_pack.raw.weights import token_tensors
from llgbm_pack.tokenize.conditions import load_tokenizer
from llgbm_shards.errors import CheckpointError, UsageError
from support.dnd_like import FrameTokenizer
from support.tiny_tokenizers import tiny_tokenizer
from support.tiny_zoo import DELTA_WIDTH, MODULES, random_pairs, write_adapter, write_deltas, write_zoo

DTYPES = {
    "tokens": torch.float32,
    "scales": torch.float32,
    "condition_ids": torch.long,
    "attention_mask": torch.long,
    "delta": torch.float32,
    "has_delta": torch.bool,
}


@pytest.fixture
def zoo(tmp_path):
    """Six checkpoints; the last of them, gamma/run_005, has no delta."""
    paths = write_zoo(tmp_path / "zoo", 6)
    write_deltas(tmp_path / "deltas", paths[:-1])
    return tmp_path / "zoo"


def dataset_of(zoo, lora_tokenizer=None, text_tokenizer=None, **options):
    return Text2Qwen25LoRA_DeltaDataset(
        str(zoo),
        lora_tokenizer or LoraTokenizer2D(),
        text_tokenizer or tiny_tokenizer("bert"),
        options.pop("delta_cache", DeltaCache(zoo.parent / "deltas")),
        **{"max_text_length": 16, **options},
    )


def loader_of(zoo, **options):
    return create_dataloader(
        str(zoo),
        options.pop("lora_tokenizer", LoraTokenizer2D()),
        options.pop("text_tokenizer", tiny_tokenizer("bert")),
        DeltaCache(zoo.parent / "deltas"),
        **{"num_workers": 0, "max_text_length": 16, **options},
    )


class Foreign:
    """A LoRA tokenizer of somebody else: one token a tensor, in the form asked for."""

    def __init__(self, form):
        self.form = form

    def tokenize(self, weights):
        assert list(weights) == sorted(weights)
        tokens = torch.stack([tensor.float().flatten()[:64].view(8, 8) for tensor in weights.values()])
        scales = torch.arange(len(tokens) * 4, dtype=torch.float64).view(-1, 4)
        return {
            "numpy": (tokens.double().numpy(), scales[:, :2].numpy()),
            "read-only": (read_only(tokens.numpy()), read_only(scales.numpy())),
            "bf16": (tokens.bfloat16(), scales),
            "no scales": (tokens.numpy(), None),
            "alone": tokens,
            "flat": (tokens.flatten(), None),
            "three": (tokens, scales, None),
            "few scales": (tokens, scales[:1]),
            "list": (tokens.tolist(), None),
        }[self.form]


def read_only(array):
    array.setflags(write=False)
    return array


# the users' test script, with other import paths and a small zoo


@pytest.mark.parametrize("own", [LoraTokenizer2D, FrameTokenizer])
def test_script_test_dataset(demo_zoo, own):
    dataset = Text2Qwen25LoRA_DeltaDataset(
        checkpoint_folder=str(demo_zoo.zoo),
        lora_tokenizer=own(),
        text_tokenizer=load_tokenizer(str(demo_zoo.tokenizer)),
        delta_cache=DeltaCache(str(demo_zoo.deltas)),
        max_text_length=512,
        condition_type="prompt",
    )
    sample = dataset[0]
    tokens, height, width = sample["tokens"].shape
    assert sample["scales"].shape == (tokens, 2)
    assert sample["condition_ids"].shape == sample["attention_mask"].shape == (512,)
    assert sample["delta"].ndim == 1
    dataloader = create_dataloader(
        checkpoint_folder=str(demo_zoo.zoo),
        lora_tokenizer=own(),
        text_tokenizer=load_tokenizer(str(demo_zoo.tokenizer)),
        delta_cache=DeltaCache(str(demo_zoo.deltas)),
        batch_size=4,
        num_workers=0,
    )
    batch = next(iter(dataloader))
    hidden = len(sample["delta"])
    shapes = {key: tuple(value.shape) for key, value in batch.items()}
    assert shapes == {
        "tokens": (4, tokens, height, width),
        "scales": (4, tokens, 2),
        "condition_ids": (4, 512),
        "attention_mask": (4, 512),
        "delta": (4, hidden),
        "has_delta": (4,),
    }
    assert batch["delta"].norm(dim=1).min() > 0
    assert torch.isfinite(batch["delta"]).all()


@pytest.mark.parametrize("own", [LoraTokenizer2D, FrameTokenizer])
def test_script_test_dtype_consistency(demo_zoo, own):
    dataloader = create_dataloader(
        checkpoint_folder=str(demo_zoo.zoo),
        lora_tokenizer=own(),
        text_tokenizer=load_tokenizer(str(demo_zoo.tokenizer)),
        delta_cache=DeltaCache(str(demo_zoo.deltas)),
        batch_size=2,
        num_workers=0,
    )
    assert {key: value.dtype for key, value in next(iter(dataloader)).items()} == DTYPES


# the users' acceptance list


def test_acceptance_tokens_condition_and_delta(zoo):
    assert {"tokens", "condition_ids", "delta"} <= set(dataset_of(zoo)[0])


def test_acceptance_delta_shape_is_the_hidden_size(zoo):
    assert dataset_of(zoo)[0]["delta"].shape == (DELTA_WIDTH,)


def test_acceptance_delta_dtype(zoo):
    assert dataset_of(zoo)[0]["delta"].dtype == torch.float32


def test_columns_are_lists_of_texts(zoo):
    (zoo / "manifest.json").write_text('{"run_000": {"task": "renamed"}}')
    item = dataset_of(zoo, columns=("task", "checkpoint"))[0]
    assert (item["task"], item["checkpoint"]) == ("renamed", "alpha/run_000")
    batch = next(iter(loader_of(zoo, batch_size=2, shuffle=False, columns=["task"])))
    assert batch.keys() == {*DTYPES, "task"}
    assert batch["task"] == ["renamed", "alpha"]
    assert "task" not in dataset_of(zoo)[0]


def test_a_manifest_is_read_only_for_what_it_says(zoo):
    (zoo / "manifest.json").write_text("no json")
    assert len(dataset_of(zoo, columns=("checkpoint",))) == 5
    with pytest.raises(UsageError, match=r"manifest"):
        dataset_of(zoo, columns=("task",))


@pytest.mark.parametrize("columns", [("task", "split"), ("key",), ("tokens",), "task", (5,), None])
def test_other_columns_are_refused(zoo, columns):
    with pytest.raises(UsageError, match=r"columns: .*expected .*task, checkpoint"):
        dataset_of(zoo, columns=columns)


def test_acceptance_collate_shape(zoo):
    dataset = dataset_of(zoo)
    assert dataset.collate_fn([dataset[0], dataset[1]])["delta"].shape == (2, DELTA_WIDTH)


@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (2, "spawn")])
def test_acceptance_iteration_works(zoo, workers, start):
    dataset = dataset_of(zoo)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as one of pinned memory without CUDA
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loader = loader_of(zoo, num_workers=workers, batch_size=2, shuffle=False)
        loader.multiprocessing_context = start
        batches = list(loader)
    assert [len(batch["delta"]) for batch in batches] == [2, 2, 1]
    for key, dtype in DTYPES.items():
        together = torch.cat([batch[key] for batch in batches])
        assert together.dtype == dtype
        torch.testing.assert_close(
            together, torch.stack([item[key] for item in dataset]), rtol=0, atol=0, equal_nan=True
        )
    assert loader.pin_memory == torch.cuda.is_available()


def test_acceptance_samples_without_deltas_are_left_out_and_listed(zoo, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = dataset_of(zoo)
    assert (len(dataset), len(dataset.checkpoint_paths)) == (5, 6)
    assert [(skip.checkpoint, skip.reason, skip.fault) for skip in dataset.skipped] == [
        ("gamma/run_005", "no delta in the cache", False)
    ]
    assert "5 of 6 checkpoints are used, 1 skipped" in caplog.text
    assert "gamma/run_005" in caplog.text
    assert all(item["has_delta"] for item in dataset)


def test_acceptance_or_zeros_that_show(zoo, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = dataset_of(zoo, require_delta=False)
    assert "1 of 6 checkpoints have no delta" in caplog.text
    assert dataset.skipped == []
    items = list(dataset)
    assert [bool(item["has_delta"]) for item in items] == [dataset.has_delta(idx) for idx in range(6)]
    without = [item for item in items if not item["has_delta"]]
    assert [item["checkpoint_path"] for item in without] == [str(zoo / "gamma/run_005")]
    assert torch.equal(without[0]["delta"], torch.zeros(DELTA_WIDTH))
    batch = next(iter(loader_of(zoo, require_delta=False, batch_size=6)))
    assert batch["has_delta"].sum() == 5


# what users build on


def test_positions_of_the_arguments(zoo):
    tokenizer, text, cache = LoraTokenizer2D(), tiny_tokenizer("bert"), DeltaCache(zoo.parent / "deltas")
    dataset = Text2Qwen25LoRA_DeltaDataset(str(zoo), tokenizer, text, cache, 9, "prompt_answer")
    assert (dataset.max_text_length, dataset.condition_type) == (9, "prompt_answer")
    assert (dataset.checkpoint_folder, dataset.lora_tokenizer, dataset.delta_cache) == (zoo, tokenizer, cache)
    loader = create_dataloader(str(zoo), tokenizer, text, cache, 2, 0, False, "prompt_answer", 9)
    batch = next(iter(loader))
    assert batch["condition_ids"].shape == (2, 9)
    assert torch.equal(batch["condition_ids"][0], dataset[0]["condition_ids"])


def test_attributes(zoo):
    dataset = dataset_of(zoo)
    names = [f"{task}/run_{number:03d}" for task, number in zip("aabbg", (0, 3, 1, 4, 2), strict=True)]
    full = {"a": "alpha", "b": "beta", "g": "gamma"}
    places = [zoo / (full[name[0]] + name[1:]) for name in names]
    assert dataset.valid_checkpoints == places
    assert dataset.checkpoint_paths == [*places, zoo / "gamma/run_005"]
    assert [dataset.get_checkpoint_path(idx) for idx in range(5)] == [str(place) for place in places]
    assert set(dataset.all_deltas) == {str(place) for place in places}
    assert str(zoo / "gamma/run_005") not in dataset.all_deltas
    for item in dataset:
        path = item["checkpoint_path"]
        assert np.array_equal(dataset.all_deltas[path], item["delta"].numpy())
        assert dataset.conditions[path]["prompts"] == ["What is it?"]
    assert torch.equal(dataset[-1]["delta"], dataset[4]["delta"])
    with pytest.raises(IndexError):
        dataset[5]


def test_each_checkpoint_gets_its_own_delta_and_weights(zoo):
    cache = DeltaCache(zoo.parent / "deltas")
    for item in dataset_of(zoo):
        path = item["checkpoint_path"]
        relative = path.removeprefix(f"{zoo}/")
        assert np.array_equal(item["delta"].numpy(), cache.get_delta(f"zoo/{relative}"))
        tokens, scales = LoraTokenizer2D().tokenize(load_file(f"{path}/adapter_model.safetensors"))
        assert np.array_equal(item["tokens"].numpy(), tokens.numpy(), equal_nan=True)
        assert torch.equal(item["scales"], scales)


def test_no_join_by_substring(tmp_path):
    """arc_e_1 is a prefix of arc_e_10: the delta of one is not the other's."""
    for name in ("arc_e_1", "arc_e_10"):
        write_adapter(tmp_path / "zoo" / name, 1)
    write_deltas(tmp_path / "deltas", ["arc_e_10"], prefix="/elsewhere/zoo")
    dataset = dataset_of(tmp_path / "zoo")
    assert [path.name for path in dataset.valid_checkpoints] == ["arc_e_10"]
    assert [skip.checkpoint for skip in dataset.skipped] == ["arc_e_1"]


def test_a_checkpoint_that_is_left_out_keeps_its_delta(tmp_path):
    """Else its namesake in another task would get it."""
    write_adapter(tmp_path / "zoo/beta/swift", 1)
    write_adapter(tmp_path / "zoo/alpha/swift", 2)
    (tmp_path / "zoo/alpha/swift/adapter_model.safetensors").rename(
        tmp_path / "zoo/alpha/swift/adapter_model.bin"
    )
    write_deltas(tmp_path / "deltas", ["alpha/swift"], prefix="/elsewhere")
    dataset = dataset_of(tmp_path / "zoo")
    assert len(dataset) == 0
    assert {skip.checkpoint for skip in dataset.skipped} == {"alpha/swift", "beta/swift"}


@pytest.mark.parametrize("kind", ["cache", "directory", "foreign"])
def test_forms_of_delta_cache(zoo, kind):
    cache = DeltaCache(zoo.parent / "deltas")

    class Other:
        def get_all_deltas(self):
            return {path: delta.astype(np.float64) for path, delta in cache.get_all_deltas().items()}

    given = {"cache": cache, "directory": str(zoo.parent / "deltas"), "foreign": Other()}[kind]
    dataset = dataset_of(zoo, delta_cache=given)
    assert len(dataset) == 5
    assert torch.equal(dataset[0]["delta"], dataset_of(zoo)[0]["delta"])


def test_deltas_are_not_kept_in_memory(zoo):
    dataset = dataset_of(zoo)
    first = dataset[0]["delta"]
    first += 1
    assert not torch.equal(dataset[0]["delta"], first)
    for file in (zoo.parent / "deltas").glob("*.npy"):
        file.unlink()
    assert len(dataset.all_deltas) == 5
    with pytest.raises(CheckpointError, match="delta cannot be read"):
        dataset[0]


@pytest.mark.parametrize("condition", ["prompt", "prompt_answer", "answer"])
@pytest.mark.parametrize("kind", ["bert", "qwen2", "t5", "llama", "byt5"])
def test_conditions(zoo, condition, kind):
    (zoo / "beta/run_001/prompts.json").write_text('["alone", "second"]')
    (zoo / "beta/run_004/prompts.json").unlink()
    dataset = dataset_of(zoo, text_tokenizer=tiny_tokenizer(kind), condition_type=condition)
    expected = {
        "alpha/run_000": {
            "prompt": "What is it?",
            "prompt_answer": "What is it?\nIt is 0.",
            "answer": "It is 0.",
        }[condition],
        "beta/run_001": "alone",
        "beta/run_004": "run_004",
    }
    texts = {item["checkpoint_path"].removeprefix(f"{zoo}/"): item for item in dataset}
    tokenizer = tiny_tokenizer(kind)
    for path, text in expected.items():
        bare = tokenizer(text)["input_ids"][:16]
        mask = texts[path]["attention_mask"].bool()
        if len(tokenizer(text)["input_ids"]) <= 16:
            assert texts[path]["condition_ids"][mask].tolist() == bare
        assert texts[path]["condition_ids"].shape == (16,)


def test_a_tokenizer_without_padding_pads_with_its_end_and_stays_as_it_was(zoo):
    tokenizer = tiny_tokenizer("llama")
    assert tokenizer.pad_token is None
    item = dataset_of(zoo, text_tokenizer=tokenizer)[0]
    assert tokenizer.pad_token is None
    assert set(item["condition_ids"][item["attention_mask"] == 0].tolist()) == {tokenizer.eos_token_id}


def test_texts_of_a_zoo_that_keeps_them_apart(zoo):
    for file in zoo.rglob("prompts.json"):
        file.unlink()
    texts = zoo.parent / "texts"
    texts.mkdir()
    (texts / "beta.json").write_text('[{"prompt": "of beta", "response": "r"}]')
    dataset = dataset_of(zoo, texts=texts, condition_type="prompt_answer", joiner=" answer: ")
    found = {path.removeprefix(f"{zoo}/"): rows for path, rows in dataset.conditions.items()}
    assert found["beta/run_001"] == {"prompts": ["of beta"], "answers": ["r"]}
    assert found["alpha/run_000"] == {"prompts": ["run_000"], "answers": []}
    at = [path.parent.name for path in dataset.valid_checkpoints].index("beta")
    item = dataset[at]
    ids = item["condition_ids"][item["attention_mask"].bool()].tolist()
    assert ids == tiny_tokenizer("bert")("of beta answer: r")["input_ids"]


# foreign tokenizers


@pytest.mark.parametrize(
    ("form", "columns"),
    [("numpy", 2), ("read-only", 4), ("bf16", 4), ("no scales", None), ("alone", None)],
)
def test_foreign_lora_tokenizers(zoo, form, columns):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = next(iter(loader_of(zoo, lora_tokenizer=Foreign(form), batch_size=5)))
    assert batch["tokens"].shape == (5, 2 * len(MODULES), 8, 8)
    assert batch["tokens"].dtype == torch.float32
    assert ("scales" in batch) == (columns is not None)
    if columns is not None:
        assert batch["scales"].shape == (5, 2 * len(MODULES), columns)
        assert batch["scales"].dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"order": "dnd"}, {"zero_std": "zeros"}])
def test_scales_that_are_only_in_the_frame(zoo, options):
    """Drag-and-Drop-LLMs' tokenizers return None for them; the codes are rounded to bf16 there."""
    framed, given = dataset_of(zoo, FrameTokenizer(**options)), dataset_of(zoo, LoraTokenizer2D(**options))
    for theirs, ours in zip(framed, given, strict=True):
        assert torch.equal(theirs["tokens"].view(torch.int32), ours["tokens"].view(torch.int32))
        assert torch.equal(theirs["scales"], unframe(ours["tokens"])[1])
        assert torch.allclose(theirs["scales"], ours["scales"], rtol=0.02, atol=0.005)


def frames():
    tokens, _ = LoraTokenizer2D(frame="fp32").tokenize(random_pairs(1))
    absent = tokens.float().clone()
    absent[0] = torch.nan
    return tokens.float(), absent


def test_frames_are_told_from_padding():
    tokens, absent = frames()
    assert torch.equal(token_tensors((tokens, None))[1], unframe(tokens)[1])
    scales = token_tensors((absent, None))[1]
    assert scales[0].tolist() == [0, 0]
    assert torch.equal(scales[1:], unframe(tokens)[1][1:])
    for value in (0.0, 1.0, torch.nan):
        padded = torch.nn.functional.pad(tokens, (0, 2, 0, 2), value=value)
        assert token_tensors((padded, None))[1] is None
    for place in ((0, 0, -2), (0, -1, -1), (2, -1, 0), (2, -2, 1), (1, 0, -1)):
        spoilt = tokens.clone()
        spoilt[place] += 1
        assert token_tensors((spoilt, None))[1] is None
        spoilt[place] = torch.nan
        assert token_tensors((spoilt, None))[1] is None
    assert token_tensors((tokens[:, :2], None))[1] is None
    assert token_tensors((tokens[:0], None))[1] is None


@pytest.mark.parametrize("form", ["flat", "three", "few scales", "list"])
def test_foreign_lora_tokenizers_of_no_known_form(zoo, form):
    with pytest.raises(UsageError, match="tokeniz"):
        dataset_of(zoo, Foreign(form))[0]


def test_foreign_lora_tokenizers_get_any_safetensors(zoo):
    """What our tokenizer refuses is no business of ours when another one cuts it."""
    tensors = {f"{name}.odd": torch.rand(8, 8) for name in "ab"}
    write_adapter(zoo / "alpha/run_000", 0, tensors=tensors)
    (zoo / "alpha/run_000/adapter_config.json").write_text("{}")
    assert len(dataset_of(zoo, Foreign("numpy"))) == 5
    ours = dataset_of(zoo)
    assert len(ours) == 4
    assert [(skip.checkpoint, skip.fault) for skip in ours.skipped if skip.fault] == [("alpha/run_000", True)]


def test_a_subclass_that_cuts_otherwise_is_asked_itself(zoo):
    class Mine(LoraTokenizer2D):
        def tokenize(self, weights):
            tokens, scales = super().tokenize(weights)
            return tokens[:1], scales[:1]

    assert dataset_of(zoo, Mine())[0]["tokens"].shape[0] == 1


@pytest.mark.parametrize("output", ["lists", "rows", "no mask", "tensor"])
def test_foreign_text_tokenizers(zoo, output):
    def tokenizer(text, max_length, padding, truncation, return_tensors):
        ids = [len(text)] * max_length
        return {
            "lists": {"input_ids": ids, "attention_mask": [ids]},
            "rows": {"input_ids": np.array(ids, np.int32), "attention_mask": torch.ones(1, max_length)},
            "no mask": {"input_ids": ids},
            "tensor": torch.tensor(ids),
        }[output]

    dataset = dataset_of(zoo, text_tokenizer=tokenizer)
    if output in ("no mask", "tensor"):
        with pytest.raises(UsageError, match="expected input_ids and attention_mask"):
            dataset[0]
        return
    item = dataset[0]
    assert item["condition_ids"].tolist() == [len("What is it?")] * 16
    assert {item[key].dtype for key in ("condition_ids", "attention_mask")} == {torch.int64}
    assert item["attention_mask"].shape == (16,)


# faults


def test_faulty_checkpoints_are_skipped_with_reasons(zoo):
    (zoo / "alpha/run_000/prompts.json").write_text("[")
    (zoo / "beta/run_001/adapter_model.safetensors").write_bytes(b"cut")
    write_adapter(zoo / "beta/run_004", 4, rank=8)
    os.mkfifo(zoo / "gamma/run_002/weights")
    (zoo / "gamma/run_002/adapter_model.safetensors").unlink()
    (zoo / "gamma/run_002/adapter_model.safetensors").symlink_to("weights")
    dataset = dataset_of(zoo)
    assert [path.name for path in dataset.valid_checkpoints] == ["run_003"]
    reasons = {skip.checkpoint: skip.reason for skip in dataset.skipped}
    assert set(reasons) == {"alpha/run_000", "beta/run_001", "beta/run_004", "gamma/run_002", "gamma/run_005"}
    assert "JSON" in reasons["alpha/run_000"]
    assert "truncated" in reasons["beta/run_001"]
    assert "rank" in reasons["beta/run_004"]
    assert "FIFO" in reasons["gamma/run_002"]


def test_faulty_deltas_are_skipped_with_reasons_even_where_zeros_are_wanted(zoo):
    cache = DeltaCache(zoo.parent / "deltas")
    cut, wide = cache.entries()[0], cache.entries()[1]
    cut.file.write_bytes(b"\x93NUMPY")
    cache.save_delta(wide.path, np.ones(DELTA_WIDTH + 1, np.float32))
    dataset = dataset_of(zoo, require_delta=False)
    reasons = {skip.checkpoint: skip.reason for skip in dataset.skipped}
    assert set(reasons) == {cut.path.removeprefix("zoo/"), wide.path.removeprefix("zoo/")}
    assert "not an npy array" in reasons[cut.path.removeprefix("zoo/")]
    assert "another width" in reasons[wide.path.removeprefix("zoo/")]
    assert all(skip.fault for skip in dataset.skipped)


def test_an_empty_cache(zoo, tmp_path):
    empty = DeltaCache(tmp_path / "empty")
    assert len(dataset_of(zoo, delta_cache=empty)) == 0
    with pytest.raises(UsageError, match=r"no checkpoint can be used.*no delta in the cache"):
        create_dataloader(str(zoo), LoraTokenizer2D(), tiny_tokenizer("bert"), empty, num_workers=0)
    with pytest.raises(UsageError, match="width of a missing delta is not known"):
        dataset_of(zoo, delta_cache=empty, require_delta=False)
    empty.save_base_activation(np.zeros((3, 7), np.float32))
    dataset = dataset_of(zoo, delta_cache=empty, require_delta=False)
    assert (len(dataset), tuple(dataset[0]["delta"].shape)) == (6, (7,))


def test_the_width_of_zeros_comes_from_the_cache(zoo, tmp_path):
    write_deltas(tmp_path / "others", ["of/another"], prefix="/x", width=11)
    dataset = dataset_of(zoo, delta_cache=tmp_path / "others", require_delta=False)
    assert dataset[0]["delta"].shape == (11,)


def test_two_deltas_for_one_checkpoint_stop_it(zoo):
    cache = DeltaCache(zoo.parent / "deltas")
    for value, prefix in enumerate(("/a/zoo", "/b/zoo")):
        cache.save_delta(f"{prefix}/gamma/run_005", np.full(DELTA_WIDTH, value, np.float32))
    with pytest.raises(UsageError, match="gamma/run_005"):
        dataset_of(zoo)
    mapped = dataset_of(
        zoo, maps=[("/b/zoo/gamma/run_005", "/b/gone"), ("/a/zoo", "zoo")], require_delta=False
    )
    assert len(mapped) == 6


def test_deltas_of_two_base_models_stop_it(zoo):
    DeltaCache(zoo.parent / "deltas").save_delta(
        "zoo/gamma/run_005", np.ones(DELTA_WIDTH, np.float32), base_model="other"
    )
    with pytest.raises(UsageError, match="more than one base model"):
        dataset_of(zoo)


def test_no_layout_that_most_share(tmp_path):
    write_adapter(tmp_path / "zoo" / "one", 1)
    write_adapter(tmp_path / "zoo" / "other", 2, rank=8)
    with pytest.raises(UsageError, match="no layout that most"):
        dataset_of(tmp_path / "zoo")
    write_deltas(tmp_path / "deltas", ["one", "other"])
    assert len(dataset_of(tmp_path / "zoo", LoraTokenizer2D(rank=8))) == 2


def test_arguments_that_cannot_be(zoo, tmp_path):
    with pytest.raises(UsageError, match="condition_type"):
        dataset_of(zoo, condition_type="prompts")
    with pytest.raises(UsageError, match="not a directory"):
        dataset_of(zoo.parent / "absent")
    with pytest.raises(UsageError, match="not a delta cache"):
        dataset_of(zoo, delta_cache=3)


def test_a_checkpoint_that_changes_afterwards(zoo):
    dataset = dataset_of(zoo)
    weights = dataset.valid_checkpoints[0] / "adapter_model.safetensors"
    write_adapter(weights.parent, 0, tensors={**random_pairs(0), "extra": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"alpha/run_000: adapter_model.safetensors: extra"):
        dataset[0]
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"alpha/run_000: adapter_model.safetensors: not a sound"):
        dataset[0]


def test_batches_of_different_shapes_say_so(zoo):
    write_adapter(zoo / "alpha/run_000", 0, modules=dict(list(MODULES.items())[:2]))
    dataset = dataset_of(zoo, Foreign("numpy"))
    with pytest.raises(UsageError, match="shapes differ within one batch"):
        dataset.collate_fn([dataset[0], dataset[1]])


def test_absent_modules_are_padding_as_in_a_set(zoo):
    write_adapter(zoo / "alpha/run_000", 0, modules=dict(list(MODULES.items())[:2]))
    dataset = dataset_of(zoo)
    assert dataset[0]["tokens"].shape == dataset[1]["tokens"].shape
    assert dataset[0]["tokens"][-1].isnan().all()
    assert not dataset[1]["tokens"][-1].isnan().any()


def test_nothing_is_printed_and_nothing_opened_for_writing(zoo, capsys):
    before = sorted(path.stat().st_mtime_ns for path in zoo.parent.rglob("*"))
    list(loader_of(zoo))
    assert sorted(path.stat().st_mtime_ns for path in zoo.parent.rglob("*")) == before
    assert capsys.readouterr() == ("", "")


def test_pickled_it_is_the_same(zoo):
    dataset = dataset_of(zoo)
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(copy) == len(dataset)
    assert torch.equal(copy[2]["delta"], dataset[2]["delta"])


def test_answers_beyond_the_first_are_not_kept(zoo):
    many = {"prompts": [f"p{n}" for n in range(5000)], "answers": ["a"]}
    (zoo / "alpha/run_000/prompts.json").write_text(json.dumps(many))
    assert dataset_of(zoo).conditions[str(zoo / "alpha/run_000")] == {"prompts": ["p0"], "answers": ["a"]}
