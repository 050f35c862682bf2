"""Stacks of q and v for an autoencoder of LoRA weights in the manner of LoRAGen, from a packed set.

Pack the adapters with their texts; modules other than q and v may be there, and are left out here::

    llgbm-pack build loras shards --text-tokenizer google/flan-t5-large

Run as a program, this shows the first batches of a set: ``python examples/loragen.py SHARDS``. The kinds of modules of a
set are those of view "layers"; where encoder and decoder both have a q they are told apart by more of their names
(``encoder.block.*.layer.0.SelfAttention.q``).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

from torch import Tensor

from llgbm_loader import StreamingLoader

#: A (B, L, r, in) and B (B, L, out, r) of one kind of module, layers in numeric order.
Pair = tuple[Tensor, Tensor]


def training_batches(
    shards: str,
    *,
    q: str = "q_proj",
    v: str = "v_proj",
    batch_size: int = 8,
    max_text_length: int = 512,
    device: str = "cpu",
    seed: int = 0,
) -> Iterator[tuple[Pair, Pair, Tensor, Tensor]]:
    """Stacks of q and v with the text that they are generated from, without an end.

    Args:
        shards: The set.
        q: Kind of the query projections, as view "layers" names it.
        v: Kind of the value projections.
        batch_size: B.
        max_text_length: L of the text.
        device: Where the tensors go.
        seed: Seed of the order.

    Yields:
        (A, B) of q, (A, B) of v, float32, so that ``B @ A`` is the update of each layer, but for the adapter's scaling:
        ranks that an adapter does not have, and modules, are zeros and add nothing to it. ids and mask (B, L) int64.
    """
    with StreamingLoader(
        shards,
        fields=("weights", "condition"),
        view="layers",
        batch_size=batch_size,
        max_text_length=max_text_length,
        device=device,
        seed=seed,
    ) as loader:
        while True:
            for batch in loader:
                weights = batch["weights"]
                yield weights[q], weights[v], batch["condition_ids"], batch["attention_mask"]


def main() -> None:
    """Show three batches of the set that is named on the command line."""
    for q, v, ids, _mask in itertools.islice(training_batches(sys.argv[1], batch_size=2), 3):
        print([tuple(side.shape) for side in (*q, *v)], tuple(ids.shape))


if __name__ == "__main__":
    main()
