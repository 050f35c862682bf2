"""What a check found, as values; rendering is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

LEVELS: Final = ("quick", "full", "deep")
Kind = Literal["damage", "unreadable", "transient"]


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Finding:
    """One problem of a set, placed as narrowly as it is known.

    Attributes:
        shard: File of the set it concerns.
        key: Key of the sample, empty when the finding is not about one sample.
        member: Suffix of the member (``pieces.safetensors``), empty when it is not about one.
        what: The problem, with what was expected and found.
        kind: ``damage``: the bytes are wrong. ``unreadable``: they could not be read, so nothing is known.
            ``transient``: a read failed or gave wrong bytes once, and then gave the right ones: the set is sound,
            the storage under it may not be.
    """

    shard: str
    key: str = ""
    member: str = ""
    what: str
    kind: Kind = "damage"

    def to_json(self) -> dict[str, str]:
        """The finding as a row of ``--format json``."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """Result of a check.

    Attributes:
        path: The set, as the user named it.
        level: ``quick``, ``full`` or ``deep``.
        digest: Digest of the commit record; empty when that is damaged.
        base: Of an overlay: digest of the set it was made of; else empty.
        samples: Samples the record promises.
        shards: Shards the record promises.
        sample: Fraction of the samples that was asked to be read; 1 reads all.
        seed: Which samples that fraction is.
        samples_read: Samples whose bytes were read.
        bytes_read: Bytes of shards that were read.
        seconds: Wall time.
        findings: All that was found, ordered by shard, key and member.
    """

    path: str
    level: str
    digest: str
    base: str
    samples: int
    shards: int
    sample: float
    seed: int
    samples_read: int
    bytes_read: int
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """All that was looked at is as it was written; transient read failures do not count against it."""
        return all(finding.kind == "transient" for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """0 sound, 1 damage, 3 something could not be read (and no damage is known)."""
        kinds = {finding.kind for finding in self.findings}
        if "damage" in kinds:
            return 1
        return 3 if "unreadable" in kinds else 0

    def to_json(self) -> dict[str, Any]:
        """The report as ``--format json`` prints it."""
        names = [name for name in self.__slots__ if name != "findings"]
        fields: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {**fields, "sound": self.sound, "findings": [finding.to_json() for finding in self.findings]}
