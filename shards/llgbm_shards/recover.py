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
    """What a shard says of itself.

    Attributes:
        samples: Members of each sample; the json member has no digest to be judged by, and none has an xxh3.
        infos: The parsed json of each of these samples.
        findings: Stretches of the shard that belong to no readable sample.
    """

    samples: list[list[MemberExtent]] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def recover_samples(fd: int, shard: str, *, limit: int = sys.maxsize) -> Recovered:
    """List the samples of an open shard.

    Args:
        fd: The open shard; its position is not used.
        shard: Its name.
        limit: Bytes to look at, at most: a file may be endless, or a hole of terabytes.

    Raises:
        OSError: It cannot be read.
    """
    found = Recovered()
    size = min(os.fstat(fd).st_size, limit)
    offset = covered = 0
    strays: list[str] = []
    while offset + ustar.BLOCK <= size:
        member = _header_at(fd, offset, shard)
        if member is None or member.end > size:
            offset += ustar.BLOCK
            continue
        strays.append(member.name)
        if member.name.endswith(_JSON) and (sample := _sample(fd, member, shard, found)) is not None:
            start = sample[0].offset - ustar.BLOCK
            _gap(found, shard, covered, start, [name for name in strays if not _of(name, sample)])
            covered, strays = member.end, []
        offset = member.end
    _gap(found, shard, covered, max(covered, size - len(ustar.END)), strays)
    return found


def _header_at(fd: int, offset: int, shard: str) -> ustar.Member | None:
    try:
        return ustar.parse(read_range(fd, offset, ustar.BLOCK), offset, shard)
    except DamageError:
        return None


def _of(name: str, sample: list[MemberExtent]) -> bool:
    return name.startswith(f"{sample[0].key}.")


def _sample(fd: int, member: ustar.Member, shard: str, found: Recovered) -> list[MemberExtent] | None:
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
        offset += ustar.BLOCK + ustar.padded(size)
    found.samples.append(extents)
    found.infos.append(info)
    return extents


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= ustar.MAX_MEMBER_BYTES


def _gap(found: Recovered, shard: str, start: int, end: int, strays: list[str]) -> None:
    if start < end:
        keys = list(dict.fromkeys(name.partition(".")[0] for name in strays)) or [""]
        what = f"bytes {start} to {end} belong to no readable sample: the json that would tell is damaged or missing"
        found.findings += [Finding(shard=shard, key=key, what=what) for key in keys]
