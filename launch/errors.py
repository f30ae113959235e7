"""Errors that are the user's to mend, told in one line."""

from __future__ import annotations

from pathlib import Path


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class InputError(ValueError):
    """Something that was given (a file, a setting, a model) is wrong; the message says what, where and what to do.

    Stages print it as one line, without a traceback, and exit with code 2.
    """

    @classmethod
    def at(cls, path: str | Path, line: int | None, problem: str, remedy: str) -> InputError:
        """The error of one place in a file: ``path:line: problem. remedy``."""
        place = f"{path}:{line}" if line is not None else f"{path}"
        return cls(f"{place}: {problem.rstrip('.')}. {remedy}")
