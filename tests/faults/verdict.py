"""How each faulty writer is caught: by the order of its calls, by a kill, or by a call that fails."""

from __future__ import annotations

from pathlib import Path

from faults.campaigns import kills, write_errors
from faults.crash import Harness, Outcome
from faults.trace import TEMPORARY
from support.fork_server import ForkServer


def caught_by(root: Path, server: ForkServer, mutant: str) -> dict[str, list[str]]:
    """Means -> what it has to say against a faulty writer. ("" is the writer as it is: nothing is said.)"""
    harness = Harness(root, server, mutant=mutant)
    points = harness.points()
    # Where the faults show: at the writes of a shard, and around the commit record and what comes after it.
    shard = [
        point for point in points if "train-000001.tar" in point.text and point.name in ("writev", "close")
    ]
    commit = [point for point in points if "shardset.json" in point.text and point.name == "rename"]
    around = [points[points.index(point) + 1] for point in commit]
    syncs = [point for point in points if point.name == "fsync" and f"{TEMPORARY}train" in point.text]
    said = {
        "order": harness.ordering(),
        "kill": [said for outcome in kills(harness, [*shard, *commit, *around]) for said in outcome.problems],
        "failure": [said for outcome in write_errors(harness, syncs) for said in outcome.problems],
    }
    return {means: problems for means, problems in said.items() if problems}


def mutant_outcome(root: Path, server: ForkServer, mutant: str) -> Outcome:
    """The verdict on one faulty writer, as a row of the table."""
    caught = caught_by(root, server, mutant)
    problems = [] if caught else ["not caught"]
    return Outcome(mutant, 0, problems, end=f"caught by {' and '.join(caught) or 'nothing'}")
