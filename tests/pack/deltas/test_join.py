"""The table of join cases. A wrong join is the worst outcome: several rows are there to stay unjoined."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llgbm_pack.deltas.join import join_deltas
from llgbm_pack.deltas.manifest import DeltaEntry
from support.slow_join import outcome, slow_join


class Case(NamedTuple):
    """``recorded``: paths in the cache, or name=path. ``joined``: checkpoint -> (index of its delta, rule)."""

    name: str
    checkpoints: list[str]
    recorded: list[str]
    joined: dict[str, tuple[int, str]]
    missing: Sequence[str] = ()
    ambiguous: Mapping[str, list[int]] = MappingProxyType({})
    maps: Sequence[tuple[str, str]] = ()
    root: str = "data/zoo"
    absolute: str = "/home/me/data/zoo"


CASES = [
    Case("exact as given", ["arc/x"], ["data/zoo/arc/x"], {"arc/x": (0, "exact")}),
    Case("exact absolute", ["arc/x"], ["/home/me/data/zoo/arc/x"], {"arc/x": (0, "exact")}),
    Case("exact, untidy", ["arc/x"], ["./data//zoo/arc/x/"], {"arc/x": (0, "exact")}),
    Case("exact, its weights file", ["arc/x"], ["data/zoo/arc/x/adapter_model.safetensors"], {"arc/x": (0, "exact")}),
    Case("relative to the zoo", ["arc/x"], ["arc/x"], {"arc/x": (0, "relative")}),
    Case("zoo is the working directory", ["arc/x"], ["arc/x"], {"arc/x": (0, "exact")}, root="."),
    Case("zoo is the checkpoint", ["."], ["/old/zoo"], {".": (0, "tail")}),
    Case("zoo is another checkpoint", ["."], ["/old/other"], {}, ["."]),
    # Moved.
    Case("moved root", ["arc/x", "arc/y"], ["/old/z/arc/y", "/old/z/arc/x"], {"arc/x": (1, "tail"), "arc/y": (0, "tail")}),
    Case("moved root, same zoo name", ["arc/x"], ["/old/zoo/arc/x"], {"arc/x": (0, "tail")}),
    Case("moved flat zoo", ["seed_0", "seed_1"], ["/o/seed_1", "/o/seed_0"], {"seed_0": (1, "tail"), "seed_1": (0, "tail")}),
    Case("moved root of names used in each task", ["a_t/s0", "b_t/s0"], ["/o/b_t/s0", "/o/a_t/s0"],
         {"a_t/s0": (1, "tail"), "b_t/s0": (0, "tail")}),
    Case("two old roots", ["arc/x", "gsm/y"], ["/old/zoo/arc/x", "/mnt/b/gsm/y"],
         {"arc/x": (0, "tail"), "gsm/y": (1, "tail")}),
    Case("part of the zoo was measured elsewhere", ["arc/x", "gsm/y"], ["data/zoo/arc/x", "/mnt/old_zoo/gsm/y"],
         {"arc/x": (0, "exact"), "gsm/y": (1, "tail")}),
    Case("written on Windows", ["arc/x"], ["C:\\zoo\\arc\\x"], {"arc/x": (0, "tail")}),
    Case("map", ["arc/x"], ["/old/task/x"], {"arc/x": (0, "exact")}, maps=[("/old/task", "data/zoo/arc")]),
    Case("map is tried in order", ["arc/x"], ["/old/arc/x"], {"arc/x": (0, "exact")},
         maps=[("/old/b", "/no"), ("/old", "data/zoo"), ("/old/arc", "/no")]),
    Case("map holds for whole components", ["arc/seed_1"], ["/old10/b/seed_1"], {}, ["arc/seed_1"],
         maps=[("/old1", "data/zoo"), ("/old10/b/seed", "data/zoo/arc/seed")]),
    Case("map does not split a component", ["mila"], ["/oldest/mila"], {"mila": (0, "tail")}, maps=[("/old", "data/zoo")]),
    # Renamed.
    Case("renamed task of unique names", ["bool/mila", "bool/nora"], ["/o/boolq/nora", "/o/boolq/mila"],
         {"bool/mila": (1, "tail"), "bool/nora": (0, "tail")}),
    Case("renamed task, names in two tasks", ["a2/mila", "b2/mila"], ["/o/a/mila", "/o/b/mila"], {},
         ambiguous={"a2/mila": [0, 1], "b2/mila": [0, 1]}),
    Case("renamed task of common names", ["bool/seed_0"], ["/o/boolq/seed_0"], {}, ["bool/seed_0"]),
    Case("renamed task of common names, mapped", ["bool/seed_0"], ["/o/boolq/seed_0"], {"bool/seed_0": (0, "exact")},
         maps=[("/o/boolq", "data/zoo/bool")]),
    Case("the cache knows the other task", ["arc/mila", "arc/nora"], ["/o/gsm/mila", "/o/arc/nora"],
         {"arc/nora": (1, "tail")}, ["arc/mila"]),
    Case("the zoo knows the other task", ["arc/mila", "gsm/nora"], ["/o/gsm/mila"], {}, ["arc/mila", "gsm/nora"]),
    Case("a part of a larger zoo", ["mila", "nora"], ["/o/arc/mila", "/o/arc/nora", "/o/gsm/nora"],
         {"mila": (0, "tail"), "nora": (1, "tail")}, root="arc", absolute="/home/me/arc"),
    Case("a part of a larger zoo, one not measured", ["mila", "nora"], ["/o/gsm/mila", "/o/arc/nora", "/o/gsm/nora"],
         {"nora": (1, "tail")}, ["mila"], root="arc", absolute="/home/me/arc"),
    # Traps.
    Case("prefix of a name", ["arc_e_1"], ["/o/arc_e_10"], {}, ["arc_e_1"]),
    Case("name of a prefix", ["arc_e_10"], ["/o/arc_e_1"], {}, ["arc_e_10"]),
    Case("both of them", ["arc_e_1", "arc_e_10"], ["/o/arc_e_10", "/o/arc_e_1"],
         {"arc_e_1": (1, "tail"), "arc_e_10": (0, "tail")}),
    Case("end of a name", ["e_1"], ["/o/arc_e_1"], {}, ["e_1"]),
    Case("only a common last folder", ["arc/checkpoint-3"], ["/o/gsm/checkpoint-3"], {}, ["arc/checkpoint-3"]),
    Case("only the wrapper folder", ["arc/adapter"], ["/o/gsm/adapter"], {}, ["arc/adapter"]),
    Case("case matters", ["arc/Mila"], ["/o/arc/mila"], {}, ["arc/Mila"]),
    # The adapter folder of notebooks.
    Case("both end in adapter", ["arc_e_1/adapter"], ["/o/zoo/arc_e_1/adapter"], {"arc_e_1/adapter": (0, "tail")}),
    Case("only the checkpoint does", ["arc_e_1/adapter"], ["/o/zoo/arc_e_1"], {"arc_e_1/adapter": (0, "tail")}),
    Case("only the delta does", ["arc_e_1"], ["/o/zoo/arc_e_1/adapter"], {"arc_e_1": (0, "tail")}),
    Case("one inside the other", ["x", "x/adapter"], ["/o/x/adapter"], {}, ambiguous={"x": [0], "x/adapter": [0]}),
    # Duplicates.
    Case("two deltas of one path", ["arc/x"], ["a=data/zoo/arc/x", "b=data/zoo/arc/x"], {},
         ambiguous={"arc/x": [0, 1]}),
    Case("two old copies", ["arc/x"], ["/o1/arc/x", "/o2/arc/x"], {}, ambiguous={"arc/x": [0, 1]}),
    Case("exact beside an old copy", ["arc/x"], ["/o1/arc/x", "data/zoo/arc/x"], {}, ambiguous={"arc/x": [0, 1]}),
    Case("relative beside an old copy", ["arc/x"], ["/o1/arc/x", "arc/x"], {}, ambiguous={"arc/x": [0, 1]}),
    Case("relative beside exact", ["arc/x"], ["/home/me/data/zoo/arc/x", "arc/x"], {}, ambiguous={"arc/x": [0, 1]}),
    Case("as given beside absolute", ["arc/x"], ["data/zoo/arc/x", "/home/me/data/zoo/arc/x"], {},
         ambiguous={"arc/x": [0, 1]}),
    Case("a longer tail beside a shorter", ["arc/x"], ["/o1/zoo/arc/x", "/o2/b/arc/x"], {}, ambiguous={"arc/x": [0, 1]}),
    Case("name beside exact", ["t/mila"], ["old=data/zoo/t/mila", "mila=/tmp/current"], {}, ambiguous={"t/mila": [0, 1]}),
    Case("a delta of its own is none of its namesake's", ["x", "y/x"], ["x", "y/x"],
         {"x": (0, "relative"), "y/x": (1, "relative")}),
    Case("a copy in a folder that the cache tells apart", ["mila"], ["/home/me/arc/mila", "/home/me/gsm/mila"],
         {"mila": (0, "exact")}, root="arc", absolute="/home/me/arc"),
    Case("two checkpoints, one delta", ["a/mila", "b/mila"], ["mila"], {}, ambiguous={"a/mila": [0], "b/mila": [0]}),
    Case("its own checkpoint goes first", ["a/mila", "b/mila"], ["data/zoo/a/mila"], {"a/mila": (0, "exact")}, ["b/mila"]),
    Case("none left for this one", ["a/r0", "b/r0", "c/r0"], ["/o/a/r0", "/o/c/r0"],
         {"a/r0": (0, "tail"), "c/r0": (1, "tail")}, ["b/r0"]),
    Case("two maps to one path", ["x"], ["/o1/x", "/o2/x"], {}, ambiguous={"x": [0, 1]},
         maps=[("/o1", "data/zoo"), ("/o2", "data/zoo")]),
    # By name (second form).
    Case("name", ["task/mila"], ["mila=/tmp/work/current"], {"task/mila": (0, "name")}),
    Case("name of the folder above adapter", ["mila/adapter"], ["mila=/tmp/work/current"], {"mila/adapter": (0, "name")}),
    Case("name in two tasks", ["a/mila", "b/mila"], ["mila=/tmp/current"], {}, ["a/mila", "b/mila"]),
    Case("name is the relative path", ["a/mila", "b/mila"], ["b/mila=/tmp/current"], {"b/mila": (0, "name")}, ["a/mila"]),
    Case("name is no substring", ["t/arc_e_1"], ["arc_e_10=/tmp/current"], {}, ["t/arc_e_1"]),
    Case("path goes before a name of nobody", ["t/mila"], ["current=data/zoo/t/mila"], {"t/mila": (0, "exact")}),
    Case("path and name are two checkpoints", ["t/mila", "t/nora"], ["mila=data/zoo/t/nora"], {},
         ambiguous={"t/mila": [0], "t/nora": [0]}),
    Case("the same by tail", ["t/mila", "t/nora"], ["mila=/old/t/nora"], {}, ambiguous={"t/mila": [0], "t/nora": [0]}),
    Case("the same by a numbered name", ["q/lora_1", "q/lora_2"], ["lora_1=data/zoo/q/lora_2"], {},
         ambiguous={"q/lora_1": [0], "q/lora_2": [0]}),
    Case("names exchanged", ["t/mila", "t/nora"], ["nora=data/zoo/t/mila", "mila=data/zoo/t/nora"], {},
         ambiguous={"t/mila": [0, 1], "t/nora": [0, 1]}),
    Case("a name that several have, path one of them", ["a/mila", "b/mila"], ["mila=data/zoo/b/mila"],
         {"b/mila": (0, "exact")}, ["a/mila"]),
    Case("a number is no name", ["arc/0", "arc/1"], ["1=data/zoo/arc/0", "0=data/zoo/arc/1"],
         {"arc/0": (0, "exact"), "arc/1": (1, "exact")}),
    Case("name does not bring back a refused path", ["arc/mila", "arc/nora"], ["mila=/o/gsm/mila", "nora=/o/arc/nora"],
         {"arc/nora": (1, "tail")}, ["arc/mila"]),
    # Nothing.
    Case("no deltas", ["arc/x"], [], {}, ["arc/x"]),
    Case("no checkpoints", [], ["/o/arc/x"], {}),
]  # fmt: skip


def make_entry(number, recorded):
    name, _, path = recorded.rpartition("=")
    return DeltaEntry(key=name or f"{number:012x}", name=name, path=path, file=Path(f"{number}.npy"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_table(tmp_path, monkeypatch, case):
    home = f"{tmp_path}/home/me"
    absolute = Path(case.absolute.replace("/home/me", home))
    absolute.mkdir(parents=True)
    monkeypatch.chdir(absolute if case.root == "." else home)
    recorded = [text.replace("/home/me", home) for text in case.recorded]
    entries = [make_entry(number, text) for number, text in enumerate(recorded)]
    result = join_deltas(case.checkpoints, zoo_root=case.root, entries=entries, maps=case.maps)
    found = {path: (entries.index(match.entry), match.matched_by) for path, match in result.matches.items()}
    assert found == case.joined
    assert result.missing == list(case.missing)
    doubts = {doubt.checkpoint: [entries.index(e) for e in doubt.entries] for doubt in result.doubts}
    assert doubts == case.ambiguous


PATHS = st.lists(st.sampled_from(["a", "b", "ab", "adapter", "s0", "x1", "x10"]), min_size=1, max_size=4).map(
    "/".join
)
#: How a zoo may be spelled from the folder it lies in, with {} for that folder.
SPELLINGS = (
    "zoo",
    "{}/zoo",
    "./zoo/",
    "link",
    "{}/link",
    "../home/zoo",
    "{}/there/../zoo",
    "zoo/a/..",
    "{}//link/.",
)
PREFIXES = (
    "",
    "/o/",
    "zoo/",
    "link/",
    "../home/zoo/",
    "{}/zoo/",
    "{}/link/",
    "/old/zoo/",
    "/old/link/",
    "a/",
    "lnk/",
    "zoo/lnk/",
    "link/lnk/",
    "{}/zoo/lnk/",
    "/o/t/",
)
TASKS = st.sampled_from(("", "", "a", "b", "t"))
NAMES = ("", "", "a", "ab", "s0", "a/ab", "7")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a zoo that has a link to one of its folders, and a link to the zoo."""
    home = tmp_path_factory.mktemp("join") / "home"
    for folder in ("zoo/a", "there"):
        (home / folder).mkdir(parents=True)
    (home / "link").symlink_to("zoo")
    (home / "zoo" / "lnk").symlink_to("a")
    return home


