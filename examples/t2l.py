"""Targets for a text-to-LoRA hypernetwork from a packed set: of each kind of module A and B of all layers, z-scored.

Pack the adapters with their task descriptions, and measure mean and std of each weight over them::

    llgbm-pack build loras shards --text-tokenizer bert-base-uncased
    llgbm-pack stats shards -o stats.safetensors

A hypernetwork that predicts z-scores (``pred_z_score``) is compared with these targets; ``weights = z * (std + 1e-10)
+ mean`` undoes them. To reconstruct the weights themselves, take ``batch["weights"]`` as it is.

Run as a program, this shows the first batches of a set: ``python examples/t2l.py SHARDS STATS``.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence

import torch
from safetensors import safe_open
from torch import Tensor

from llgbm_loader import StreamingLoader
from llgbm_loader.views import WeightView
from llgbm_shards.layout import Layout

#: By kind of module, A (..., L, r, in) and B (..., L, out, r), layers in numeric order.
Stacks = dict[str, tuple[Tensor, Tensor]]
#: What text-to-LoRA adds to a std before it divides.
TINY = 1e-10


def training_batches(
    shards: str,
    stats: str,
    *,
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
    batch_size: int = 8,
    num_texts: int = 1,
    max_text_length: int = 512,
    device: str = "cpu",
    seed: int = 0,
) -> Iterator[tuple[Stacks, Tensor, Tensor]]:
    """Targets and descriptions, without an end.

    Args:
        shards: The set.
        stats: What ``llgbm-pack stats`` wrote of it.
        target_modules: Kinds of modules, as view "layers" names them.
        batch_size: B.
        num_texts: K descriptions, drawn anew each epoch.
        max_text_length: L.
        device: Where the tensors go.
        seed: Seed of the order and of the draws.

    Yields:
        Stacks (B, L, r, in) and (B, L, out, r) float32; ids and mask (B, K, L) int64.
    """
    with StreamingLoader(
        shards,
        fields=("weights", "condition"),
        view="layers",
        batch_size=batch_size,
        num_texts=num_texts,
        max_text_length=max_text_length,
        device=device,
        seed=seed,
    ) as loader:
        mean, std = (read_stacks(stats, f"weight.{name}", loader.layout, device) for name in ("mean", "std"))
        while True:
            for batch in loader:
                targets = {
                    kind: z_scores(batch["weights"][kind], mean[kind], std[kind], batch["ranks"][kind])
                    for kind in target_modules
                }
                yield targets, batch["condition_ids"], batch["attention_mask"]


def read_stacks(stats: str, name: str, layout: Layout, device: str) -> Stacks:
    """One of the statistics of weights in the form of the weights; what no adapter has is 0."""
    with safe_open(stats, "pt") as file:
        pieces = file.get_tensor(name).to(device)
    view = WeightView(layout, "layers")
    stacks: Stacks = view.present(view.gather(pieces[None])[0], view.ranks(pieces[None])[0])["weights"]
    return stacks


def z_scores(
    weights: tuple[Tensor, Tensor], mean: tuple[Tensor, Tensor], std: tuple[Tensor, Tensor], ranks: Tensor
) -> tuple[Tensor, Tensor]:
    """z-scores of A and B of one kind; 0 in ranks, given as (B, L), that an adapter does not have."""
    a, b = ((own - m) / (s + TINY) for own, m, s in zip(weights, mean, std, strict=True))
    there = torch.arange(a.shape[-2], device=a.device) < ranks[..., None]
    return a.where(there[..., None], 0.0), b.where(there[..., None, :], 0.0)


def main() -> None:
    """Show three batches of the set that is named on the command line."""
    shards, stats = sys.argv[1:]
    for targets, ids, _mask in itertools.islice(training_batches(shards, stats, batch_size=2), 3):
        print({kind: (tuple(a.shape), tuple(b.shape)) for kind, (a, b) in targets.items()}, tuple(ids.shape))


if __name__ == "__main__":
    main()
