"""Inputs that once were findings, by target; small ones, so that each shows what it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

_DIGITS: Final = b"1" + b"0" * 400
_SHARD: Final = (
    b'{"name": "train-000000.tar", "split": "train", "plan": "THE-PLAN", "size": 0, "digest": "", "rows": [], '
    b'"skipped": [], "notes": [], "matched_by": {}, "fallbacks": 0, '
)

REGRESSIONS: Final[Mapping[str, Sequence[bytes]]] = {
    # numpy's own reader evaluates the header, and a tokenizer ends in an error of its own.
    "npy": [b"\x93NUMPY\x01\x00\x34\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3"],
    "delta": [b"\x93NUMPY\x01\x00\x34\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3"],
    # A value that cannot be looked up in a set.
    "adapter config": [b'{"peft_type": "LORA", "bias": [0]}', b'{"peft_type": "LORA", "bias": {}}'],
    # A whole number beyond float64.
    "delta manifest": [b'{"adapters": {"a": {"path": "b", "norm": %s}}}' % _DIGITS],
    "named delta manifest": [
        b'{"adapters": {"a": {"adapter_path": "b", "delta_file": "c", "delta_norm": %s}}}' % _DIGITS
    ],
    # Fields of other types in what a killed build left, a path that cannot be; digits without end in a message.
    "shard record": [
        b'%s"inputs": [{"path": [], "size": 0, "mtime_ns": 0, "digest": ""}]}' % _SHARD,
        b'%s"inputs": [{"path": "\\u0000", "size": 0, "mtime_ns": 0, "digest": ""}]}' % _SHARD,
    ],
    "plan": [
        b'{"options": {}, "shards": {"a": 1}, "tokenizer": {}}',
        b'{"options": {}, "shards": {"a": [[]]}, "tokenizer": {}}',
    ],
    "lock": [b'{"host": "h", "pid": 1%s}' % (b"0" * 3000)],
    "zoo manifest": [
        b'[{"path": "/old/zoo/alpha/run_000", "task": "a"}, {"path": "/old/zoo/alpha/run_000", "task": "%s"}]'
        % (b"b" * 5000)
    ],
    "skipped list": [b'{"skipped": [{"checkpoint": 1}]}'],
    "loader's state": [
        b'{"version": 1, "sets": ["%s"], "split": "train", "filters": "", "seed": 0, "shuffle": true, "samples": 12, '
        b'"epoch": 0, "position": 1%s}' % (b"0" * 64, b"0" * 4000)
    ],
    # Every letter may begin a scheme, and each was looked at to the end.
    "credentials": [b"a" * 300_000 + b" :/", b"ab:/" * 100_000],
}