@settings(max_examples=600)
@given(
    checkpoints=st.lists(PATHS, unique=True, max_size=8),
    recorded=st.lists(st.tuples(st.sampled_from(PREFIXES), PATHS, st.sampled_from(NAMES), TASKS), max_size=8),
    contents=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    zoo_tasks=st.lists(TASKS, min_size=8, max_size=8),
)
def test_a_join_is_that_of_the_rules_however_the_zoo_is_spelled(
    home, checkpoints, recorded, contents, zoo_tasks
):
    entries = [
        replace(make_entry(number, prefix.format(home) + path), name=name, task=task)
        for number, (prefix, path, name, task) in enumerate(recorded)
    ]
    tasks = {path: task for path, task in zip(checkpoints, zoo_tasks, strict=False) if task}
    content = {entry.key: number for entry, number in zip(entries, contents, strict=False)}

    def load(entry):
        return np.full(1, content[entry.key], np.float32)

    with contextlib.chdir(home):
        expected = slow_join(checkpoints, "zoo", entries, content, tasks)
        for spelling in SPELLINGS:
            root = spelling.format(home)
            joined = join_deltas(checkpoints, zoo_root=root, entries=entries, tasks=tasks, load=load)
            assert outcome(joined) == expected, spelling
        # The order in which either side is listed decides nothing.
        joined = join_deltas(checkpoints[::-1], zoo_root="zoo", entries=entries[::-1], tasks=tasks, load=load)
        turned = outcome(joined)
        assert {path: got[::-1] if isinstance(got, list) else got for path, got in turned.items()} == expected


