"""Tag sequences put in order: IOB1 and files with orphan `I-` tags become valid BIO.

An *orphan* is an `I-X` tag that continues no entity: the tag before it is neither `B-X` nor `I-X`. In IOB1
(CoNLL-2003) that is how an entity begins, `B-` being kept for one that touches the one before; in TMN's file it is
mostly the rest of a name after an untagged "Dr ." or "St .". Both become `B-X`, which is how conlleval reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def repair_orphans(tags: Sequence[str]) -> tuple[list[str], int]:
    """The tags with every orphan `I-X` made `B-X`, and the number of orphans.

    The result is valid BIO and holds the entities that conlleval sees in ``tags``.
    """
    repaired, orphans, previous_type = [], 0, ""
    for tag in tags:
        is_orphan = tag.startswith("I-") and tag[2:] != previous_type
        repaired.append("B-" + tag[2:] if is_orphan else tag)
        orphans += is_orphan
        previous_type = tag[2:]
    return repaired, orphans


def iob1_to_bio(tags: Sequence[str]) -> list[str]:
    """IOB1 tags, as in CoNLL-2003's files, as BIO (IOB2). BIO comes back unchanged."""
    return repair_orphans(tags)[0]


def tags_without_tokens(tags: Sequence[str], kept: Sequence[int]) -> list[str]:
    """The tags of the tokens at positions ``kept`` (ascending) when the others are taken out of the sentence.

    An entity that loses its first token begins at its next one; two entities that come to touch stay two; an entity
    that a removed `O` token stood inside of was two before and stays two. ``tags`` may have orphans, the result has none.
    """
    entity_of: list[int | None] = []
    for position, tag in enumerate(repair_orphans(tags)[0]):
        entity_of.append(None if tag == "O" else position if tag[0] == "B" else entity_of[-1])
    result = []
    entity_before = None
    for position in kept:
        entity = entity_of[position]
        if entity is None:
            result.append("O")
        else:
            result.append(("I-" if entity == entity_before else "B-") + tags[position][2:])
        entity_before = entity
    return result


def count_entities(tags: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """Entities by type as ``(strict, conlleval)`` scorers count them.

    Strict scorers know an entity by its `B-` tag, so their count is the number of `B-` tags, which is also what the
    paper's Table 3 counts; those that follow conlleval let an orphan `I-` begin one.
    """
    strict = Counter(tag[2:] for tag in tags if tag.startswith("B-"))
    conlleval = Counter(tag[2:] for tag in repair_orphans(tags)[0] if tag.startswith("B-"))
    return strict, conlleval
