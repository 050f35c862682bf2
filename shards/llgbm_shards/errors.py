"""The one error tree of the three packages.

    LlgbmError                 every error raised on purpose
    |- UsageError              the request as a whole cannot be done as asked          exit code 2
    |  `- PlanError            ... because of what was found in the zoo                exit code 2
    |- CheckpointError         one checkpoint cannot be packed; it is skipped, listed  exit code 1
    |- HeaderError             a safetensors or npy header is not what the format allows
    |- RepairError             a file of a set cannot be put back as it was            exit code 1
    |- DamageError             bytes of a shard set are not the bytes that were written  exit code 1
    `- StorageError            the work could not be done: I/O, missing backend        exit code 3
       |- LockedError          another process works on the same output
       `- DiskFullError        no space left; says needed and free

A message says what is wrong, where, what was expected, what was found, and what to do about it.
"""

from __future__ import annotations

from typing import Final, TypeVar

from llgbm_shards.public import without_credentials

T = TypeVar("T", bound="LlgbmError")
#: What to do about damage of a set.
MEND: Final = "Run `llgbm-pack check` for the whole picture and `llgbm-pack repair` to mend it."


class LlgbmError(Exception):
    """Base of all errors of llgbm-pack.

    Args:
        what: What is wrong, in one clause.
        where: File, tensor, key or option it concerns.
        expected: What would have been right.
        got: What was found instead.
        do: What the user can do about it.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: str = "", expected: str = "", got: str = "", do: str = ""
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.expected = expected
        self.got = got
        self.do = do

    def as_(self, kind: type[T], what: str = "", **facts: str) -> T:
        """The same facts as an error of another class; what is given here stands in place of its own."""
        own = {"expected": self.expected, "got": self.got, "do": self.do}
        if not issubclass(kind, DamageError):  # it makes its place of a shard, a key and a member
            own["where"] = self.where
        return kind(what or self.what, **{**own, **facts})

    @property
    def summary(self) -> str:
        """What is wrong, what was expected and what was found; neither where nor what to do."""
        facts = [f"expected {self.expected}" if self.expected else "", f"got {self.got}" if self.got else ""]
        told = ", ".join(fact for fact in facts if fact)
        return f"{self.what}: {told}" if told else self.what

    def __str__(self) -> str:
        text = f"{self.where}: {self.summary}" if self.where else self.summary
        text = without_credentials(f"{text}. {self.do}" if self.do else text)
        # A name of a file may hold bytes that are no UTF-8; a message must not fail where it is printed.
        return text.encode(errors="backslashreplace").decode()

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel from worker processes; BaseException's own pickling drops keyword arguments.
        return (_rebuild, (type(self), self.__dict__.copy(), self.args))


class UsageError(LlgbmError):
    """The request as a whole cannot be done as asked; nothing was written."""

    exit_code = 2


class PlanError(UsageError):
    """What was found in the zoo, the texts or the delta cache does not allow the build that was asked for."""


class CheckpointError(LlgbmError):
    """One checkpoint cannot be packed. The build skips and lists it and goes on."""


class HeaderError(LlgbmError):
    """A safetensors or npy header breaks its format or this project's limits."""


class RepairError(LlgbmError):
    """A file of a set cannot be put back as it was: a source changed, or nothing proves what it was."""


class DamageError(LlgbmError):
    """Bytes of a shard set are not the bytes that were written.

    Args:
        what: What is wrong.
        shard: File name of the shard (or of the set's other file).
        key: Key of the damaged sample, when it is known.
        member: Suffix of the damaged member (``pieces.safetensors``), when it is known.
        expected: What would have been right.
        got: What was found instead.
        do: What the user can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        shard: str = "",
        key: str = "",
        member: str = "",
        expected: str = "",
        got: str = "",
        do: str = "",
    ) -> None:
        where = " ".join(part for part in (shard, f"sample {key}" if key else "", member) if part)
        super().__init__(what, where=where, expected=expected, got=got, do=do)
        self.shard = shard
        self.key = key
        self.member = member

    def at(self, key: str, member: str) -> DamageError:
        """The same damage, met on reading this member of this sample."""
        return self.as_(DamageError, shard=self.shard, key=key, member=member, do=self.do or MEND)


class StorageError(LlgbmError):
    """The work could not be done: I/O failed, a backend is missing, something is unreadable."""

    exit_code = 3


class LockedError(StorageError):
    """Another process is working on the same output."""


class DiskFullError(StorageError):
    """No space is left on the device; partial files were removed, finished shards are kept."""


def _rebuild(kind: type[LlgbmError], fields: dict[str, str], args: tuple[object, ...]) -> LlgbmError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(fields)
    return error