def test_equal_deltas_are_told_and_others_refused():
    entries = [make_entry(0, "/o1/arc/x"), make_entry(1, "/o2/arc/x")]
    same = join_deltas(["arc/x"], zoo_root="zoo", entries=entries, load=lambda _: np.ones(2, np.float32))
    assert same.matches["arc/x"].entry == entries[0]
    assert re.search("2 equal deltas.*/o1/arc/x.*/o2/arc/x.*0 is taken", same.matches["arc/x"].note)
    other = iter([np.zeros(2, np.float32), -np.zeros(2, np.float32)])
    (doubt,) = join_deltas(["arc/x"], zoo_root="zoo", entries=entries, load=lambda _: next(other)).doubts
    assert "/o1/arc/x) or " in str(doubt)


def test_what_contradicts_itself_says_so():
    entries = [make_entry(0, "lora_a=/zoo/q/lora_b")]
    doubts = join_deltas(["q/lora_a", "q/lora_b"], zoo_root="/zoo", entries=entries).doubts
    assert len(doubts) == 2
    for doubt in doubts:
        assert doubt.why == "its path is q/lora_b's, its name q/lora_a's"


@pytest.mark.parametrize(
    ("checkpoint", "recorded", "task", "tasks", "said"),
    [
        ("arc/foo", "/m/boolq/foo", "", {}, "last folder alone"),
        ("arc/foo", "/m/boolq/foo", "arc", {}, "last folder alone"),
        ("arc/foo", "/m/boolq/foo", "boolq", {}, "refused"),
        ("arc/foo", "/m/boolq/foo", "boolq", {"arc/foo": "boolq"}, "last folder alone"),
        ("foo", "/m/boolq/foo", "boolq", {"foo": "arc"}, "refused"),
        ("foo", "/m/boolq/foo", "boolq", {}, "last folder alone"),
        ("arc/foo/adapter", "/m/boolq/foo", "boolq", {}, "refused"),
        ("arc/foo", "/m/arc/foo", "boolq", {}, ""),
        ("arc/foo", "foo", "boolq", {}, "refused"),
        ("arc/foo", "foo", "", {}, ""),
        # Folders that any adapter may have name none, however many they are.
        (
            "arc/foo/checkpoint-300",
            "/m/boolq/foo/checkpoint-300",
            "",
            {},
            "last folders alone (foo/checkpoint-300)",
        ),
        ("arc/foo/checkpoint-300", "/m/boolq/foo/checkpoint-300", "arc", {}, "last folders alone"),
        ("arc/foo/checkpoint-300", "/m/boolq/foo/checkpoint-300", "boolq", {}, "refused"),
        ("arc/foo/run2/final", "/m/boolq/foo/run2/final", "", {}, "last folders alone (foo/run2/final)"),
        ("arc/foo/final", "/m/boolq/foo/final", "", {}, "last folders alone"),
        ("arc/foo/final", "/m/boolq/foo/final", "boolq", {}, "refused"),
        ("arc/foo/final/adapter", "/m/boolq/foo/final", "", {}, "last folders alone (foo/final)"),
        # A moved zoo.
        ("foo/checkpoint-300", "/m/foo/checkpoint-300", "boolq", {}, ""),
        ("arc/checkpoint-300", "/m/arc/checkpoint-300", "boolq", {}, ""),
        ("arc/foo/final", "/m/arc/foo/final", "boolq", {}, ""),
        ("arc/foo/final", "/m/arc/foo/final", "boolq", {"arc/foo/final": "gsm"}, ""),
        # Two folders that name adapters.
        ("arc/foo/bar", "/m/boolq/foo/bar", "", {}, ""),
        ("arc/foo/bar", "/m/boolq/foo/bar", "foo", {}, ""),
        ("arc/foo/bar", "/m/boolq/foo/bar", "boolq", {}, "refused"),
        ("arc/foo/bar", "/m/boolq/foo/bar", "boolq", {"arc/foo/bar": "boolq"}, ""),
        ("v/arc/foo", "/m/arc/foo", "arc", {}, ""),
        ("v/arc/foo", "/m/arc/foo", "boolq", {"v/arc/foo": "arc"}, ""),
        # By name.
        ("arc/foo", "foo=/m/boolq/xyz", "", {}, ""),
        ("arc/foo", "foo=/m/boolq/xyz", "arc", {}, ""),
        ("arc/foo", "foo=/m/boolq/xyz", "boolq", {}, "refused"),
        ("arc/foo", "foo=/m/boolq/xyz", "boolq", {"arc/foo": "boolq"}, ""),
        ("arc/foo", "arc/foo=/m/boolq/xyz", "boolq", {}, ""),
        # The cache's word on the task counts for nothing against the path.
        ("arc/foo", "/zoo/arc/foo", "boolq", {}, ""),
        ("arc/foo", "arc/foo", "boolq", {"arc/foo": "arc"}, ""),
    ],
)
def test_a_join_of_less_than_the_whole_path(checkpoint, recorded, task, tasks, said):
    entry = replace(make_entry(0, recorded), task=task)
    recorded = entry.path
    result = join_deltas([checkpoint], zoo_root="/zoo", entries=[entry], tasks=tasks)
    if said == "refused":
        assert re.fullmatch("joined by .+, and the cache calls its task 'boolq'", result.doubts[0].why)
    else:
        note = result.matches[checkpoint].note
        assert (said in note and recorded in note) if said else note == ""


