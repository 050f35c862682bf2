"""Which members of a sample the fields of a batch need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: The member that each field of a batch needs; tokens need the scales too, see :func:`needed_members`.
MEMBER: Final = {"tokens": "body", "scales": "scales", "condition": "texts", "delta": "delta"}


def needed_members(fields: Sequence[str]) -> tuple[str, ...]:
    """Members to read for these fields, in tar order: scales make the frame and mark pieces of zero std."""
    members = {MEMBER[field] for field in fields}
    if "tokens" in fields:
        members.add("scales")
    return tuple(member for member in MEMBER.values() if member in members)
