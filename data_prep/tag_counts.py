"""What the tags of annotated texts hold: entities by type, orphans, URL tokens, and mentions that training has not seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_prep.layout import ENTITY_TYPES
from data_prep.tag_repair import count_entities, repair_orphans
from data_prep.urls import remove_urls_from_tokens


class TagCounts:
    """Counts of one split, text by text. Tags may have orphans; they are counted, and read as conlleval reads them."""

    def __init__(self) -> None:
        self.strict: Counter[str] = Counter()
        self.conlleval: Counter[str] = Counter()
        self.tokens = 0
        self.url_tokens = 0
        self.tokens_with_url = 0
        self.orphans = 0

    def add(self, tokens: Sequence[str], tags: Sequence[str]) -> None:
        """Count a text's tokens and tags."""
        strict, conlleval = count_entities(tags)
        self.strict += strict
        self.conlleval += conlleval
        self.tokens += len(tokens)
        for token, rest in zip(tokens, remove_urls_from_tokens(list(tokens)), strict=True):
            self.url_tokens += not rest
            self.tokens_with_url += bool(rest) and rest != token
        self.orphans += repair_orphans(tags)[1]

    def facts(self) -> dict[str, Any]:
        """The counts as a manifest keeps them."""
        return {
            "tokens": self.tokens,
            "url_tokens_removed": self.url_tokens,
            "urls_cut_from_tokens": self.tokens_with_url,
            "strict": {entity_type: self.strict[entity_type] for entity_type in ENTITY_TYPES},
            "conlleval": {entity_type: self.conlleval[entity_type] for entity_type in ENTITY_TYPES},
            "orphans_repaired": self.orphans,
        }


def tag_rows(facts_of_splits: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """:meth:`TagCounts.facts` of each split as rows of a table: a name, then a cell for each split."""
    splits = facts_of_splits.values()
    names = ("tokens", "url_tokens_removed", "urls_cut_from_tokens")
    rows = [(name.replace("_", " "), *(str(split[name]) for split in splits)) for name in names]
    for convention, name in (("strict", "entities, strict (B- tags)"), ("conlleval", "entities, conlleval")):
        rows.append((name, *(str(sum(split[convention].values())) for split in splits)))
        for entity_type in ENTITY_TYPES:
            rows.append((f"  {entity_type}", *(str(split[convention][entity_type]) for split in splits)))
    rows.append(("orphan I- tags repaired", *(str(split["orphans_repaired"]) for split in splits)))
    return rows


def mentions_of(tokens: Sequence[str], tags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Type and words, in lower case, of each entity that conlleval sees: ``("LOC", "new orleans")``."""
    start = None
    repaired = repair_orphans(tags)[0]
    for place, tag in enumerate([*repaired, "O"]):
        if start is not None and tag[0] != "I":
            yield repaired[start][2:], " ".join(tokens[start:place]).lower()
            start = None
        if tag[0] == "B":
            start = place
