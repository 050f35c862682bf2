"""Find the samples of a shard without an index: each json member names the members before it and their digests.

Damage does not stop the search: after a damaged header it goes on, block by block, to the next sound one. Nothing
found here is proven until the shard's digest, which the commit record holds, agrees.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any, Final

from llgbm_shards import ustar
from llgbm_shards.canonical import load_json
from llgbm_shards.errors import DamageError, HeaderError
from llgbm_shards.extents import MemberExtent
from llgbm_shards.findings import Finding
from llgbm_shards.members import KEY, SUFFIX
from llgbm_shards.sample import MAX_JSON_BYTES
from llgbm_shards.storage import read_range

_FIELD: Final = {suffix: name for name, suffix in SUFFIX.items()}
_JSON: Final = f".{SUFFIX['json']}"


@dataclass(slots=True)
class Recovered:
    """What a shard says of itself."""

    #: Members of each sample; the json member has no digest to be judged by, and none has an xxh3.
    samples: list[list[MemberExtent]] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)  # the parsed json of each of these samples
    findings: list[Finding] = field(default_factory=list)  # stretches that belong to no readable sample


def recover_samples(fd: int, shard: str, *, limit: int = sys.maxsize) -> Recovered:
    """List the samples of an open shard, of its first ``limit`` bytes: a file may be endless, or a hole of terabytes."""
    recovered = Recovered()
    size = min(os.fstat(fd).st_size, limit)
    offset = covered = 0
    strays: list[str] = []
    while offset + ustar.BLOCK <= size:
        member = _header_at(fd, offset, shard)
        if member is None or member.end > size:
            offset += ustar.BLOCK
            continue
        strays.append(member.name)
        if member.name.endswith(_JSON) and (sample := _sample(fd, member, shard, recovered)) is not None:
            start = sample[0].offset - ustar.BLOCK
            others = [name for name in strays if not name.startswith(f"{sample[0].key}.")]
            _gap(recovered, shard, covered, start, others)
            covered, strays = member.end, []
        offset = member.end
    _gap(recovered, shard, covered, max(covered, size - len(ustar.END)), strays)
    return recovered


def _header_at(fd: int, offset: int, shard: str) -> ustar.Member | None:
    try:
        return ustar.parse(read_range(fd, offset, ustar.BLOCK), offset, shard)
    except DamageError:
        return None


def _sample(fd: int, member: ustar.Member, shard: str, recovered: Recovered) -> list[MemberExtent] | None:
    """The members that a json member names; None when it is not a json of this format."""
    key = member.name.removesuffix(_JSON)
    if member.size > MAX_JSON_BYTES or not KEY.fullmatch(key):
        return None
    data = read_range(fd, member.data_offset, member.size)
    try:
        info = load_json(data, where=member.name, max_bytes=MAX_JSON_BYTES)
        rows = [(_FIELD[row["name"]], row["size"], row["digest"]) for row in info["members"]]
    except (HeaderError, KeyError, TypeError):
        return None
    if not all(_is_size(size) and isinstance(digest, str) and len(digest) == 64 for _, size, digest in rows):
        return None
    offset = member.header_offset - sum(ustar.BLOCK + ustar.padded(size) for _, size, _ in rows)
    if offset < 0:
        return None
    extents = []
    for name, size, digest in [*rows, ("json", member.size, "")]:
        extents.append(MemberExtent(shard, key, name, offset + ustar.BLOCK, size, digest, 0))
        offset = extents[-1].end
    recovered.samples.append(extents)
    recovered.infos.append(info)
    return extents


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= ustar.MAX_MEMBER_BYTES


def _gap(recovered: Recovered, shard: str, start: int, end: int, strays: list[str]) -> None:
    if start < end:
        keys = list(dict.fromkeys(name.partition(".")[0] for name in strays)) or [""]
        what = f"bytes {start} to {end} belong to no readable sample: the json that would tell is damaged or missing"
        recovered.findings += [Finding(shard=shard, key=key, what=what) for key in keys]
