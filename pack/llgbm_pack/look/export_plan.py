"""What an export writes where: decided from the small members of all samples before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Final

from llgbm_pack.look.restore import blank_of
from llgbm_pack.sources.directory import CONFIG, WEIGHTS
from llgbm_pack.sources.tasks import MANIFEST_NAME, resolve_task
from llgbm_pack.sources.texts import PROMPTS, unwrapped
from llgbm_shards.canonical import blake3_hex, dump_json, load_json
from llgbm_shards.errors import DamageError, HeaderError, UsageError
from llgbm_shards.members import SUFFIX, decode_source
from llgbm_shards.sample import MAX_JSON_BYTES
from llgbm_shards.schema import SAMPLE, refuse_faults
from llgbm_shards.shardset import ShardSet

_SUFFIX: Final = ".safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One checkpoint to write."""

    number: int  # of its sample
    key: str
    checkpoint: str  # its path in the zoo
    folder: str  # where its files go, POSIX, "" for the destination itself
    weights: str  # name of its weights file there
    size: int  # bytes of that file
    digest: str  # BLAKE3 of that file, "" where the set cannot give the source's bytes
    source_dtype: str  # of the file it was packed from
    task: str
    prompts_task: str  # the task that its prompts.json names, "" when none
    config: str  # digest of its adapter_config.json, "" for none
    texts: str  # digest of its texts
    named: bool  # its texts are only its name
    num_texts: int
    delta_file: str  # name of the file its delta came from, "" where it has none
    config_file: str = ""  # the config it writes; "" where there is none, or another of its folder writes it
    texts_file: str = ""  # the file of texts it writes; "" likewise

    def path(self, name: str) -> str:
        """The path of one of its files."""
        return f"{self.folder}/{name}" if self.folder else name


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportPlan:
    """All that an export writes below its destination."""

    items: tuple[Item, ...]
    manifest: bytes = b""  # manifest.json of the tree; empty where the paths alone tell the tasks
    apart: tuple[str, ...] = ()  # checkpoints whose texts differ from those of others in the same folder
    paths: frozenset[str] = field(default=frozenset())  # of all files


def plan_tree(opened: ShardSet, numbers: Iterable[int]) -> ExportPlan:
    """The tree of the zoo.

    Raises:
        DamageError: A sample is not what was written, or leads out of the tree, or to the place of another.
        UsageError: Checkpoints of one folder have different configs.
    """
    by_folder: dict[str, list[Item]] = {}
    taken: set[str] = set()
    for number in numbers:
        item = _item(opened, number)
        if (path := item.path(item.weights)) in taken:
            raise DamageError("two samples are one file", key=item.key, got=f"{path:.200}")
        taken.add(path)
        by_folder.setdefault(item.folder, []).append(item)
    plan = _Texts(by_folder)
    items = [placed for folder in by_folder for placed in plan.placed(folder)]
    items.sort(key=lambda item: item.number)
    manifest = _manifest(items, plan.written)
    names = [item.path(name) for item in items for name in (item.config_file, item.texts_file) if name]
    paths = taken.union(names, [MANIFEST_NAME] if manifest else [])
    return ExportPlan(items=tuple(items), manifest=manifest, apart=tuple(plan.apart), paths=frozenset(paths))


def plan_single(opened: ShardSet, number: int) -> ExportPlan:
    """One checkpoint as a directory that PEFT loads.

    Raises:
        DamageError: The sample is not what was written.
    """
    item = replace(_item(opened, number), folder="", weights=WEIGHTS, config_file=CONFIG)
    if not item.named:
        item = replace(item, texts_file=PROMPTS)
    names = (item.weights, item.config_file, item.texts_file)
    return ExportPlan(items=(item,), paths=frozenset(filter(None, names)))


def read_small(opened: ShardSet, number: int) -> tuple[dict[str, Any], bytes, bytes]:
    """The json of a sample, its weights file's header, and its config (empty: none), verified.

    Raises:
        DamageError: They are not what was written.
    """
    extents = {extent.field: extent for extent in opened.extents(number)}
    json, source = extents["json"], extents["source"]
    member = json
    try:
        info = load_json(opened.read_member(json), where="json", max_bytes=MAX_JSON_BYTES)
        refuse_faults(info, SAMPLE, "json", "")
        member = source
        head, config = decode_source(opened.read_member(source), where=SUFFIX["source"])
    except HeaderError as error:
        raise error.as_(
            DamageError, shard=member.shard, key=member.key, member=SUFFIX[member.field]
        ) from error
    return info, head, config


