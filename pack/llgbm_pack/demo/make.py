"""The demo zoo: real PEFT adapters, texts, a text tokenizer and true deltas, small and made offline.

The same call gives the same bytes, given the same versions of torch, PEFT, transformers and the same kind
of CPU.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llgbm_pack.demo.model import (
    BASE_MODEL_NAME,
    HIDDEN_SIZE,
    TrainingOptions,
    demo_base_model,
    load_peft,
    probe_activation,
    save_adapter,
    train_adapter,
    train_tokenizer,
)
from llgbm_pack.demo.texts import PROBES, DemoTask, demo_tasks
from llgbm_shards.errors import StorageError, UsageError
from llgbm_shards.npy import vector_norm

__all__ = ["DemoReport", "demo_base_model", "make_demo"]

#: Learning rates and steps of a task's adapters. The dots in the names are there on purpose: zoos have them.
_RUNS: Final = tuple((rate, seed) for rate in (1e-3, 2.5e-3, 5e-3, 1e-2) for seed in (0, 1))
_TEXTS_EACH: Final = 6
#: These two have no delta, as in a zoo whose delta job has not caught up.
_WITHOUT_DELTA: Final = ("zoo/capitals/lr0.0025_s1", "zoo/sorting/lr0.01_s0")


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoReport:
    """What :func:`make_demo` made, and where."""

    zoo: Path
    deltas: Path  # the delta cache
    tokenizer: Path  # the text tokenizer
    num_checkpoints: int
    num_deltas: int
    seconds: float  # wall time it took


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    path: str
    task: DemoTask
    number: int
    options: TrainingOptions


def make_demo(root: Path, progress: Callable[[str], None] | None = None) -> DemoReport:
    """Makes ``root/zoo``, ``root/deltas`` and ``root/tokenizer``; ``root`` is created if absent and must be empty.

    ``progress`` is called with one line of text for each adapter.
    """
    started = time.monotonic()
    load_peft()
    try:
        _claim(root)
        checkpoints, deltas = _make(root, progress)
    except OSError as error:
        raise StorageError("cannot write the demo zoo", where=str(root), got=str(error)) from error
    return DemoReport(
        zoo=root / "zoo",
        deltas=root / "deltas",
        tokenizer=root / "tokenizer",
        num_checkpoints=checkpoints,
        num_deltas=deltas,
        seconds=time.monotonic() - started,
    )


def _claim(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise UsageError("the demo needs a directory", where=str(root), got="a file", do="Give another path.")
    root.mkdir(parents=True, exist_ok=True)
    entry = next(root.iterdir(), None)
    if entry is not None:
        raise UsageError(
            "the demo needs an empty directory",
            where=str(root),
            got=f"it holds {entry.name!r}",
            do="Give another path, or empty it.",
        )


def _make(root: Path, progress: Callable[[str], None] | None) -> tuple[int, int]:
    """Returns the counts of checkpoints and of deltas."""
    tasks = demo_tasks()
    tokenizer = train_tokenizer([text for task in tasks for text in (*task.prompts, *task.answers)])
    tokenizer.save_pretrained(str(root / "tokenizer"))
    base = demo_base_model()
    neutral = probe_activation(base, tokenizer, PROBES)
    runs = list(_runs(tasks))
    deltas: dict[str, npt.NDArray[np.float32]] = {}
    for done, run in enumerate(runs, start=1):
        shifted = _train(root, run, base, tokenizer)
        if run.path not in _WITHOUT_DELTA:
            deltas[run.path] = shifted - neutral
        if progress is not None:
            progress(f"demo: adapter {done} of {len(runs)}: {run.path}")
    _write_deltas(root / "deltas", neutral, deltas)
    return len(runs), len(deltas)


def _runs(tasks: tuple[DemoTask, ...]) -> Iterator[_Run]:
    for position, task in enumerate(tasks):
        for number, (rate, seed) in enumerate(_RUNS):
            options = TrainingOptions(learning_rate=rate, seed=1000 * position + number)
            yield _Run(path=f"zoo/{task.name}/lr{rate:g}_s{seed}", task=task, number=number, options=options)


def _train(root: Path, run: _Run, base: Any, tokenizer: Any) -> npt.NDArray[np.float32]:
    """Trains and saves one adapter; returns its activation on the probes, (hidden,) float32."""
    texts = [f"{prompt}\n{answer}" for prompt, answer in zip(run.task.prompts, run.task.answers, strict=True)]
    model = train_adapter(base, tokenizer, texts, run.options)
    activation = probe_activation(model, tokenizer, PROBES)
    directory = root / run.path
    directory.mkdir(parents=True)
    save_adapter(model, directory)
    _order_config(directory / "adapter_config.json")
    prompts, answers = run.task.pick(run.number, _TEXTS_EACH)
    _write_json(directory / "prompts.json", {"prompts": prompts, "answers": answers, "task": run.task.name})
    return activation


def _order_config(path: Path) -> None:
    """PEFT writes ``target_modules`` in the order of a set, which changes from process to process."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    _write_json(path, config)


def _write_deltas(
    directory: Path, neutral: npt.NDArray[np.float32], deltas: dict[str, npt.NDArray[np.float32]]
) -> None:
    directory.mkdir()
    np.save(directory / "base_activation.npy", neutral)
    adapters = {}
    for path, delta in deltas.items():
        name = hashlib.md5(path.encode(), usedforsecurity=False).hexdigest()[:12]
        np.save(directory / f"{name}.npy", delta)
        adapters[name] = {"path": path, "norm": vector_norm(delta), "shape": list(delta.shape)}
    config = {
        "base_model": BASE_MODEL_NAME,
        "num_probes": len(PROBES),
        "hidden_size": HIDDEN_SIZE,
        "dtype": "float32",
        "layer": -1,
        "position": "last_token",
    }
    _write_json(directory / "manifest.json", {"adapters": adapters, "config": config})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
