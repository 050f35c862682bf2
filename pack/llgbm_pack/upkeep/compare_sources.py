"""What a zoo says of a packed checkpoint besides its weights: config, task and texts, against its sample's json."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from llgbm_pack.packing.sample_json import describe_adapter
from llgbm_pack.sources.adapter import read_adapter
from llgbm_pack.sources.tasks import resolve_task
from llgbm_pack.sources.texts import CheckpointTexts, Text, read_texts
from llgbm_pack.sources.zoo import Candidate
from llgbm_pack.tokenize.conditions import ConditionEncoder
from llgbm_shards.errors import CheckpointError
from llgbm_shards.names import TOKENIZER_DIRECTORY
from llgbm_shards.shardset import ShardSet
from llgbm_shards.texts import ConditionSpec


class SourceJudge:
    """Judges checkpoints of one set, from any thread; tasks are those of the zoo's own manifest, by checkpoint."""

    def __init__(self, shard_set: ShardSet, tasks: Mapping[str, str]) -> None:
        self._set, self._tasks = shard_set, tasks
        self._options = shard_set.record.options
        self._lock = threading.Lock()
        self._unjudged = 0

    @property
    def unjudged(self) -> tuple[str, ...]:
        """What could not be compared so far, in words."""
        texts = f"texts of {self._unjudged} checkpoints: not from their prompts.json, and check is given no other texts"
        deltas = ("deltas: check is given no delta cache",) if "delta" in self._set.record.members else ()
        return (*deltas, texts) if self._unjudged else deltas

    def change(self, info: Mapping[str, Any], candidate: Candidate) -> str:
        """What else than weights and delta a build would write now; "" when that is the same."""
        try:
            now = self._now(candidate)
            texts = self._read_texts(candidate)
            now["task"] = resolve_task(candidate.path, self._tasks.get(candidate.path, ""), texts.task)
            same = self._same_texts(texts, info)
        except CheckpointError as error:
            return f"cannot be packed any more: {error}"
        names = [_difference(name, info[name], value) for name, value in now.items() if value != info[name]]
        names += [] if same else ["texts"]
        return f"other {', '.join(names)}" if names else ""

    def _now(self, candidate: Candidate) -> dict[str, Any]:
        adapter = read_adapter(candidate.weights, candidate.config, alpha=self._options.get("alpha") or None)
        return describe_adapter(adapter, self._set.layout)

    def _read_texts(self, candidate: Candidate) -> CheckpointTexts:
        return read_texts(
            candidate.weights.parent,
            path=candidate.path,
            max_texts=self._options.get("max_texts") or None,
            seed=self._options.get("seed", 0),
        )

    def _same_texts(self, texts: CheckpointTexts, info: Mapping[str, Any]) -> bool:
        packed = tuple(Text(text["prompt"], text["answer"]) for text in info["texts"])
        if packed == texts.texts:
            return True
        if texts.source == "name" and (self._options.get("texts") or info["has_delta"]):
            # From --texts or from the delta cache's probes: without these nobody knows.
            with self._lock:
                self._unjudged += 1
            return True
        return packed == self._kept(texts.texts)

    def _kept(self, texts: tuple[Text, ...]) -> tuple[Text, ...]:
        """The texts that a build keeps: the text tokenizer may drop some. Asked only when it matters: it is slow."""
        if not self._set.record.texts["forms"]:
            return texts
        with self._lock:
            return tuple(texts[index] for index in self._encoder.encode(texts).kept)

    @cached_property
    def _encoder(self) -> ConditionEncoder:
        spec = ConditionSpec.from_json(self._set.record.texts)
        return ConditionEncoder.from_directory(self._set.path / TOKENIZER_DIRECTORY, spec)


def _difference(name: str, was: object, now: object) -> str:
    return name if isinstance(was, list) else f"{name} ({was!r:.80}, now {now!r:.80})"
