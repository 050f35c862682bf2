"""One target under atheris, in a process of its own: ``python -m fuzz.engine TARGET FOUND [option ...]``.

FOUND is a directory for inputs that fail, the options are libFuzzer's.
."""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import atheris

with atheris.instrument_imports(include=["llgbm_shards", "llgbm_pack", "llgbm_loader"]):
    # What targets import when they run, which is outside of this block.
    for module in (
        "llgbm_shards.deep",
        "llgbm_shards.recover",
        "llgbm_loader.state",
        "llgbm_pack.sources.adapter",
        "llgbm_pack.deltas.manifest",
        "llgbm_pack.sources.texts",
        "llgbm_pack.sources.tasks",
        "llgbm_pack.packing.lock",
        "llgbm_pack.packing.unfinished",
        "llgbm_pack.upkeep.repair_files",
    ):
        import_module(module)
    from fuzz.judge import judge
    from fuzz.mutate import mutate_json
    from fuzz.targets import TARGETS, Target

_FOUND, _BROKEN = 77, 70


class _Fuzz:
    """One target for atheris; the first finding is written to a file and ends the process.

    Not by an exception: while that ends a process with other threads in it, it may hang.
    """

    def __init__(self, target: Target, found: Path) -> None:
        self._target = target
        self._found = found

    def run(self, data: bytes) -> None:
        """Judge one input."""
        data = bytes(data)
        try:
            judge(self._target, data)
        except Exception:  # noqa: BLE001
            (self._found / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
            self._end(_FOUND)

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """JSON is mostly changed as JSON, all else as libFuzzer likes."""
        try:
            changed = mutate_json(bytes(data), seed) if self._target.json and seed % 4 else None
        except Exception:  # noqa: BLE001
            self._end(_BROKEN)
        return changed if changed is not None and len(changed) <= max_size else atheris.Mutate(data, max_size)

    def _end(self, code: int) -> NoReturn:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Fuzz until libFuzzer's limit or the first finding."""
    name, found, *options = sys.argv[1:]
    fuzz = _Fuzz(TARGETS[name], Path(found))
    atheris.Setup([sys.argv[0], f"-artifact_prefix={found}/", *options], fuzz.run, custom_mutator=fuzz.mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
