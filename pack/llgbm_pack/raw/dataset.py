"""Text2Qwen25LoRA_DeltaDataset: a raw zoo as a torch dataset of tokens, conditions and deltas."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llgbm_pack.plan.option_values import pairs_option
from llgbm_pack.plan.values import Skip
from llgbm_pack.raw.deltas import DeltaSource, Maps
from llgbm_pack.raw.values import (
    collate_values,
    common_keys,
    condition_tensors,
    item_number,
    require_batch,
    some_reasons,
)
from llgbm_pack.raw.weights import (
    WEIGHT_FIELDS,
    checked_view,
    collate_weights,
    own_tokenizer,
    tokenize_file,
    weight_plan,
)
from llgbm_pack.raw.zoo import COLUMNS, RawCheckpoint, checked_columns, read_zoo
from llgbm_pack.tokenize.conditions import form_text
from llgbm_shards.arguments import is_one_of, is_text, local_path, require, whole_number
from llgbm_shards.errors import UsageError
from llgbm_shards.names import FORMS

_LOG = logging.getLogger(__name__)
#: Ids of a condition at most: no model reads more, and each item has memory for all of them.
_MOST_IDS = 1 << 24
#: What of an item goes into a batch although it is no tensor.
_NAMED = (*COLUMNS, *WEIGHT_FIELDS)


class Text2Qwen25LoRA_DeltaDataset(Dataset[dict[str, Any]]):  # noqa: N801 - the name users know
    """Checkpoints of a zoo with their deltas. Works with adapters of any base model.

    At construction headers, texts and deltas are read and verified, no weights; what cannot be used is in
    ``skipped`` and counted in a warning of ``logging``. Deltas are not kept in memory.

    Args:
        checkpoint_folder: The zoo, in any layout that ``llgbm-pack build`` reads.
        lora_tokenizer: ``LoraTokenizer2D``, or anything whose ``tokenize(weights)`` gives (tokens, scales).
            With ours, checkpoints that do not fit the layout of most are skipped, as in a build.
        text_tokenizer: A transformers tokenizer. One without padding pads with its end-of-text token here.
        delta_cache: A ``DeltaCache`` or its directory.
        max_text_length: Ids of a condition.
        condition_type: ``prompt`` or ``prompt_answer`` (or ``answer``); without an answer it is the prompt.
        require_delta: True leaves out checkpoints without a delta; False gives them zeros and ``has_delta`` False.
        texts: Directory of text files by dataset, for zoos that keep texts apart.
        joiner: Between prompt and answer.
        maps: (old, new) prefixes to rewrite in the cache's paths.
        columns: Some of ``task`` and ``checkpoint``, for each item what the index of a packed set says there.
        view: None, or the form of the field ``weights``: ``pieces``, ``modules``, ``layers`` or ``flat``, as
            ``StreamingLoader`` gives them. Our own LoRA tokenizer only.

    Attributes:
        checkpoint_paths: All checkpoints found, in natural order.
        valid_checkpoints: Those in the dataset; item ``i`` is ``valid_checkpoints[i]``.
        skipped: Those that are not, with reasons.
        conditions: Per path string ``{"prompts": [first], "answers": [first] or []}``.
        all_deltas: Delta arrays by path string, read when looked up.
        layout: The layout that all share; None with a foreign LoRA tokenizer.

    Raises:
        UsageError: An argument cannot be used; the zoo shares no layout; a checkpoint has two deltas.
        StorageError: The zoo or the cache cannot be read.
    """

    def __init__(
        self,
        checkpoint_folder: str | os.PathLike[str],
        lora_tokenizer: Any,
        text_tokenizer: Any,
        delta_cache: Any,
        max_text_length: int = 512,
        condition_type: str = "prompt",
        *,
        require_delta: bool = True,
        texts: str | os.PathLike[str] | None = None,
        joiner: str = "\n",
        maps: Maps = (),
        columns: Sequence[str] = (),
        view: str | None = None,
    ) -> None:
        require(is_one_of(condition_type, FORMS), "condition_type", ", ".join(FORMS), condition_type)
        has_tokenize = callable(getattr(lora_tokenizer, "tokenize", None))
        require(has_tokenize, "lora_tokenizer", "an object with tokenize(weights)", lora_tokenizer)
        require(callable(text_tokenizer), "text_tokenizer", "a transformers tokenizer", text_tokenizer)
        require(isinstance(require_delta, bool), "require_delta", "True or False", require_delta)
        require(is_text(joiner), "joiner", "text", joiner)
        self.checkpoint_folder = local_path("checkpoint_folder", checkpoint_folder)
        self.lora_tokenizer = lora_tokenizer
        self.text_tokenizer = _padding(text_tokenizer)
        self.delta_cache = delta_cache
        self.max_text_length = whole_number("max_text_length", max_text_length, 1, _MOST_IDS)
        self.condition_type = condition_type
        self.joiner = joiner
        self.columns = checked_columns(columns)
        self.view = checked_view(view, lora_tokenizer)
        zoo = read_zoo(
            self.checkpoint_folder,
            DeltaSource(delta_cache),
            own_tokenizer(lora_tokenizer),
            require_delta=require_delta,
            texts=None if texts is None else local_path("texts", texts),
            tasks="task" in self.columns,
            maps=pairs_option(maps),
        )
        self._deltas, self.layout, self._checkpoints = zoo.deltas, zoo.layout, zoo.checkpoints
        self._weights = weight_plan(self.view, zoo.layout)
        self.checkpoint_paths = zoo.places
        self.valid_checkpoints = [checkpoint.place for checkpoint in zoo.checkpoints]
        self.skipped: list[Skip] = zoo.skipped
        self.conditions = {str(checkpoint.place): _condition(checkpoint) for checkpoint in zoo.checkpoints}
        self.all_deltas = zoo.deltas.source.by_path(
            {str(one.place): one.delta for one in zoo.checkpoints if one.delta is not None}
        )
        self._tell()

    def __len__(self) -> int:
        return len(self._checkpoints)

    def __getitem__(self, idx: SupportsIndex) -> dict[str, Any]:
        """One checkpoint.

        Returns:
            tokens (N, H, W) float32; scales (N, 2) float32, as many columns as a foreign tokenizer gives, those of its
            tokens' frame when it gives none, absent without a frame; with a ``view`` weights, float32, and ranks, int64,
            of one sample; condition_ids and attention_mask
            (max_text_length,) int64; delta (hidden,) float32; has_delta () bool; checkpoint_path and the columns,
            each a str.

        Raises:
            CheckpointError: The checkpoint or its delta has changed and cannot be used any more.
            StorageError: It cannot be read.
        """
        checkpoint = self._checkpoints[item_number(idx)]
        fields = tokenize_file(
            checkpoint.weights, self.lora_tokenizer, self.layout, self._weights, where=checkpoint.path
        )
        ids, mask = self._encode_text(checkpoint)
        joined = checkpoint.delta
        return {
            **fields,
            "condition_ids": ids,
            "attention_mask": mask,
            "delta": self._deltas.zeros() if joined is None else self._deltas.source.tensor(joined),
            "has_delta": torch.tensor(joined is not None),
            "checkpoint_path": str(checkpoint.place),
            **{name: checkpoint.column(name) for name in self.columns},
        }

    def get_checkpoint_path(self, idx: SupportsIndex) -> str:
        """Path of an item, as in its ``checkpoint_path``; no file is read."""
        return str(self.valid_checkpoints[item_number(idx)])

    def has_delta(self, idx: SupportsIndex) -> bool:
        """Whether an item has a delta; no file is read."""
        return self._checkpoints[item_number(idx)].delta is not None

    @staticmethod
    def collate_fn(batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Stacks the tensors of samples, weights and ranks in the form of their view, and lists their columns.

        ``checkpoint_path`` is left out, so that all values go to a device where no columns are asked for.

        Raises:
            UsageError: Not a batch of samples, or tensors of different shapes.
        """
        require_batch(batch, Mapping)
        kept = [
            {key: value for key, value in sample.items() if isinstance(value, Tensor) or key in _NAMED}
            for sample in batch
        ]
        return {
            key: (collate_weights if key in WEIGHT_FIELDS else collate_values)(
                [row[key] for row in kept], key
            )
            for key in common_keys(kept, "batch")
        }

    def _encode_text(self, checkpoint: RawCheckpoint) -> tuple[Tensor, Tensor]:
        encoded = self.text_tokenizer(
            form_text(checkpoint.text, self.condition_type, self.joiner),
            max_length=self.max_text_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        return condition_tensors(encoded)

    def _tell(self) -> None:
        if self.skipped:
            counts = len(self), len(self.checkpoint_paths), len(self.skipped)
            reasons = some_reasons(self.skipped)
            _LOG.warning("%d of %d checkpoints are used, %d skipped (see .skipped): %s", *counts, reasons)
        zeros = sum(checkpoint.delta is None for checkpoint in self._checkpoints)
        if zeros:
            _LOG.warning("%d of %d checkpoints have no delta: zeros, has_delta False", zeros, len(self))


def _condition(checkpoint: RawCheckpoint) -> dict[str, list[str]]:
    prompt, answer = checkpoint.text
    return {"prompts": [prompt], "answers": [answer] if answer else []}


def _padding(text_tokenizer: Any) -> Any:
    """The tokenizer; a copy that pads with its end-of-text token when it has no padding, as a build does it."""
    if getattr(text_tokenizer, "pad_token_id", 0) is not None:
        return text_tokenizer
    if getattr(text_tokenizer, "eos_token", None) is None:
        raise UsageError(
            "the text tokenizer has no padding token",
            where="text_tokenizer",
            expected="a pad_token, or an eos_token to pad with",
        )
    padded = copy.deepcopy(text_tokenizer)
    padded.pad_token = padded.eos_token
    return padded
