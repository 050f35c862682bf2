"""Parameters as a sequence of tokens of one length, in the manner of RPG (recurrent parameter generation).

Pack the adapters; neither texts nor deltas are needed::

    llgbm-pack build loras shards

Run as a program, this shows the first batches of a set: ``python examples/rpg.py SHARDS``.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from llgbm_loader import StreamingLoader


def training_batches(
    shards: str,
    *,
    token_length: int = 8192,
    z_score: bool = True,
    batch_size: int = 8,
    device: str = "cpu",
    seed: int = 0,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Tokens of whole adapters, without an end.

    Args:
        shards: The set.
        token_length: D, values of a token; the last token is filled up with zeros.
        z_score: Whether each adapter is brought to mean 0 and std 1.
        batch_size: B.
        device: Where the tensors go.
        seed: Seed of the order.

    Yields:
        tokens (B, T, D) float32: by layer number, each module's A row by row, then its B. mean and std (B, 1), 0 and 1
        without z-scores: :func:`parameters` takes them to undo it all.
    """
    with StreamingLoader(
        shards, fields=("weights",), view="flat", batch_size=batch_size, device=device, seed=seed
    ) as loader:
        while True:
            for batch in loader:
                flat = batch["weights"]
                std, mean = torch.std_mean(flat, 1, keepdim=True)
                if not z_score:
                    std, mean = torch.ones_like(std), torch.zeros_like(mean)
                yield tokens_of((flat - mean) / std, token_length), mean, std


def tokens_of(flat: Tensor, length: int) -> Tensor:
    """(B, P) padded with zeros and cut into (B, T, length)."""
    return pad(flat, (0, -flat.shape[1] % length)).view(len(flat), -1, length)


def parameters(tokens: Tensor, mean: Tensor, std: Tensor, count: int) -> Tensor:
    """(B, P) of tokens (B, T, D): what was padded is cut off, and z-scores are undone; ``count`` is P."""
    return tokens.flatten(1)[:, :count] * std + mean


def main() -> None:
    """Show three batches of the set that is named on the command line."""
    for tokens, mean, std in itertools.islice(training_batches(sys.argv[1], batch_size=2), 3):
        print(tuple(tokens.shape), mean.flatten().tolist(), std.flatten().tolist())


if __name__ == "__main__":
    main()
