"""StreamingLoader against webdataset, litdata, megatron-energon and mosaicml-streaming: same bytes, warm, on the CPU.

Run with ``python tests/bench/bench_peers.py [DIRECTORY]``; writes its section of RESULTS.md. Each side runs in a
process and an environment of its own (peers/environments.py), on its own format of the same samples; the digest of
every sample is compared before anything is timed. Rounds go through all sides in turn.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_build import make_zoo

from llgbm_loader import StreamingLoader
from llgbm_pack import PackOptions, build

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
from environments import InstallError, interpreter  # noqa: E402

SIDES = {
    "llgbm-pack": "side_ours.py",
    "webdataset": "side_webdataset.py",
    "litdata": "side_litdata.py",
    "megatron-energon": "side_energon.py",
    "mosaicml-streaming": "side_mosaicml.py",
}
ANSWER_S = 120
HEADING = "## Peers"
METHOD = """
{samples} samples of {nbytes:.1f} MB (the bfloat16 body of a 1.5B rank-16 adapter, and its scales), batches of {batch} on
the CPU, warm page cache, median and spread of {rounds} rounds that go through all rows in turn; one epoch is timed from
`iter()` to its end, and every page of every batch is touched. Each side reads its own format, written by its own
writer from the same samples, about {batch} samples a shard, and runs in a process of its own; before timing, the digest
of each sample it gives is compared.

- To the peers' advantage: they read in order (the loader shuffles fully), members are raw bytes that are decoded
  without a copy, batches are collated in the workers, and workers stay alive between epochs.
- None of the peers verifies what it reads here: webdataset, litdata and megatron-energon have no digests of samples,
  mosaicml-streaming can check a shard only when it downloads one. `verify full` therefore does more than they do.
