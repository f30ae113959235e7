"""What `--exclude` keeps out of a data set: texts that a model will be tested on, and such as are nearly equal to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from data_prep.layout import read_texts, splits_of
from data_prep.near_duplicates import SIMILAR, NearDuplicates, words_of
from launch.settings import NOT_IDENTITY

EXCLUDED = "in an excluded data set"
NEARLY_EXCLUDED = "nearly in an excluded data set"
EXAMPLES = 20


@dataclass(frozen=True, kw_only=True)
class ExcludeSettings:
    """Settings of a stage that leaves out texts of other data sets."""

    exclude: list[Path] | Path = field(default_factory=list, metadata=NOT_IDENTITY)
    """Data sets (outputs of data_prep stages) whose texts, in any split, must not be in the corpus; one or a list."""
    exclude_similarity: float = SIMILAR
    """Jaccard similarity of word sets from which a text counts as nearly equal to an excluded one; 1 for equal sets."""

    def __post_init__(self) -> None:
        """Refuse a similarity without a meaning."""
        if not 0 < self.exclude_similarity <= 1:
            raise ValueError(f"exclude_similarity {self.exclude_similarity}: give a number above 0 and up to 1")

    @property
    def excluded_folders(self) -> list[Path]:
        """The data sets as a list."""
        return [self.exclude] if isinstance(self.exclude, Path) else list(self.exclude)

    def excluded_inputs(self) -> dict[str, Path]:
        """The data sets as inputs of the stage."""
        return {f"exclude_{number}": folder for number, folder in enumerate(self.excluded_folders)}


class Excluded:
    """The texts that must not be in the corpus."""

    def __init__(self, folders: list[Path], similarity: float) -> None:
        self.ids: list[str] = []
        self.matches: list[list] = []
        """Of the first texts that match: id, id of the excluded text, similarity."""
        texts: list[tuple[str, ...]] = []
        for folder in folders:
            for split in splits_of(folder):
                ids, split_texts = read_texts(folder, split)
                self.ids += ids
                texts += map(words_of, split_texts)
        self._index = NearDuplicates(texts, similarity)
        self._place_of = {words: place for place, words in reversed(list(enumerate(texts)))}

    def reason(self, text_id: str, text: str) -> str | None:
        """Why a text is left out; None where it neither equals an excluded one nor nearly does."""
        words = words_of(text)
        if (place := self._place_of.get(words)) is not None:
            return self._matched(EXCLUDED, text_id, place, 1.0)
        if match := self._index.find(words):
            return self._matched(NEARLY_EXCLUDED, text_id, match[0], round(match[1], 3))
        return None

    def _matched(self, reason: str, text_id: str, place: int, similarity: float) -> str:
        if len(self.matches) < EXAMPLES:
            self.matches.append([text_id, self.ids[place], similarity])
        return reason
