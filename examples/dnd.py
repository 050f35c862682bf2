"""Feed Drag-and-Drop-LLMs' scripts from a packed set: (tokens, ids, mask) to train on, and a tag more to generate.

Pack the zoo in the scripts' token order, with all texts, and the tokenizer of their extractor; the scripts of
``ablation/condition_forms`` want ``--form prompt --form prompt_answer --form answer --joiner "answer: "`` too::

    llgbm-pack build data/common_sense_reasoning shards --token-order dnd --alpha ALPHA \
        --texts prepare/data --max-texts all --text-tokenizer models/all-MiniLM-L12-v2

and put this in place of a script's ``Dataset`` and ``DataLoader``::

    options = {"num_texts": config["num_texts"], "max_text_length": config["max_text_length"]}
    train_loader = training_batches("shards", datasets, batch_size=config["batch_size"], **options)
    test_iterator = generation_batches("shards", "data/common_sense_reasoning", ["ARC-c"], **options)
    model, optimizer = accelerator.prepare(model, optimizer)  # not the loader: each rank has its own part already

What the scripts set (num_texts, max_text_length): 0.5B 128, 384; 1.5B math 32, 4608; 7B math 16, 4608; coding 16,
26624; multimodal 16, 1536. ``form``: "mix" is their Mix, "prompt_answer" Q+A, "answer" A.

Run as a program, this shows the first batches of a set: ``python examples/dnd.py SHARDS ZOO DATASET...``.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llgbm_loader import StreamingLoader


def training_batches(
    shards: str,
    datasets: Sequence[str],
    *,
    batch_size: int,
    num_texts: int,
    max_text_length: int,
    form: str = "prompt",
    device: str = "cpu",
    seed: int = 999,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches as ``collate_fn_train`` gives them, without an end: a script leaves its loop after ``total_steps``.

    Args:
        shards: The set.
        datasets: Datasets to train on; a set may hold others, to test on.
        batch_size: B, of one process.
        num_texts: K.
        max_text_length: L.
        form: ``prompt``, ``answer``, ``prompt_answer`` or ``mix``.
        device: Where the tensors go.
        seed: Seed of the order and of the draws, which are new in each epoch.

    Yields:
        tokens (B, N, H, W) bfloat16, NaN where they are padded; ids and mask (B, K, L) int64.
    """
    with StreamingLoader(
        shards,
        filters=[("task", "in", list(datasets))],
        fields=("tokens", "condition"),
        dtype=torch.bfloat16,
        batch_size=batch_size,
        num_texts=num_texts,
        max_text_length=max_text_length,
        form=form,
        device=device,
        seed=seed,
    ) as loader:
        while True:
            for batch in loader:
                yield batch["tokens"], batch["condition_ids"], batch["attention_mask"]


def generation_batches(
    shards: str, zoo: str, datasets: Sequence[str], *, num_texts: int, max_text_length: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, str]]:
    """Batches of one as ``collate_fn_test`` gives them, in the set's order, without an end.

    Args:
        shards: The set.
        zoo: The zoo it was packed from: ``save_checkpoint`` takes names and shapes from a checkpoint of it.
        datasets: Datasets to generate for.
        num_texts: K.
        max_text_length: L.

    Yields:
        As :func:`training_batches`, and the tag, the path of the checkpoint's weights.
    """
    with StreamingLoader(
        shards,
        filters=[("task", "in", list(datasets))],
        fields=("tokens", "condition"),
        columns=("checkpoint",),
        dtype=torch.bfloat16,
        batch_size=1,
        shuffle=False,
        rank=0,  # a script generates on its main process only, of all samples
        world_size=1,
        num_texts=num_texts,
        max_text_length=max_text_length,
    ) as loader:
        while True:
            for batch in loader:
                tag = weights_file(Path(zoo), batch["checkpoint"][0])
                yield batch["tokens"], batch["condition_ids"], batch["attention_mask"], str(tag)


def weights_file(zoo: Path, checkpoint: str) -> Path:
    """Weights of a checkpoint: ``{dataset}/{N}.safetensors`` in DnD's own zoos, else a file in its directory."""
    file = zoo / f"{checkpoint}.safetensors"
    return file if file.is_file() else zoo / checkpoint / "adapter_model.safetensors"


def main() -> None:
    """Show three batches of each kind of the set that is named on the command line."""
    shards, zoo, *datasets = sys.argv[1:]
    train = training_batches(shards, datasets, batch_size=2, num_texts=4, max_text_length=64)
    for tokens, ids, mask in itertools.islice(train, 3):
        print(tuple(tokens.shape), tokens.dtype, tuple(ids.shape), tuple(mask.shape))
    generate = generation_batches(shards, zoo, datasets, num_texts=4, max_text_length=64)
    for tokens, ids, _mask, tag in itertools.islice(generate, 3):
        print(tuple(tokens.shape), tuple(ids.shape), tag)


if __name__ == "__main__":
    main()