- litdata may map local chunks into memory; the others read them with `read`.
"""


@dataclass
class Row:
    """A way of loading and what was measured of it."""

    package: str
    side: str
    samples_s: list[float] = field(default_factory=list)
    gb_s: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def median(self) -> float:
        """Samples a second; 0 for a row that failed."""
        return statistics.median(self.samples_s) if self.samples_s and not self.error else 0.0


class Peer:
    """The process of a side; ``reason`` says why it is not there."""

    def __init__(self, package: str, root: Path) -> None:
        self.package, self.reason, self.version = package, "", ""
        self.rows: list[Row] = []
        self._log = (root / f"{package}.log").open("wb")
        try:
            python = interpreter(package)
        except InstallError as error:
            self.reason = f"not installed: {error}"
            return
        command = [python, HERE / "peers" / SIDES[package], root / "samples", root / package, root / "set"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True
        )
        answer = self._answer()
        self.version = answer.get("version", "")
        self.reason = answer.get("error", "")
        self.rows = [Row(package, side) for side in answer.get("sides", ())]

    def run(self, row: Row, *, check: bool) -> dict[str, Any]:
        """One epoch."""
        if self._process.poll() is not None:
            return {"error": "the process has ended"}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"side": row.side, "check": check}).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        out = self._process.stdout
        assert out is not None
        ready = bool(select.select([out], [], [], ANSWER_S)[0])
        line = out.readline() if ready else b""
        if line:
            return dict(json.loads(line))
        self.close()
        last = Path(self._log.name).read_text(errors="replace").strip().splitlines()[-1:]
        return {"error": f"{'ended' if ready else f'no answer in {ANSWER_S} s'}: {' '.join(last)[-200:]}"}

    def close(self) -> None:
        """End the process; what it started ends with it."""
        if hasattr(self, "_process"):
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, 9)
                self._process.wait()


def make_samples(root: Path, count: int) -> list[str]:
    """Pack adapters into ``root/set``, lay the same bodies and scales out in ``root/samples``; their digests."""
    make_zoo(root / "zoo", count)
    build(PackOptions(zoo=root / "zoo", out=root / "set", shard_bytes=160 << 20))
    (root / "samples").mkdir()
    fields = ("tokens", "scales")
    loader = StreamingLoader(
        str(root / "set"), batch_size=1, shuffle=False, frame="none", dtype=None, fields=fields
    )
    digests = []
    for number, batch in enumerate(loader):
        body, scales = batch["tokens"][0].view(torch.int16).numpy(), batch["scales"][0].numpy()
        np.save(root / "samples" / f"{number:06d}.body.npy", body)
        np.save(root / "samples" / f"{number:06d}.scales.npy", scales)
        digest = hashlib.blake2b(body, digest_size=8)
        digest.update(scales)
        digests.append(digest.hexdigest())
    return sorted(digests)


def measure(peer: Peer, row: Row, digests: list[str], *, check: bool) -> int:
    """One epoch into ``row``; the bytes of all samples."""
    answer = {"error": row.error} if row.error else peer.run(row, check=check)
    if "error" in answer:
        row.error = answer["error"]
        return 0
    if answer["samples"] != len(digests) or (check and answer["digests"] != digests):
        row.error = f"gave {answer['samples']} of {len(digests)} samples, or not their bytes"
    elif not check:
        row.samples_s.append(answer["samples"] / answer["seconds"])
        row.gb_s.append(answer["nbytes"] / answer["seconds"] / 1e9)
    return int(answer["nbytes"])


def table(peers: list[Peer]) -> list[str]:
    """Markdown rows; ratios are to the best row of each peer."""
    lines = ["| loader | | samples/s | min-max | GB/s | min-max |", "|---|---|---:|---:|---:|---:|"]
    for peer in peers:
        name = f"{peer.package} {peer.version}".strip()
        if peer.reason:
            lines.append(f"| {name} | | {peer.reason} | | | |")
        for row in peer.rows:
            if row.error:
                figures = f"failed: {row.error} | | | "
            else:
                figures = (
                    f"{row.median:.1f} | {min(row.samples_s):.1f}-{max(row.samples_s):.1f} | "
                    f"{statistics.median(row.gb_s):.2f} | {min(row.gb_s):.2f}-{max(row.gb_s):.2f}"
                )
            lines.append(f"| {name} | {row.side} | {figures} |")
    ours = {row.side: row.median for row in peers[0].rows}
    lines += ["", "| StreamingLoader / best row of | verify off | verify full |", "|---|---:|---:|"]
    for peer in peers[1:]:
        best = max((row.median for row in peer.rows), default=0.0)
        if best:
            ratios = [f"{ours.get(f'verify {how}', 0.0) / best:.1f}x" for how in ("off", "full")]
            lines.append(f"| {peer.package} | {ratios[0]} | {ratios[1]} |")
    return lines


def write_section(path: Path, text: str) -> None:
    """Put ``text`` in the place of its section, leaving the others."""
    old = path.read_text() if path.exists() else "# Measured\n"
    before, _, rest = old.partition(f"{HEADING}\n")
    after = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
    path.write_text(f"{before.rstrip()}\n\n{HEADING}\n{text.rstrip()}\n" + (f"\n{after}" if after else ""))


def machine() -> str:
    """What it ran on, in words that fit any machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    day = datetime.datetime.now(datetime.UTC).date()
    return (
        f"{day}, {os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB of memory, "
        f"Python {platform.python_version()}, torch {torch.__version__}."
    )


def run(root: Path, args: argparse.Namespace) -> str:
    """All rounds; the text of the section."""
    digests = make_samples(root, args.samples)
    peers = [Peer(package, root) for package in SIDES]
    size = 0
    try:
        for number in range(args.rounds + 1):
            for peer in peers:
                for row in peer.rows:
                    size = measure(peer, row, digests, check=number == 0) or size
    finally:
        for peer in peers:
            peer.close()
    method = METHOD.format(
        samples=args.samples, nbytes=size / args.samples / 1e6, batch=4, rounds=args.rounds
    )
    return "\n".join(["", machine(), method, *table(peers)])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", help="where to work; needs 7 times 38 MB a sample")
    parser.add_argument(
        "--samples", type=int, default=24, help="a multiple of 8, for whole batches on 2 workers"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=HERE / "RESULTS.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        text = run(Path(name), args)
    print(text)
    write_section(args.results, text)


if __name__ == "__main__":
    main()
