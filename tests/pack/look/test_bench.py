"""bench: what it measures is what it reports."""

from __future__ import annotations

import pytest

from llgbm_pack.cli.render import render_bench
from llgbm_pack.look.bench import BenchReport, bench_set
from support.commands import here
from support.synthetic import write_set


@pytest.mark.parametrize(
    ("splits", "batch_size", "batches", "samples"),
    [
        (("train", "val"), 4, 3, 12),
        (("val",), 4, 3, 12),
        (("train", "val"), 5, 2, 10),
        (("train", "val"), 13, 1, 12),
    ],
)
def test_all_splits_are_measured(tmp_path, splits, batch_size, batches, samples):
    made = write_set(tmp_path / "set", 12, splits=splits)
    report = bench_set(
        str(made.path), batch_size=batch_size, device="cpu", step_ms=100, readers=2, verify="full"
    )
    assert (report.batches, report.samples) == (batches, samples)
    assert report.batch["tokens"].startswith(f"({batch_size}, 6, ")


def test_the_command_takes_a_set_without_a_train_split(tmp_path):
    made = write_set(tmp_path / "set", 5, splits=("val",))
    done = here("bench", made.path, "--batch-size", 2)
    assert done.code == 0, done.err
    assert "samples/s" in done.out


def test_advice_that_is_for_the_loader_says_so():
    rates = {"storage_rate": 9.0, "cold_rate": 1.0, "warm_rate": 2.0}
    counts = {"batch_size": 8, "batches": 1, "samples": 8, "sample_bytes": 1000}
    report = BenchReport(path="set", device="cpu", batch={}, step_ms=10, **rates, **counts)
    assert "more --readers, or in your loader verify='first-epoch' or frame='none'" in render_bench(report)
