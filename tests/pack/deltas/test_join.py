"""The table of join cases. A wrong join is the worst outcome: several rows are there to stay unjoined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llgbm_pack.deltas.join import join_deltas
from llgbm_pack.deltas.manifest import DeltaEntry


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


CASES = [
    Case("exact as given", ["arc/x"], ["data/zoo/arc/x"], {"arc/x": (0, "exact")}),
    Case("exact absolute", ["arc/x"], ["/home/me/data/zoo/arc/x"], {"arc/x": (0, "exact")}, root="/home/me/data/zoo"),
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
         {"mila": (0, "tail"), "nora": (1, "tail")}, root="/home/me/arc"),
    Case("a part of a larger zoo, one not measured", ["mila", "nora"], ["/o/gsm/mila", "/o/arc/nora", "/o/gsm/nora"],
         {"nora": (1, "tail")}, ["mila"], root="/home/me/arc"),
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
    Case("an exact path and an old copy", ["arc/x"], ["/o1/arc/x", "data/zoo/arc/x"], {}, ambiguous={"arc/x": [1, 0]}),
    Case("a relative path and an old copy", ["arc/x"], ["/o1/arc/x", "arc/x"], {}, ambiguous={"arc/x": [1, 0]}),
    Case("an exact and a relative path", ["arc/x"], ["data/zoo/arc/x", "arc/x"], {}, ambiguous={"arc/x": [0, 1]}),
    Case("a longer and a shorter tail", ["arc/x"], ["/o1/zoo/arc/x", "/o2/b/arc/x"], {}, ambiguous={"arc/x": [0, 1]}),
    Case("a path and a name", ["t/mila"], ["one=data/zoo/t/mila", "mila=/tmp/current"], {}, ambiguous={"t/mila": [0, 1]}),
    Case("an old copy of a namesake's", ["a/mila", "b/mila"], ["data/zoo/a/mila", "data/zoo/b/mila", "mila"],
         {"a/mila": (0, "exact"), "b/mila": (1, "exact")}),
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
def test_table(case):
    entries = [make_entry(number, text) for number, text in enumerate(case.recorded)]
    result = join_deltas(case.checkpoints, zoo_root=case.root, entries=entries, maps=case.maps)
    found = {path: (entries.index(match.entry), match.matched_by) for path, match in result.matches.items()}
    assert found == case.joined
    assert result.missing == list(case.missing)
    assert {row.path: [entries.index(e) for e in row.entries] for row in result.ambiguous} == case.ambiguous


@pytest.mark.parametrize(
    ("checkpoints", "recorded", "by_name", "by_path"),
    [
        (["p/lora_a", "q/lora_b"], "lora_a=data/zoo/q/lora_b", "p/lora_a", "q/lora_b"),
        (["p/lora_a", "q/lora_b"], "lora_a=/old/zoo/q/lora_b", "p/lora_a", "q/lora_b"),
        (["p/lora_a", "q/lora_b"], "p/lora_a=q/lora_b", "p/lora_a", "q/lora_b"),
    ],
)
@pytest.mark.parametrize("other", [[], ["lora_b=data/zoo/q/lora_b"]])
def test_a_name_and_a_path_of_two_checkpoints_are_told(checkpoints, recorded, by_name, by_path, other):
    entries = [make_entry(number, text) for number, text in enumerate([recorded, *other])]
    result = join_deltas(checkpoints, zoo_root="data/zoo", entries=entries)
    told = [(row.entry.key, row.by_name, row.by_path) for row in result.contradictions]
    candidates = [entry for row in result.ambiguous for entry in row.entries]
    assert told == [(entries[0].key, by_name, by_path)] or entries[0] in candidates


@pytest.mark.parametrize(
    "recorded", ["lora_a=data/zoo/p/lora_a", "p/lora_a=/o/p/lora_a", "any=/o/p/lora_a", "lora_a=/tmp/now"]
)
def test_names_that_agree_with_paths_or_say_nothing_are_no_contradiction(recorded):
    result = join_deltas(["p/lora_a", "q/lora_b"], zoo_root="data/zoo", entries=[make_entry(0, recorded)])
    assert list(result.matches) == ["p/lora_a"]
    assert result.contradictions == []


@pytest.mark.parametrize(
    ("checkpoint", "recorded", "distant"),
    [("arc/foo", "/m/boolq/foo", True), ("foo", "/m/boolq/foo", True), ("arc/foo", "foo", False),
     ("arc/foo", "/m/arc/foo", False), ("arc/foo", "data/zoo/arc/foo", False)],
)  # fmt: skip
def test_a_last_component_alone_is_told(checkpoint, recorded, distant):
    result = join_deltas([checkpoint], zoo_root="data/zoo", entries=[make_entry(0, recorded)])
    assert list(result.matches) == [checkpoint]
    assert result.distant == [checkpoint] * distant


def spellings(root: Path) -> list[str]:
    """Ways to write where a zoo is, from the working directory beside it; the last two follow links."""
    for link, target in (("link", root), ("parents", root.parent)):
        (root.parent / link).symlink_to(target)
    return [
        str(root),
        f"{root}/",
        root.name,
        f"./{root.name}",
        f"../{root.parent.name}/{root.name}",
        "link",
        f"parents/{root.name}",
    ]


FOLDERS = ["zoo", "{here}/zoo", "{here}/link", "link", "/old/place", "/old/zoo", ""]
CHECKPOINTS = ["t/x", "t/y", "u/x", "z", "t/seed_0", "u/z"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    checkpoints=st.lists(st.sampled_from(CHECKPOINTS), min_size=1, unique=True),
    recorded=st.lists(
        st.tuples(st.sampled_from(FOLDERS), st.sampled_from(CHECKPOINTS)), unique=True, max_size=6
    ),
)
def test_the_spelling_of_the_zoo_decides_nothing(spelled, checkpoints, recorded):
    here, roots = spelled
    paths = [f"{folder.format(here=here)}/{path}" if folder else path for folder, path in recorded]
    entries = [make_entry(number, path) for number, path in enumerate(paths)]
    outcomes = [outcome(join_deltas(checkpoints, zoo_root=root, entries=entries)) for root in roots]
    assert outcomes == [outcomes[0]] * len(roots)


def outcome(result):
    return (
        {path: match.entry.key for path, match in result.matches.items()},
        {row.path: sorted(entry.key for entry in row.entries) for row in result.ambiguous},
        result.missing,
        result.distant,
    )


@pytest.fixture
def spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in CHECKPOINTS:
        (tmp_path / "zoo" / path).mkdir(parents=True)
    return tmp_path, spellings(tmp_path / "zoo")


def test_absolute_path_is_found_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entries = [make_entry(0, f"{tmp_path}/zoo/a/x"), make_entry(1, "zoo/a/y")]
    result = join_deltas(["a/x", "a/y"], zoo_root=Path("zoo"), entries=entries)
    assert {path: match.matched_by for path, match in result.matches.items()} == {
        "a/x": "exact",
        "a/y": "exact",
    }


PATHS = st.lists(st.sampled_from(["a", "b", "ab", "adapter", "s0", "x1", "x10"]), min_size=1, max_size=4).map(
    "/".join
)


@settings(max_examples=400)
@given(
    checkpoints=st.lists(PATHS, unique=True, max_size=8),
    recorded=st.lists(
        st.tuples(st.sampled_from(["", "/o/", "zoo/", "/old/zoo/"]), PATHS).map("".join), max_size=8
    ),
)
def test_each_checkpoint_has_one_outcome_and_each_delta_one_owner(checkpoints, recorded):
    entries = [make_entry(number, path) for number, path in enumerate(recorded)]
    result = join_deltas(checkpoints, zoo_root="zoo", entries=entries)
    unclear = [row.path for row in result.ambiguous]
    assert sorted([*result.matches, *result.missing, *unclear]) == sorted(checkpoints)
    owned = [match.entry.key for match in result.matches.values()]
    assert len(owned) == len(set(owned))
    assert not set(owned) & {entry.key for row in result.ambiguous for entry in row.entries}
    for path, match in result.matches.items():
        mine = [part for part in f"zoo/{path}".split("/") if part != "adapter"] or ["adapter"]
        theirs = [part for part in match.entry.path.split("/") if part != "adapter"]
        assert not theirs or mine[-1] == theirs[-1], "the last folder is whole and equal"
    # The order in which either side is listed decides nothing.
    turned = join_deltas(checkpoints[::-1], zoo_root="zoo", entries=entries[::-1])
    assert {p: (m.entry.key, m.matched_by) for p, m in turned.matches.items()} == {
        p: (m.entry.key, m.matched_by) for p, m in result.matches.items()
    }
    assert sorted(turned.missing) == sorted(result.missing)


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