def test_a_join_without_a_zoo_knows_no_task():
    for checkpoint, recorded in (("arc/foo/bar", "/m/boolq/foo/bar"), ("arc/foo", "foo=/m/boolq/xyz")):
        entry = replace(make_entry(0, recorded), task="boolq")
        assert join_deltas([checkpoint], zoo_root="/zoo", entries=[entry]).matches


def test_of_equal_deltas_the_one_without_doubt_is_taken():
    other = replace(make_entry(0, "/m/boolq/foo/bar"), task="boolq")
    sure = replace(make_entry(1, "/m/gsm/foo/bar"), task="arc")
    result = join_deltas(
        ["arc/foo/bar"],
        zoo_root="/zoo",
        entries=[other, sure],
        tasks={},
        load=lambda _: np.ones(2, np.float32),
    )
    assert result.matches["arc/foo/bar"].entry == sure


@pytest.mark.parametrize("root", ["zoo", "link", "{}/zoo", "{}/link"])
@pytest.mark.parametrize(
    ("recorded", "rule"),
    [("zoo/lnk/mila", "exact"), ("{}/zoo/lnk/mila", "exact"), ("link/lnk/mila", "exact"),
     ("{}/link/lnk/mila", "exact"), ("there/mila", "exact"), ("lnk/mila", "relative"), ("lnk/mila/adapter", "tail")],
)  # fmt: skip
def test_a_link_inside_the_zoo_is_where_it_leads(tmp_path, monkeypatch, root, recorded, rule):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo" / "t").mkdir(parents=True)
    for link, place in (("link", "zoo"), ("zoo/lnk", "t"), ("there", "zoo/lnk")):
        (tmp_path / link).symlink_to(place)
    entries = [make_entry(0, recorded.format(tmp_path)), make_entry(1, "zoo/t/mila")]
    root = root.format(tmp_path)
    alone = join_deltas(["q/mila", "t/mila"], zoo_root=root, entries=entries[:1])
    assert outcome(alone) == {"t/mila": (entries[0].key, rule, False), "q/mila": None}
    both = join_deltas(
        ["q/mila", "t/mila"], zoo_root=root, entries=entries, load=lambda e: np.float32([int(e.key)])
    )
    assert outcome(both) == {"t/mila": [entry.key for entry in entries], "q/mila": None}


