"""Statistics of a set against a plain computation that holds every body at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import DemoZoo
from llgbm_pack.look import stats
from llgbm_pack.packing.build import build
from llgbm_pack.plan.options import PackOptions
from llgbm_shards.errors import DamageError
from llgbm_shards.sample import Sample
from llgbm_shards.shardset import ShardSet
from support.commands import here
from support.slow_tokens import round_float
from support.tiny_zoo import DTYPES, random_pairs, tree, write_adapter


@pytest.fixture(scope="module")
def out(demo_zoo: DemoZoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stats") / "out"
    build(PackOptions(zoo=demo_zoo.zoo, out=path, workers=1))
    return path


def bodies(path: Path, task: str | None = None) -> torch.Tensor:
    """(samples, N, r, chunk) float64, with zero-std pieces as NaN."""
    opened = ShardSet(path)
    tasks = opened.index(["task"]).column("task").to_pylist()
    found = []
    for number in range(len(opened)):
        if task in (None, tasks[number]):
            found.append(body_of(opened.read_sample(number), "bfloat16"))
    return torch.stack(found)


def pieces_of(sample: Sample, dtype: str) -> torch.Tensor:
    """(N, r, chunk) float64, padding NaN."""
    assert sample.pieces is not None
    bits = torch.from_numpy(sample.pieces.copy().view("i4" if dtype == "float32" else "i2"))
    return bits.view(getattr(torch, dtype)).double()


def body_of(sample: Sample, dtype: str) -> torch.Tensor:
    """(N, r, chunk) float64, by the plain formulas, with zero-std pieces as NaN."""
    assert sample.scales is not None
    mean, std = torch.from_numpy(sample.scales.copy()).double().T[..., None, None]
    centred = round_float((pieces_of(sample, dtype) - mean).numpy(), dtype)
    body = torch.from_numpy(round_float(centred / np.where(std == 0, 1, std), dtype))
    body[(std == 0).flatten()] = torch.nan
    return body


def expect(found: dict[str, torch.Tensor], prefix: str, values: torch.Tensor) -> None:
    std = values.std(0)
    weights = std.mean((1, 2)) / std.mean()
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found[f"{prefix}element.mean"].double(), values.mean(0), **close)
    torch.testing.assert_close(found[f"{prefix}element.std"].double(), std, **close)
    assert (found[f"{prefix}element.count"] == len(values)).all()
    tokens = values.transpose(0, 1).flatten(1)
    torch.testing.assert_close(found[f"{prefix}token.mean"].double(), tokens.mean(1), **close)
    torch.testing.assert_close(found[f"{prefix}token.std"].double(), tokens.std(1), **close)
    torch.testing.assert_close(found[f"{prefix}criterion.weights"].double(), weights, **close)


@pytest.mark.parametrize("block_bytes", [1, 96 << 20])
def test_equal_to_the_plain_computation(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr("llgbm_pack.look.stats_pass._SUM_BYTES", block_bytes)
    report = stats.write_stats(str(out), str(tmp_path / "s.safetensors"), by_task=True)
    found = load_file(tmp_path / "s.safetensors")
    assert set(found) == set(report.tensors)
    expect(found, "", bodies(out))
    for task in ("arithmetic", "capitals", "sorting"):
        expect(found, f"task.{task}.", bodies(out, task))


def test_weights_have_mean_one(out: Path, tmp_path: Path) -> None:
    stats.write_stats(str(out), str(tmp_path / "s.safetensors"))
    weights = load_file(tmp_path / "s.safetensors")["criterion.weights"]
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)
    assert weights.std() > 0


def test_damage_stops_it_and_leaves_no_file(out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in out.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    shard = next(copy.glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[3000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamageError, match="pieces"):
        stats.write_stats(str(copy), str(tmp_path / "s.safetensors"))
    assert not list(tmp_path.glob("*s.safetensors*"))


def test_a_file_in_a_set_is_refused(out: Path) -> None:
    before = tree(out)
    for place in (out / "s.safetensors", out / "tokenizer" / "s.safetensors", out / "index.parquet"):
        done = here("stats", out, "-o", place)
        assert done.code == 2
        assert "a committed set never changes" in done.err
    assert tree(out) == before


def test_nothing_but_earlier_statistics_is_written_over(out: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    save_file({"a": torch.ones(2)}, mine)
    (tmp_path / "thesis.tex").write_text("mine")
    os.mkfifo(tmp_path / "fifo")
    for name in ("mine.safetensors", "thesis.tex", "fifo"):
        done = here("stats", out, "-o", tmp_path / name)
        assert (done.code, "this is not written over" in done.err) == (2, True), done.err
    assert load_file(mine).keys() == {"a"}
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    for _ in range(2):
        assert here("stats", out, "-o", tmp_path / "s.safetensors").code == 0


def test_a_directory_is_no_file(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", "..", str(tmp_path)):
        done = here("stats", out, "-o", name)
        assert (done.code, "got a directory" in done.err) == (2, True), done.err


def packed_seeds(root: Path, seeds: Sequence[int], **adapter: object) -> Path:
    """A set of one random adapter a seed; the task of the last one is its own."""
    for number, seed in enumerate(seeds):
        task = "last" if number == len(seeds) - 1 else "task"
        write_adapter(root / "zoo" / task / f"run_{number}", seed, **adapter)  # type: ignore[arg-type]
    build(PackOptions(zoo=root / "zoo", out=root / "out", workers=1))
    return root / "out"


@pytest.mark.parametrize(
    ("seeds", "dtype"), [([1], "bfloat16"), ([1, 1, 1], "bfloat16"), ([3] * 40, "float32")]
)
def test_weights_of_samples_that_do_not_differ_are_nan_and_told(
    tmp_path: Path, seeds: list[int], dtype: str
) -> None:
    path = packed_seeds(tmp_path, seeds, dtype=dtype)
    done = here("stats", path, "-o", tmp_path / "s.safetensors", "--format", "json")
    assert (done.code, done.json["undefined"]) == (0, ["criterion.weights"])
    found = load_file(tmp_path / "s.safetensors")
    assert found["criterion.weights"].isnan().all()
    assert not found["token.std"].isnan().any()
    told = here("stats", path, "-o", tmp_path / "s.safetensors").out
    assert "criterion.weights: NaN, for no two samples differ" in told


def test_a_task_of_one_sample_leaves_the_others_their_weights(tmp_path: Path) -> None:
    path = packed_seeds(tmp_path, [1, 2, 3])
    report = stats.write_stats(str(path), str(tmp_path / "s.safetensors"), by_task=True)
    assert report.undefined == ("task.last.criterion.weights",)
    found = load_file(tmp_path / "s.safetensors")
    assert found["task.last.criterion.weights"].isnan().all()
    for name in ("criterion.weights", "task.task.criterion.weights"):
        assert found[name].mean().item() == pytest.approx(1, abs=1e-5)


def uneven_pairs(number: int, dtype: str) -> dict[str, torch.Tensor]:
    """Weights with a module missing (0), all of lora_B zero (1), a lower rank (2), a constant B (all)."""
    pairs = random_pairs(number, dtype=dtype, rank=2 if number == 2 else 4)
    for key in sorted(pairs):
        if number == 0 and "layers.1" in key:
            del pairs[key]
        elif "lora_B" in key and (number == 1 or "v_proj" in key):
            pairs[key].fill_(0.25 * (number != 1))
    return pairs


def plain_statistics(path: Path, dtype: str) -> dict[str, np.ndarray]:
    """FORMAT.md in numpy, every body at once."""
    opened = ShardSet(path)
    samples = [opened.read_sample(key) for key in opened.keys]
    values = np.stack([body_of(sample, dtype).numpy() for sample in samples])
    weights_of_all = np.stack([pieces_of(sample, dtype).numpy() for sample in samples])
    counts = (~np.isnan(weights_of_all)).sum(0)
    count = (~np.isnan(values)).sum(0)
    std = np.where(count > 1, np.nanstd(values, axis=0, ddof=1), np.nan)
    tokens = values.transpose(1, 0, 2, 3).reshape(values.shape[1], -1)
    weights = np.nanmean(std.reshape(len(std), -1), axis=1) / np.nanmean(std)
    return {
        "element.count": count,
        "element.mean": np.nanmean(values, axis=0),
        "element.std": std,
        "token.mean": np.nanmean(tokens, axis=1),
        "token.std": np.nanstd(tokens, axis=1, ddof=1),
        "criterion.weights": np.nan_to_num(weights),
        "weight.count": counts,
        "weight.mean": np.nanmean(weights_of_all, axis=0),
        "weight.std": np.where(counts > 1, np.nanstd(weights_of_all, axis=0, ddof=1), np.nan),
    }


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("chunk", [None, 10])
@pytest.mark.parametrize("dtype", DTYPES)
def test_uneven_zoos_against_numpy(tmp_path: Path, dtype: str, chunk: int | None) -> None:
    for number in range(5):
        rank = 2 if number == 2 else 4
        write_adapter(tmp_path / f"zoo/t/{number}", number, rank=rank, tensors=uneven_pairs(number, dtype))
    build(PackOptions(zoo=tmp_path / "zoo", out=tmp_path / "out", rank=4, chunk=chunk, workers=1))
    assert len(ShardSet(tmp_path / "out")) == 5
    stats.write_stats(str(tmp_path / "out"), str(tmp_path / "s.safetensors"))
    found = load_file(tmp_path / "s.safetensors")
    expected = plain_statistics(tmp_path / "out", dtype)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=2e-5, atol=2e-6, err_msg=name)
    assert (found["criterion.weights"] == 0).any()


def test_more_tasks_than_a_header_can_name(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "MAX_HEADER_BYTES", 2000)
    done = here("stats", out, "-o", tmp_path / "s.safetensors", "--by-task")
    assert (done.code, "too many tasks for one file: got 3" in done.err) == (2, True), done.err
    assert here("stats", out, "-o", tmp_path / "s.safetensors").code == 0
    assert here("stats", out, "-o", tmp_path / "s.safetensors").code == 0
