"""Packed and unpacked agree: the raw dataloader and the streaming loader give the same bits for each checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from llgbm_loader import StreamingLoader
from llgbm_pack import LoraTokenizer2D, PackOptions, build
from llgbm_pack.raw import create_dataloader
from llgbm_pack.sources.zoo import walk_zoo
from llgbm_pack.tokenize.conditions import load_tokenizer
from llgbm_shards.members import sample_key
from support.tiny_tokenizers import save_tiny
from support.tiny_zoo import MODULES, random_pairs, write_adapter, write_deltas, write_zoo

KEYS = ("tokens", "scales", "condition_ids", "attention_mask", "delta", "has_delta")
LENGTH = 20


def raw_samples(zoo, tokenizer, deltas, *, order="sorted", frame="dnd", zero_std="nan", rank=None, **options):
    """Key -> tensors, as the raw dataloader gives them."""
    lora_tokenizer = LoraTokenizer2D(order=order, frame=frame, zero_std=zero_std, rank=rank)
    settings = {"batch_size": 3, "num_workers": 0, "shuffle": False, "max_text_length": LENGTH, **options}
    loader = create_dataloader(str(zoo), lora_tokenizer, load_tokenizer(str(tokenizer)), deltas, **settings)
    paths = [path.relative_to(zoo).as_posix() for path in loader.dataset.valid_checkpoints]
    rows = [
        {key: batch[key][row] for key in KEYS} for batch in loader for row in range(len(batch["has_delta"]))
    ]
    return dict(zip(map(sample_key, paths), rows, strict=True))


def texts_by_key(batches, columns):
    """Key (of the checkpoint's path) -> what the columns say."""
    rows = [row for batch in batches for row in zip(*(batch[name] for name in columns), strict=True)]
    return {sample_key(row[columns.index("checkpoint")]): row for row in rows}


def packed_samples(out, *, form="prompt", frame="dnd", zero_std="nan"):
    """Key -> tensors, as the streaming loader gives them."""
    options = {"form": form, "frame": frame, "zero_std": zero_std, "max_text_length": LENGTH}
    loader = StreamingLoader(out, batch_size=3, remainder="pad", dtype=torch.float32, **options)
    found = {}
    for batch in loader:
        for row, key in enumerate(batch["keys"]):
            if key:
                found[key] = {name: batch[name][row].clone() for name in KEYS}
    loader.close()
    return found


def assert_equal_bits(raw, packed):
    assert raw.keys() == packed.keys()
    assert raw
    for key, sample in raw.items():
        for name in KEYS:
            one, other = sample[name], packed[key][name]
            assert one.dtype == other.dtype, (key, name)
            assert one.shape == other.shape, (key, name)
            if one.dtype == torch.float32:  # NaN of one bit pattern is equal to itself here
                one, other = one.contiguous().view(torch.int32), other.contiguous().view(torch.int32)
            assert torch.equal(one, other), (key, name)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_tiny("bert", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def demo_set(demo_zoo, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "set"
    options = {
        "forms": ("prompt", "prompt_answer"),
        "missing_delta": "skip",
        "shard_bytes": 1 << 20,
        "workers": 1,
    }
    zoo, deltas, tokenizer = demo_zoo.zoo, demo_zoo.deltas, str(demo_zoo.tokenizer)
    build(PackOptions(zoo=zoo, out=out, deltas=deltas, text_tokenizer=tokenizer, **options))
    return out


@pytest.mark.parametrize("form", ["prompt", "prompt_answer"])
@pytest.mark.parametrize("frame", ["dnd", "fp32", "none"])
def test_the_demo_zoo(demo_zoo, demo_set, form, frame):
    raw = raw_samples(demo_zoo.zoo, demo_zoo.tokenizer, demo_zoo.deltas, condition_type=form, frame=frame)
    packed = packed_samples(demo_set, form=form, frame=frame)
    assert_equal_bits(raw, packed)
    manifest = json.loads((demo_zoo.deltas / "manifest.json").read_text())
    assert len(raw) == len(manifest["adapters"])


def script(zoo: Path) -> None:
    """{task}/{name}/ and a manifest that names tasks."""
    paths = write_zoo(zoo, 5)
    rows = {path.rpartition("/")[2]: {"path": f"/other/{path}", "task": "renamed"} for path in paths}
    (zoo / "manifest.json").write_text(json.dumps(rows))


def notebook(zoo: Path) -> None:
    """{name}/adapter/, with absolute paths of another machine in the manifest."""
    for number in range(4):
        write_adapter(zoo / f"task_{number}" / "adapter", number)
    (zoo / "manifest.json").write_text('[{"path": "/content/zoo/task_1/adapter", "task": "t"}]')


def drag_and_drop(zoo: Path) -> None:
    """{dataset}/{N}.safetensors without configs or texts."""
    for number in range(5):
        made = write_adapter(zoo.parent / "made", number)
        place = zoo / ("ARC-c" if number < 3 else "BoolQ") / f"{number}.safetensors"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / "adapter_model.safetensors", place)


def trainer(zoo: Path) -> None:
    """checkpoint-N, the last one again in the root of the run."""
    for run in ("first", "second"):
        for step in (9, 10):
            write_adapter(zoo / run / f"checkpoint-{step}", 10 * len(run) + step)
            (zoo / run / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"x")
        shutil.copytree(zoo / run / "checkpoint-10", zoo / run, dirs_exist_ok=True)


def hub(zoo: Path) -> None:
    """models--*/snapshots/*: links into the repository's own blobs."""
    for number in range(3):
        repository = zoo / f"models--org--adapter{number}"
        made = write_adapter(repository / "made", number)
        snapshot = repository / "snapshots" / "0123abcd"
        snapshot.mkdir(parents=True)
        (repository / "blobs").mkdir()
        for file in sorted(made.iterdir()):
            blob = file.rename(repository / "blobs" / f"digest-of-{file.name}")
            (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
        made.rmdir()


def several_adapters(zoo: Path) -> None:
    """PEFT's save of a model with several adapters: sub-folders beside the default one."""
    for number, name in enumerate((".", "style", "tone")):
        write_adapter(zoo / "model" / name, number)


def one_checkpoint(zoo: Path) -> None:
    """The zoo is the adapter itself."""
    write_adapter(zoo, 1)


def ragged(zoo: Path) -> None:
    """Modules absent, a fresh B of zeros, no texts, a single prompt; and what does not fit is left out by both."""
    write_zoo(zoo, 5)
    write_adapter(zoo / "alpha/absent", 7, modules=dict(list(MODULES.items())[1:]), prompts=())
    write_adapter(zoo / "alpha/wide", 8, rank=8)
    write_adapter(zoo / "beta/other", 9, dtype="float16")
    tensors = random_pairs(11)
    for key in tensors:
        if "lora_B" in key:
            tensors[key] = torch.zeros_like(tensors[key])
    write_adapter(zoo / "beta/fresh", 11, tensors=tensors)
    (zoo / "gamma/run_002/prompts.json").write_text('["only a prompt"]')


LAYOUTS = (script, notebook, drag_and_drop, trainer, hub, several_adapters, one_checkpoint, ragged)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("missing", ["skip", "zeros"])
def test_every_layout(tmp_path, tokenizer, layout, missing):
    zoo, texts = tmp_path / "zoo", tmp_path / "texts"
    layout(zoo)
    texts.mkdir()
    (texts / "ARC-c_train.json").write_text('[{"prompt": "which?", "response": "that"}]')
    paths = [found.path for found in walk_zoo(zoo).checkpoints]
    deltas = write_deltas(tmp_path / "deltas", paths[: max(1, len(paths) - 1)], prefix=str(zoo))
    build(
        PackOptions(
            zoo=zoo,
            out=tmp_path / "set",
            deltas=deltas,
            texts=texts,
            text_tokenizer=str(tokenizer),
            forms=("prompt_answer",),
            missing_delta=missing,
            alpha=16.0,
            workers=1,
        )
    )
    raw = raw_samples(
        zoo, tokenizer, deltas, condition_type="prompt_answer", require_delta=missing == "skip", texts=texts
    )
    packed = packed_samples(tmp_path / "set", form="prompt_answer")
    assert_equal_bits(raw, packed)
    columns = ("task", "checkpoint")
    own = create_dataloader(
        zoo,
        LoraTokenizer2D(),
        load_tokenizer(str(tokenizer)),
        deltas,
        batch_size=2,
        num_workers=0,
        require_delta=missing == "skip",
        texts=texts,
        columns=columns,
    )
    streamed = StreamingLoader(tmp_path / "set", batch_size=1, columns=columns, fields=("delta",))
    assert texts_by_key(own, columns) == texts_by_key(streamed, columns)
    without = sum(not sample["has_delta"] for sample in raw.values())
    assert without == (len(paths) > 1 and missing == "zeros")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    "options", [{"order": "dnd"}, {"zero_std": "zeros"}, {"rank": 6}, {"order": "dnd", "frame": "fp32"}]
)
def test_every_dtype_order_and_rank(tmp_path, tokenizer, dtype, options):
    write_zoo(tmp_path / "zoo", 3, dtype=dtype)
    write_adapter(tmp_path / "zoo/alpha/absent", 7, dtype=dtype, modules=dict(list(MODULES.items())[1:]))
    paths = [found.path for found in walk_zoo(tmp_path / "zoo").checkpoints]
    deltas = write_deltas(tmp_path / "deltas", paths)
    build(
        PackOptions(
            zoo=tmp_path / "zoo",
            out=tmp_path / "set",
            deltas=deltas,
            text_tokenizer=str(tokenizer),
            token_order=options.get("order", "sorted"),
            rank=options.get("rank"),
            workers=1,
        )
    )
    shown = {key: value for key, value in options.items() if key in ("frame", "zero_std")}
    raw = raw_samples(tmp_path / "zoo", tokenizer, deltas, **options)
    assert_equal_bits(raw, packed_samples(tmp_path / "set", **shown))
    assert len(raw) == 4
