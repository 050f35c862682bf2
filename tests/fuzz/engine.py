"""One target under atheris, in a process of its own: ``python -m fuzz.engine TARGET [libFuzzer's options]``."""

from __future__ import annotations

import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["llgbm_shards", "llgbm_pack", "llgbm_loader"]):
    # Each is here for a target that imports it only when it runs, outside of this block.
    import llgbm_loader.state
    import llgbm_pack.adapters
    import llgbm_pack.begin
    import llgbm_pack.delta_manifest
    import llgbm_pack.lock
    import llgbm_pack.repair_files
    import llgbm_pack.shard_record
    import llgbm_pack.tasks
    import llgbm_pack.texts
    import llgbm_shards.deep
    import llgbm_shards.recover  # noqa: F401
    from fuzz.judge import judge
    from fuzz.mutate import mutate_json
    from fuzz.targets import TARGETS, Target


def _mutator(target: Target) -> dict[str, Callable[[bytes, int, int], bytes]]:
    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        changed = mutate_json(data, seed) if target.json and seed % 4 else None
        return changed if changed is not None and len(changed) <= max_size else atheris.Mutate(data, max_size)

    return {"custom_mutator": mutate}


def main() -> None:
    """Fuzz until libFuzzer's limit or the first finding, which ends the process with an error."""
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda data: judge(target, bytes(data)), **_mutator(target))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
