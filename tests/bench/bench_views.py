"""The weights of a 0.5B-shaped sample in each view against ``safetensors.torch.load_file`` of its raw adapter, one thread.

Run with ``python tests/bench/bench_views.py [DIRECTORY]``. All sides give every matrix of every adapter once a round; rounds
alternate between the sides, and medians are printed. ``load_file`` maps the file and copies nothing, so a second row reads
what it gave, as a training step would.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llgbm_loader import ShardDataset, StreamingLoader
from llgbm_pack import PackOptions, build

ADAPTERS, ROUNDS = 24, 9
WIDTHS = {
    "self_attn.q_proj": (896, 896),
    "self_attn.k_proj": (896, 128),
    "self_attn.v_proj": (896, 128),
    "self_attn.o_proj": (896, 896),
    "mlp.gate_proj": (896, 4864),
    "mlp.up_proj": (896, 4864),
    "mlp.down_proj": (4864, 896),
}
CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}


def make_set(root: Path) -> Path:
    """Pack adapters of 24 layers, all seven modules, rank 8, bfloat16."""
    for number in range(ADAPTERS):
        folder = root / "zoo" / "task" / f"run{number}"
        folder.mkdir(parents=True)
        weights = {}
        for layer in range(24):
            for name, (wide, high) in WIDTHS.items():
                base = f"base_model.model.model.layers.{layer}.{name}"
                weights[f"{base}.lora_A.weight"] = torch.randn(8, wide).bfloat16()
                weights[f"{base}.lora_B.weight"] = torch.randn(high, 8).bfloat16()
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    build(PackOptions(zoo=root / "zoo", out=root / "set"))
    return root / "set"


def raw(root: Path, *, read: bool) -> Callable[[], int]:
    """Every adapter by safetensors' own function."""
    files = sorted((root / "zoo").rglob("*.safetensors"))

    def run() -> int:
        for file in files:
            tensors = load_file(file)
            if read:
                tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        return len(files)

    return run


def streamed(path: Path, view: str, dtype: torch.dtype | None) -> Callable[[], int]:
    """One epoch of a loader with one reader."""
    loader = StreamingLoader(path, batch_size=1, readers=1, fields=("weights",), view=view, dtype=dtype)
    return lambda: sum(int(batch["valid"].sum()) for batch in loader)


def one_by_one(path: Path) -> Callable[[], int]:
    """Each sample of the map-style dataset, without a thread."""
    dataset = ShardDataset(path, fields=("weights",), view="modules", dtype=None)
    return lambda: sum(bool(dataset[number]["valid"]) for number in range(len(dataset)))


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        path = make_set(Path(name))
        sides: dict[str, Callable[[], int]] = {
            "load_file": raw(Path(name), read=False),
            "load_file, read": raw(Path(name), read=True),
            "dataset, modules": one_by_one(path),
            **{view: streamed(path, view, None) for view in ("pieces", "modules", "layers", "flat")},
            "modules, float32": streamed(path, "modules", torch.float32),
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        for round_number in range(ROUNDS + 1):
            for side, run in sides.items():
                start = time.monotonic()
                if run() != ADAPTERS:
                    raise SystemExit(f"{side}: not {ADAPTERS} samples")
                if round_number:
                    times[side].append((time.monotonic() - start) / ADAPTERS * 1000)
        medians = {side: statistics.median(taken) for side, taken in times.items()}
        for side, taken in times.items():
            share = medians[side] / medians["load_file"]
            print(
                f"{side:<18} {medians[side]:6.2f} ms a sample ({min(taken):.2f}-{max(taken):.2f}), {share:.2f}x"
            )
        print("to reach: modules at most 1.2x of load_file, as stored and as float32")


if __name__ == "__main__":
    main()
