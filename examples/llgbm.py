"""Feed LLGBM's training step from a packed set: our batches under the names that its step reads.

Pack the teachers with their deltas and a tokenizer of LLGBM's text encoder::

    llgbm-pack build data/teacher_checkpoints shards --deltas deltas \
        --text-tokenizer sentence-transformers/all-MiniLM-L6-v2

and call ``train_step`` in a loop of your own::

    batches = training_batches("shards", batch_size=8, lambda_weight=config.lambda_weight, device="cuda")
    for step, batch in zip(range(config.num_steps), batches):
        train_step(batch, generator, ..., weight_criterion=WeightLoss())

Not ``train``: it goes round by ``itertools.cycle``, which keeps each batch for good and draws no text anew.

Run as a program, this shows the first batches of a set: ``python examples/llgbm.py SHARDS``.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from llgbm_loader import StreamingLoader


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
        lambda_weight: The config's weight of the weight loss; with 0 no weights are read.
        batch_size: B.
        num_texts: K, ``num_prompts_per_adapter`` of LLGBM.
        max_text_length: L.
        device: Where the tensors go.
        seed: Seed of the order and of the draws.

    Raises:
        UsageError: The set has no texts or no deltas.
    """
    with StreamingLoader(
        path,
        fields=(
            "condition",
            "delta",
            *(["weights"] if lambda_weight > 0 else []),
        ),  # the step reads no tokens
        view="modules",
        dtype=None,  # weights as they are stored
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

    Returns:
        delta_teacher (B, hidden) float32; condition_ids and attention_mask (B, K, L) int64; tasks and adapter_names,
        lists of B str. An adapter's name is its path in the zoo, which no two share. Where weights were read,
        lora_weights as :func:`lora_weights` gives them: LLGBM's step takes the key's absence for "no weight loss".
    """
    return {
        "delta_teacher": batch["delta"],
        "condition_ids": batch["condition_ids"],
        "attention_mask": batch["attention_mask"],
        "tasks": batch["task"],
        "adapter_names": batch["checkpoint"],
        **({"lora_weights": lora_weights(batch)} if "weights" in batch else {}),
    }


def lora_weights(batch: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Each teacher's A and B by PEFT key, as ``load_file`` gives them: of its own rank, without absent modules.

    LLGBM's loss passes over keys and shapes that differ from the generator's without a word, so nothing is padded.
    """
    ranks = torch.stack(list(batch["ranks"].values()), 1).tolist()  # (B, M), in one copy from the device
    return [
        {
            f"base_model.model.{name}.lora_{side}.weight": matrix
            for rank, (name, (a, b)) in zip(own, batch["weights"].items(), strict=True)
            if rank
            for side, matrix in (("A", a[row, :rank]), ("B", b[row, :, :rank]))
        }
        for row, own in enumerate(ranks)
    ]


def main() -> None:
    """Show three batches of the set that is named on the command line."""
    for batch in itertools.islice(training_batches(sys.argv[1], lambda_weight=1.0, batch_size=2), 3):
        weights = [f"{len(adapter)} tensors" for adapter in batch.pop("lora_weights")]
        shapes = {name: tuple(getattr(value, "shape", value)) for name, value in batch.items()}
        print(shapes, "lora_weights", weights)


if __name__ == "__main__":
    main()
