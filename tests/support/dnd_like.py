"""Stand-ins with the manners of Drag-and-Drop-LLMs' datasets and LoRA tokenizers."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from llgbm_pack import LoraTokenizer2D
from support.tiny_tokenizers import tiny_tokenizer

TEXTS = ("a", "what is it", "other", "say it again")
LENGTH = 6


class RepeatingDataset(Dataset):
    """States any length and goes round its checkpoints; items are (tokens, BatchEncoding of K texts, path).

    ``form`` of the condition: ``encoding``, or ``dict`` and ``lists`` of the same.
    """

    def __init__(self, checkpoints, length, texts=2, form="encoding", own=True):
        self.checkpoints = list(checkpoints)
        self.real_length = len(self.checkpoints)
        self.length, self.texts, self.form, self.own = length, texts, form, own
        self.text_tokenizer = tiny_tokenizer("bert")
        self.read = 0

    def __len__(self):
        return self.length

    def place(self, idx):
        """Which checkpoint an item is of."""
        return idx % self.real_length

    def condition(self, idx):
        """K texts, each padded."""
        texts = [TEXTS[(idx + number) % len(TEXTS)] for number in range(self.texts)]
        options = {"padding": "max_length", "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
        encoded = self.text_tokenizer(texts, **options)
        lists = {key: value.tolist() for key, value in encoded.items()}
        return {"encoding": encoded, "dict": dict(encoded), "lists": lists}[self.form]

    def __getitem__(self, idx):
        self.read += 1
        if not 0 <= idx < self.length:
            raise IndexError(idx)
        place = self.place(idx)
        item = torch.full((3, 4, 6), float(place), dtype=torch.bfloat16), self.condition(idx)
        return (*item, self.checkpoints[place]) if self.own else item


class FrameTokenizer:
    """Gives (tokens, None): the scales are only in the frame. Takes what it is given apart, as theirs does."""

    def __init__(self, **options):
        self._tokenizer = LoraTokenizer2D(**options)

    def tokenize(self, weights):
        """Tokens with their frame, and no scales."""
        tokens, _ = self._tokenizer.tokenize(dict(weights))
        weights.clear()
        return tokens, None
