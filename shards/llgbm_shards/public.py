"""What may be told outside: messages and committed files are handed around, so no secrets of URLs, no private paths."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Final

#: ``scheme://``, then what stands before an ``@`` in the place of the host. A URL that went through a Path has one slash;
#: a single letter is the drive of a Windows path. Of a long scheme its end will do: a search from each of its letters to
#: its end would take for ever.
_SCHEME: Final = r"[A-Za-z][A-Za-z0-9+.-]{1,30}:/{1,2}"
_USER: Final = re.compile(rf"({_SCHEME})[^/?#\s]*@")
#: The rest of a word from a URL on, up to its query or fragment, then these: a presigned URL carries its signature there.
_QUERY: Final = re.compile(rf"({_SCHEME}[^?#\s'\"]*)(?:[?#][^\s'\"]*)?")


def without_credentials(text: str) -> str:
    """``https://me:token@host/a?sig=b`` becomes ``https://host/a``; text without URLs stays as it is."""
    if ":/" not in text:
        return text
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))


def public_name(value: object) -> str:
    """A base model's name fit for a committed file.

    A hub name stays (``Qwen/Qwen2.5-1.5B``), a place in a hub cache becomes the hub name, of any other path
    only the last component is kept.
    """
    if not isinstance(value, str) or not value:
        return ""
    value = without_credentials(value)
    path = PureWindowsPath(value) if "\\" in value else PurePosixPath(value)
    parts = path.parts
    cached = [part for part in parts if part.startswith("models--")]
    if cached:
        return cached[-1].removeprefix("models--").replace("--", "/", 1)
    if len(parts) == 2 and value == "/".join(parts) and not re.match(r"\.\.$|~|.*:$", parts[0]):
        return value
    return "" if path.name.startswith(("..", "~")) else path.name