@pytest.mark.timeout(120)  # by pairs it would take longer than anybody waits
@pytest.mark.parametrize("leaf", ["n{0}", "final", "adapter"])
def test_large_zoos_are_joined_in_linear_time(leaf):
    # Every last folder equal, and none of the cache's tasks in the zoo: the worst case of comparing pairs.
    count = 20_000
    checkpoints = [f"t{number % 50}/n{number}/{leaf.format(number)}" for number in range(count)]
    entries = [make_entry(n, f"/old/zoo/u{n % 50}/k{n}/{leaf.format(n)}") for n in range(count)]
    join_deltas(checkpoints, zoo_root="zoo", entries=entries)


def test_a_checkpoint_that_is_one_file_joins_a_path_that_names_the_file() -> None:
    entries = [
        DeltaEntry(key="a", name="", path="/old/zoo/ARC-c/3.safetensors", file=Path("a.npy")),
        DeltaEntry(key="b", name="", path="/old/zoo/ARC-c/4.safetensors", file=Path("b.npy")),
    ]
    result = join_deltas(["ARC-c/3", "ARC-c/4"], zoo_root="/new/zoo", entries=entries)
    assert {path: match.entry.key for path, match in result.matches.items()} == {
        "ARC-c/3": "a",
        "ARC-c/4": "b",
    }
