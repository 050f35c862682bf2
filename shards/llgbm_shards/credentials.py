"""Take the secrets out of URLs: people put tokens there, and messages and committed files are handed around."""

from __future__ import annotations

import re
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