def texts_json(info: dict[str, Any], task: str = "") -> bytes:
    """The prompts.json of a sample; without a task, what is compared to tell whether two have the same texts."""
    prompts, answers = ([text[side] for text in info["texts"]] for side in ("prompt", "answer"))
    return dump_json({"prompts": prompts, "answers": answers, **({"task": task} if task else {})})


def _item(opened: ShardSet, number: int) -> Item:
    info, head, config = read_small(opened, number)
    key = opened.keys[number]
    try:
        blank = blank_of(head, info, opened.layout)
        folder = _folder(info["checkpoint"], info["weights_file"])
    except DamageError as error:
        raise error.as_(DamageError, key=key, member=SUFFIX["json"]) from error
    return Item(
        number=number,
        key=key,
        checkpoint=info["checkpoint"],
        folder=folder,
        weights=info["weights_file"],
        size=blank.size,
        digest=info["source_digest"] if info["exact"] else "",
        source_dtype=info["source_dtype"],
        task=info["task"],
        prompts_task=info["prompts_task"],
        config=blake3_hex(config) if config else "",
        texts=blake3_hex(texts_json(info)),
        # The zoo's own name is another where the tree is called otherwise: then the text is written down.
        named=info["text_source"] == "name" and info["checkpoint"] != ".",
        num_texts=len(info["texts"]),
        delta_file=info["delta"]["file"],
    )


def _folder(checkpoint: str, weights: str) -> str:
    """Where a checkpoint's files lie, "" for the tree's root.

    Raises:
        DamageError: A path that no build writes: it may lead anywhere.
    """
    path = PurePosixPath(checkpoint)
    visible = all(not part.startswith(".") and "\0" not in part for part in (*path.parts, weights))
    if checkpoint != path.as_posix() or path.is_absolute() or not visible:
        expected = "a relative POSIX path without hidden folders"
        raise DamageError("not a path in a zoo", expected=expected, got=f"{checkpoint!r:.200}")
    if weights == WEIGHTS:
        return "/".join(path.parts)
    if path.name != weights.removesuffix(_SUFFIX):
        got = f"{checkpoint!r:.200} and {weights!r:.200}"
        raise DamageError("checkpoint and weights_file are not of one file", got=got)
    return "/".join(path.parts[:-1])


class _Texts:
    """Which checkpoint of a folder writes the config and the texts that all of the folder share."""

    def __init__(self, by_folder: dict[str, list[Item]]) -> None:
        self._by_folder = by_folder
        self.apart: list[str] = []
        #: Folder -> task that its prompts.json names.
        self.written = {
            folder: next(item.prompts_task for item in items if not item.named)
            for folder, items in by_folder.items()
            if not all(item.named for item in items) and _equal(item.texts for item in items)
        }

    def placed(self, folder: str) -> list[Item]:
        """The checkpoints of a folder, with the files that each of them writes."""
        items = self._by_folder[folder]
        if not _equal(item.config for item in items):
            raise UsageError(
                "checkpoints of one folder have different adapter_config.json",
                where=folder or ".",
                got=", ".join(item.checkpoint for item in items[:4]),
                do="Export them one by one: `llgbm-pack export OUT DEST KEY`.",
            )
        items = [replace(items[0], config_file=CONFIG if items[0].config else ""), *items[1:]]
        if folder in self.written:
            return [replace(items[0], texts_file=PROMPTS), *items[1:]]
        if not all(item.named for item in items):
            self.apart += [item.checkpoint for item in items]
            return [
                replace(item, texts_file=f"{item.weights.removesuffix(_SUFFIX)}.{PROMPTS}") for item in items
            ]
        return [replace(item, texts_file=PROMPTS) if self._takes_others(item) else item for item in items]

    def _takes_others(self, item: Item) -> bool:
        """Whether a checkpoint without texts would be read with those of the folder above, which it had not."""
        home = unwrapped(PurePosixPath(item.folder).parts)
        above = "/".join(home)
        return item.weights == WEIGHTS and above != item.folder and above in self.written


def _manifest(items: Sequence[Item], written: dict[str, str]) -> bytes:
    """manifest.json for the tasks that the paths and texts of the tree do not tell."""
    entries = []
    for item in items:
        own = item.prompts_task if item.texts_file == PROMPTS else ""
        if resolve_task(item.checkpoint, "", written.get(item.folder, own)) != item.task:
            entries.append({"path": item.checkpoint, "task": item.task})
    return dump_json(entries) if entries else b""


def _equal(values: Iterable[str]) -> bool:
    return len(set(values)) == 1


#: Told the bytes of weights written so far, and of all.
Progress = Callable[[int, int], None]
