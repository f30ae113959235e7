"""What must not leave this machine: credentials, and where its folders lie."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

REDACTED = "[redacted]"

SHORTEST_SECRET = 6
"""Characters. A shorter value of a token variable is no credential, and replacing it would garble the text."""

_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_ID_TOKEN")

_remembered: set[str] = set()

_CREDENTIALS = re.compile(
    r"""
      \b(?:hf|api_org)_[A-Za-z0-9]{20,}            # the Hub's user and organisation tokens
    | \bhf_(?:oauth|jwt)_[\w.\-]{20,}              # and its short-lived ones
    | (?<=Bearer\ )[^\s"',]+                       # any Authorization header
    | (?<=://)[^/\s:@]+:[^/\s@]+(?=@)              # user:password in an address
    | (?<=X-Amz-Signature=)[^&\s"']+               # signed upload addresses
    | (?<=X-Amz-Credential=)[^&\s"']+
    | (?<=X-Amz-Security-Token=)[^&\s"']+
    """,
    re.VERBOSE | re.IGNORECASE,
)

# An absolute path inside a sentence or a command: at least two steps deep, so that "and/or", "</s>" and URLs stay.
_PATH_IN_TEXT = re.compile(r"""(?<![\w.:/<\\])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'"`,;:()\[\]{}<>|]+){2,}[/\\]?""")
_WHOLE_PATH = re.compile(r"(?:~?/|~?\\|[A-Za-z]:[/\\]|file://)[^\n]+")


def remember_secret(secret: str) -> None:
    """Count ``secret``, a key that this process has read, among :func:`known_secrets`."""
    _remembered.add(secret)


def known_secrets() -> list[str]:
    """The credentials this process knows: those remembered, and the Hub's.

    The Hub's are the token variables and the file that ``hf auth login`` writes.
    """
    from huggingface_hub import constants

    found = [*_remembered, *(os.environ.get(name, "") for name in _TOKEN_VARIABLES)]
    try:
        found.append(Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        pass
    return [secret.strip() for secret in found if len(secret.strip()) >= SHORTEST_SECRET]


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without credentials: those in ``secrets``, those this machine holds, and whatever looks like one."""
    for secret in sorted({*secrets, *known_secrets()}, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, REDACTED)
    return _CREDENTIALS.sub(REDACTED, text)


def scrub_paths(text: str) -> str:
    """``text`` with absolute paths reduced to the name of the file or folder; relative paths and URLs stay."""
    if _WHOLE_PATH.fullmatch(text) and " /" not in text:  # " /": a sentence that begins with a path
        return _last_name(text)
    return _PATH_IN_TEXT.sub(lambda match: _last_name(match.group()), text)


def scrub(value: Any) -> Any:
    """A copy of a JSON-like value, fit for publishing: each string and key redacted and its paths scrubbed."""
    if isinstance(value, dict):
        scrubbed: dict[Any, Any] = {}
        for key, item in value.items():
            name = new_name = scrub(key)
            count = 1
            while new_name in scrubbed:  # two paths may end in the same name: lose neither's value
                count += 1
                new_name = f"{name} ({count})"
            scrubbed[new_name] = scrub(item)
        return scrubbed
    if isinstance(value, list | tuple):
        return [scrub(item) for item in value]
    return scrub_paths(redact(value)) if isinstance(value, str) else value


def _last_name(path: str) -> str:
    pure = PureWindowsPath(path) if "\\" in path else PurePosixPath(path)
    return pure.name or path
