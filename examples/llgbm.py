"""Feed LLGBM's training step from a packed set: our batches under the names that its step reads.

Pack the teachers with their deltas and a tokenizer of LLGBM's text encoder::

    llgbm-pack build data/teacher_checkpoints shards --deltas deltas \
        --text-tokenizer sentence-transformers/all-MiniLM-L6-v2

and call ``train_step`` in a loop of your own, with ``lambda_weight`` 0 in the config::

    batches = training_batches("shards", batch_size=8, lambda_weight=config.lambda_weight, device="cuda")
    for step, batch in zip(range(config.num_steps), batches):
        train_step(batch, generator, ...)

Not ``train``: it goes round by ``itertools.cycle``, which keeps each batch for good and draws no text anew.

Run as a program, this shows the first batches of a set: ``python examples/llgbm.py SHARDS``.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

from llgbm_loader import StreamingLoader
from llgbm_shards.errors import UsageError


def training_batches(
    path: str,
    *,
    lambda_weight: float,
    batch_size: int = 8,
    num_texts: int = 8,
    max_text_length: int = 256,
    device: str = "cpu",
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Batches for ``train_step``, without an end: each epoch is shuffled and draws its texts anew.

    Args:
        path: The set.
        lambda_weight: The config's weight of the weight loss. Only 0 can be had, see :func:`as_llgbm`.
        batch_size: B.
        num_texts: K, ``num_prompts_per_adapter`` of LLGBM.
        max_text_length: L.
        device: Where the tensors go.
        seed: Seed of the order and of the draws.

    Raises:
        UsageError: A weight loss is asked for, or the set has no texts or no deltas.
    """
    if lambda_weight:
        raise UsageError(
            "these batches have no lora_weights, and without them LLGBM's weight loss is 0.0",
            where="lambda_weight",
            expected="0",
            got=f"{lambda_weight}",
        )
    with StreamingLoader(
        path,
        fields=("condition", "delta"),  # the step reads no tokens: so neither do we
        columns=("task", "checkpoint"),
        filters=[("has_delta", "==", True)],  # the step knows no mask: zeros would be taken for a delta
        batch_size=batch_size,
        num_texts=num_texts,
        max_text_length=max_text_length,
        device=device,
        seed=seed,
    ) as loader:
        while True:
            yield from map(as_llgbm, loader)


def as_llgbm(batch: dict[str, Any]) -> dict[str, Any]:
    """One of our batches under LLGBM's names.

    ``lora_weights``, each teacher's A and B by name, is left out on purpose: a loader gives tokens, not yet real A and
    B. LLGBM's step takes the key's absence for "no weight loss" and reports ``loss_weight`` 0.0 without an error, so
    what trains is the delta loss alone: that is why :func:`training_batches` insists on ``lambda_weight`` 0.

    Returns:
        delta_teacher (B, hidden) float32; condition_ids and attention_mask (B, K, L) int64; tasks and adapter_names,
        lists of B str. An adapter's name is its path in the zoo, which no two share.
    """
    return {
        "delta_teacher": batch["delta"],
        "condition_ids": batch["condition_ids"],
        "attention_mask": batch["attention_mask"],
        "tasks": batch["task"],
        "adapter_names": batch["checkpoint"],
    }


def main() -> None:
    """Show three batches of the set that is named on the command line."""
    for batch in itertools.islice(training_batches(sys.argv[1], lambda_weight=0.0, batch_size=2), 3):
        print({name: tuple(getattr(value, "shape", value)) for name, value in batch.items()})


if __name__ == "__main__":
    main()
