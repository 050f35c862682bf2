"""Readers of the JSON files that texts come in; each gives (prompt, answer) pairs or says what is wrong.

Known shapes, all of them bounded and strict:

* ``{"prompts": [...], "answers": [...], "task": "..."}`` (``probes`` stands for ``prompts`` in a probes file);
* ``["a prompt", ...]``;
* ``[{"prompt": ..., "response": ..., "system": ...}, ...]``, as DnD keeps its texts (``answer``, ``completion`` or
  ``output`` stand for ``response``);
* ``[{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}, ...]``, ShareGPT.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from llgbm_shards.canonical import load_json
from llgbm_shards.errors import CheckpointError, HeaderError
from llgbm_shards.storage import read_at_most, read_errors

#: Largest text file that is read, in bytes.
MAX_TEXT_BYTES: Final = 64 << 20
_ASKING: Final = frozenset({"human", "user"})
_ANSWERING: Final = frozenset({"gpt", "assistant"})
_ANSWER_KEYS: Final = ("response", "answer", "completion", "output")
_PROMPT_KEYS: Final = ("prompts", "probes")


class Text(NamedTuple):
    """One text of a checkpoint."""

    prompt: str  # the prompt; may be empty
    answer: str  # the answer; empty when the file has none


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFile:
    """What one file of texts holds."""

    texts: tuple[Text, ...]  # its texts in file order, at least one
    task: str = ""  # the task it names, or empty


def read_text_file(path: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> TextFile:
    """Reads a regular file of texts, strict JSON in any of the known shapes."""
    with read_errors(CheckpointError, path.name, "texts cannot be read"):
        data = read_at_most(path, max_bytes)
    try:
        value = load_json(data.removeprefix(codecs.BOM_UTF8), where=path.name, max_bytes=max_bytes)
    except HeaderError as error:
        raise error.as_(CheckpointError) from error
    return parse_texts(value, where=path.name)


def parse_texts(value: object, *, where: str) -> TextFile:
    """The texts in a JSON value of a known shape."""
    if isinstance(value, dict):
        return _parse_lists(value, where)
    if not isinstance(value, list):
        raise _fault("texts of no known shape", where, "an object with prompts, or a list", value)
    _not_empty(value, where)
    return TextFile(
        texts=tuple(_parse_item(item, f"{where} text {index}") for index, item in enumerate(value))
    )


def _parse_lists(value: dict[str, Any], where: str) -> TextFile:
    key = next((key for key in _PROMPT_KEYS if key in value), "")
    if not key:
        raise _fault("no prompts", where, 'the key "prompts"', sorted(value)[:8])
    prompts = _strings(value[key], f"{where} {key}")
    _not_empty(prompts, where)
    answers = [] if value.get("answers") is None else _strings(value["answers"], f"{where} answers")
    if len(answers) > len(prompts):
        counts = f"{len(answers)} answers"
        raise CheckpointError(
            "more answers than prompts", where=where, expected=f"{len(prompts)}", got=counts
        )
    padded = [*answers, *[""] * (len(prompts) - len(answers))]
    task = _string(value.get("task", ""), f"{where} task")
    return TextFile(texts=tuple(map(Text, prompts, padded)), task=task)


def _parse_item(item: object, where: str) -> Text:
    if isinstance(item, str):
        return Text(item, "")
    if not isinstance(item, dict) or not ("prompt" in item or "conversations" in item):
        raise _fault("text of no known shape", where, "a string, {prompt, response} or {conversations}", item)
    if "prompt" not in item:
        return _parse_conversation(item["conversations"], where)
    key = next((key for key in _ANSWER_KEYS if key in item), "")
    answer = "" if item.get(key) is None else _string(item[key], f"{where} {key}")
    return Text(_string(item["prompt"], f"{where} prompt"), answer)


def _parse_conversation(turns: object, where: str) -> Text:
    """The first exchange of a ShareGPT conversation; a system turn before it is passed over."""
    if not isinstance(turns, list):
        raise _fault("conversation is no list", where, "a list of turns", turns)
    said = [_parse_turn(turn, f"{where} turn {number}") for number, turn in enumerate(turns)]
    first = next((number for number, (speaker, _) in enumerate(said) if speaker in _ASKING), -1)
    if first < 0:
        raise _fault(
            "conversation without a prompt", where, "a turn of human or user", [who for who, _ in said][:8]
        )
    after = said[first + 1 : first + 2]
    answer = after[0][1] if after and after[0][0] in _ANSWERING else ""
    return Text(said[first][1], answer)


def _parse_turn(turn: object, where: str) -> tuple[str, str]:
    if not isinstance(turn, dict) or not {"from", "value"} <= set(turn):
        raise _fault("turn of no known shape", where, "from and value", turn)
    return _string(turn["from"], f"{where} from"), _string(turn["value"], f"{where} value")


def _strings(value: object, where: str) -> list[str]:
    if not isinstance(value, list):
        raise _fault("not a list", where, "a list of strings", value)
    return [_string(item, f"{where} {index}") for index, item in enumerate(value)]


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _fault("not a string", where, "a string", value)
    return value


def _not_empty(value: Sequence[object], where: str) -> None:
    if not value:
        raise CheckpointError(
            "no texts",
            where=where,
            expected="at least one",
            got="an empty list",
            do="Add a prompt or remove the file.",
        )


def _fault(what: str, where: str, expected: str, got: object) -> CheckpointError:
    return CheckpointError(what, where=where, expected=expected, got=repr(got)[:80])
