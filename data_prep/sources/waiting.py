"""What the live sources share: keys, and waiting that the caller can end at any second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from launch.errors import InputError
from launch.scrub import redact, remember_secret

STEP_SECONDS = 1.0
"""A live source gives a sign of life at least this often."""


class Backoff:
    """How long to wait before a request is tried again: exponential with full jitter.

    The n-th failure in a row waits a random time of up to ``first_seconds * 2 ** (n - 1)``, at most ``most_seconds``
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). A success calls :meth:`reset`.
    """

    def __init__(self, first_seconds: float = 1.0, most_seconds: float = 300.0, random: Random | None = None) -> None:
        self._first = first_seconds
        self._most = most_seconds
        self._random = random or Random()
        self._bound = first_seconds

    def delay(self, retry_after: float | None = None) -> float:
        """Seconds to wait after one more failure; never below ``retry_after``, which the server asked for."""
        seconds = self._random.uniform(0, self._bound)
        self._bound = min(2 * self._bound, self._most)
        return max(seconds, retry_after or 0.0)

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._bound = self._first


def wait_yielding(
    seconds: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Wait, yielding about once a second, so that a source can give signs of life: ``yield Fetched()`` in the loop."""
    end = clock() + seconds
    while (left := end - clock()) > 0:
        sleep(min(left, STEP_SECONDS))
        yield


def cause_of(error: BaseException) -> str:
    """The innermost reason of a network error, without secrets; libraries bury it under their own."""
    # urllib3 learns from a ValueError that a body was cut off; its own error says it better.
    while (inner := error.__cause__ or error.__context__) is not None and not isinstance(inner, ValueError):
        error = inner
    reason = getattr(error, "strerror", None) or str(error)
    return redact(f"{type(error).__name__}: {reason}" if reason else type(error).__name__)


def read_token(token_file: Path | None, variable: str, what: str, line: int = 1) -> str:
    """A key: the ``line``-th line of ``token_file``, or else the environment variable.

    ``what`` names the key in the InputError of a missing one: "Mastodon's access token". The key is remembered as a
    secret, so that :func:`launch.scrub.redact` takes it out of any text.
    """
    if token_file is None:
        token = os.environ.get(variable, "").strip()
        if not token:
            raise InputError(
                f"{what} is missing. Set the environment variable {variable}, or give --token_file FILE with it in "
                f"line {line}."
            )
    else:
        token = _line_of(token_file, line, what, variable)
    remember_secret(token)
    return token


def _line_of(token_file: Path, line: int, what: str, variable: str) -> str:
    remedy = f"Put {what} into line {line}, or leave --token_file out and set the environment variable {variable}."
    try:
        lines = token_file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError.at(token_file, None, f"cannot be read ({error.strerror})", remedy) from None
    except UnicodeDecodeError:
        raise InputError.at(token_file, None, "not a text file", remedy) from None
    token = lines[line - 1].strip() if len(lines) >= line else ""
    if not token:
        raise InputError.at(token_file, line, "empty", remedy)
    return token
