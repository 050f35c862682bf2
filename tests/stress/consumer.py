"""A training loop that keeps some of its batches, under a watchdog: python -m stress.consumer SET KEEP BATCHES ..."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Callable
from typing import Any

from llgbm_loader import StreamingLoader

Kept = list[dict[str, Any]]
#: No batch for so long is a hang.
WATCHDOG_S = 60


def _none(kept: Kept, index: int) -> None:
    kept.clear()


def _last_two(kept: Kept, index: int) -> None:
    del kept[:-2]


def _every_fourth(kept: Kept, index: int) -> None:
    if index % 4:
        kept.pop()


def _all(kept: Kept, index: int) -> None:
    pass


KEEPING: dict[str, Callable[[Kept, int], None]] = {
    "none": _none,
    "last-two": _last_two,
    "every-fourth": _every_fourth,
    "all": _all,
}


def epochs(loader: StreamingLoader, keep: Callable[[Kept, int], None], batches: int) -> None:
    """Take this many batches, epoch after epoch; what is kept goes with its epoch."""
    taken = 0
    while taken < batches:
        kept: Kept = []
        for index, batch in enumerate(loader):
            faulthandler.dump_traceback_later(WATCHDOG_S, exit=True)
            kept.append(batch)
            del batch
            keep(kept, index)
            taken += 1


def main() -> None:
    """Run by the arguments."""
    path, keep, batches, readers, prefetch, batch_size, interval = sys.argv[1:]
    sys.setswitchinterval(float(interval))
    loader = StreamingLoader(
        path, batch_size=int(batch_size), readers=int(readers), prefetch_batches=int(prefetch)
    )
    epochs(loader, KEEPING[keep], int(batches))


if __name__ == "__main__":
    main()
