"""Time to tokenize a 1.5B-shaped bf16 adapter: PieceEncoder against a loop over pieces with torch, one thread.

Run with ``python tests/bench/bench_tokenize.py``; prints both medians and their ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from llgbm_pack.tokenize.encode import PieceEncoder
from llgbm_pack.tokenize.module_table import make_layout

WIDTHS = {
    "self_attn.q_proj": (1536, 1536),
    "self_attn.k_proj": (1536, 256),
    "self_attn.v_proj": (1536, 256),
    "self_attn.o_proj": (1536, 1536),
    "mlp.gate_proj": (1536, 8960),
    "mlp.up_proj": (1536, 8960),
    "mlp.down_proj": (8960, 1536),
}
RANK = 16
CHUNK = 256


def make_pairs(layers: int = 28) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A random adapter laid out in one buffer, as a file read at once is."""
    torch.manual_seed(0)
    names = {f"model.layers.{i}.{name}": widths for i in range(layers) for name, widths in WIDTHS.items()}
    total = sum(RANK * (wide + high) for wide, high in names.values())
    flat = (torch.randn(total) * 0.02).to(torch.bfloat16)
    pairs, start = {}, 0
    for name in sorted(names):
        wide, high = names[name]
        middle, end = start + RANK * wide, start + RANK * (wide + high)
        pairs[name] = (flat[start:middle].view(RANK, wide), flat[middle:end].view(high, RANK))
        start = end
    return pairs


def loop_over_pieces(pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    """What the users' tokenizer does for each checkpoint, without its frame."""
    tokens = []
    for name in sorted(pairs):
        low, high = pairs[name]
        for matrix in (low, high.T):
            for piece in matrix.split(CHUNK, dim=1):
                tokens.append((piece - piece.mean()) / piece.std())
    return tokens


def median_ms(work: Callable[[], object], times: int) -> float:
    """Median wall-clock time in milliseconds, after one call that is not counted."""
    work()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1000


def measure(times: int = 5) -> dict[str, float]:
    """Both medians in milliseconds and their ratio."""
    pairs = make_pairs()
    shapes = {name: (RANK, low.shape[1], high.shape[0]) for name, (low, high) in pairs.items()}
    layout = make_layout(shapes, dtype="bfloat16", chunk=CHUNK)
    body = torch.zeros(layout.pieces_shape, dtype=torch.bfloat16)
    scales = torch.zeros(layout.num_tokens, 2)
    encoder = PieceEncoder(layout)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        slow = median_ms(lambda: loop_over_pieces(pairs), times)
        fast = median_ms(lambda: encoder.encode(pairs, body, scales), 5 * times)
    finally:
        torch.set_num_threads(threads)
    return {"loop_ms": slow, "encoder_ms": fast, "ratio": slow / fast}


def main() -> None:
    """Prints the measurement."""
    got = measure()
    print(
        f"tokenize 1.5B bf16, one thread: loop {got['loop_ms']:.1f} ms, "
        f"PieceEncoder {got['encoder_ms']:.1f} ms, {got['ratio']:.1f}x"
    )


if __name__ == "__main__":
    main()
