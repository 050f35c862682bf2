"""Runs a target on one input, and tells a refusal from a finding."""

from __future__ import annotations

import pickle
import resource

from fuzz.targets import Target

#: Longest message of an error: what it quotes of the input is cut.
MOST_WORDS = 2000
#: What an input may cost besides the allowance of its target, in bytes a byte.
_GROWTH_OF_A_BYTE = 1024


class Finding(Exception):
    """A target did something else than to return or to refuse."""


def judge(target: Target, data: bytes) -> bool:
    """Whether the target took the input; False when it refused it in an orderly way.

    Raises:
        Finding: An error whose message has no end, or more memory than the target may take.
        Exception: Whatever else the target raised; that is a finding as well.
    """
    before = _peak()
    taken = _runs(target, data)
    if (grown := _peak() - before) > target.growth + _GROWTH_OF_A_BYTE * len(data):
        raise Finding(f"{grown >> 20} MiB more memory for {len(data)} bytes of input")
    return taken


def _runs(target: Target, data: bytes) -> bool:
    from llgbm_shards.errors import LlgbmError

    try:
        target.run(data)
    except LlgbmError as error:
        if len(str(error)) > MOST_WORDS:
            raise Finding(f"a message of {len(str(error))} characters") from error
        if str(pickle.loads(pickle.dumps(error))) != str(error):
            raise Finding("an error that does not travel between processes") from error
        return False
    return True


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
