"""Tag schemes: the strings of annotated data to the label ids of a model, and back.

Data always holds BIO tags (``O``, ``B-X``, ``I-X``). A model may be trained on BIO or on BIOES labels;
`TagScheme` converts at the border, so everything outside the model (files, scorers, reports) speaks BIO.

    >>> scheme = TagScheme("BIOES", ("PER", "LOC"))
    >>> scheme.decode(scheme.encode(["B-PER", "I-PER", "O", "B-LOC"]))
    ['B-PER', 'I-PER', 'O', 'B-LOC']
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

ENTITY_TYPES = ("PER", "LOC", "ORG", "MISC")
"""The types of TMN and CoNLL-2003, in the order in which tables and label ids list them."""

PREFIXES = {"BIO": "BI", "BIOES": "BIES"}
"""The prefixes of each scheme, in the order in which label ids list them."""


def check_types(types: Sequence[str]) -> tuple[str, ...]:
    """Return `types` as a tuple; ValueError if they cannot be entity types.

    A type is not empty, has no white space (tags are written in columns) and no hyphen at either end
    (readers of ``B--X`` disagree on what its type is).
    """
    types = tuple(types)
    if not types:
        raise ValueError("no entity types were given")
    if len(set(types)) < len(types):
        raise ValueError(f"entity types repeat: {', '.join(types)}")
    for entity_type in types:
        if not entity_type or entity_type != entity_type.strip("-") or any(c.isspace() for c in entity_type):
            raise ValueError(f"{entity_type!r} cannot be an entity type")
    return types


@lru_cache
def bio_tags(types: tuple[str, ...]) -> frozenset[str]:
    """All BIO tags over `types`, ``O`` included."""
    return frozenset({"O"} | {f"{prefix}-{entity_type}" for entity_type in types for prefix in "BI"})


def check_tags(tags: Iterable[str], types: Sequence[str] = ENTITY_TYPES) -> None:
    """Raise a ValueError that names the first of `tags` that is not a BIO tag over `types`, and its place.

    Only single tags are checked: an orphan ``I-``, which continues no entity, passes.
    """
    known = bio_tags(tuple(types))
    for position, tag in enumerate(tags):
        if tag not in known:
            expected = f"O, or B- or I- and one of {', '.join(types)}"
            raise ValueError(f"unknown tag {tag!r} at position {position}: expected {expected}")


def tags_at(places: Sequence[int], tags: Sequence[str], count: int) -> list[str]:
    """``count`` tags: those given at their places, ``O`` elsewhere, and at places whose tags are missing at the end."""
    spread = ["O"] * count
    for place, tag in zip(places, tags, strict=False):
        spread[place] = tag
    return spread


def split_tag(tag: str) -> tuple[str, str]:
    """Split ``B-PER`` into ``("B", "PER")``; the type of ``O`` is the empty string."""
    return tag[:1], tag[2:]


def bio_to_bioes(tags: Sequence[str]) -> list[str]:
    """Convert BIO tags to BIOES: ``S-`` for an entity of one word, ``E-`` for the last word of a longer one.

    Raises ValueError at an orphan ``I-``, which BIOES has no tag for: repair the tags first.
    """
    converted = []
    for position, tag in enumerate(tags):
        prefix, entity_type = split_tag(tag)
        if prefix == "I" and (position == 0 or split_tag(tags[position - 1])[1] != entity_type):
            raise ValueError(f"orphan tag {tag!r} at position {position}: repair the tags first")
        goes_on = position + 1 < len(tags) and tags[position + 1] == f"I-{entity_type}"
        if prefix == "O" or goes_on:
            converted.append(tag)
        else:
            converted.append(f"{'S' if prefix == 'B' else 'E'}-{entity_type}")
    return converted


def bioes_to_bio(tags: Sequence[str]) -> list[str]:
    """Convert BIOES tags, valid or not, to BIO tags that conlleval reads as the same entities.

    ``E-X`` and ``S-X`` close an entity, so an ``I-X`` or ``E-X`` right after them opens one and becomes
    ``B-X``. Other orphans stay ``I-X``: the two scoring conventions differ on them, as they do in BIO.
    """
    converted, previous_prefix, previous_type = [], "O", ""
    for tag in tags:
        prefix, entity_type = split_tag(tag)
        if prefix == "O":
            converted.append(tag)
        elif prefix in "BS" or (previous_prefix in "ES" and previous_type == entity_type):
            converted.append(f"B-{entity_type}")
        else:
            converted.append(f"I-{entity_type}")
        previous_prefix, previous_type = prefix, entity_type
    return converted


@dataclass(frozen=True)
class TagScheme:
    """The labels of a recognizer: which there are, in which order, and which may follow which.

    Raises ValueError for an unknown scheme name or impossible types.

        >>> TagScheme("BIO", ("PER", "LOC")).labels
        ['O', 'B-PER', 'I-PER', 'B-LOC', 'I-LOC']
    """

    name: str = "BIO"
    """BIO: 2 labels for each type and O. BIOES: 4 for each type and O."""

    types: tuple[str, ...] = ENTITY_TYPES
    """Entity types, in the order of their labels."""

    def __post_init__(self) -> None:
        if self.name not in PREFIXES:
            raise ValueError(f"unknown tag scheme {self.name!r}: expected one of {', '.join(PREFIXES)}")
        object.__setattr__(self, "types", check_types(self.types))

    @cached_property
    def labels(self) -> list[str]:
        """Label strings; the place of a label is its id. ``O`` is 0."""
        return ["O"] + [f"{prefix}-{entity_type}" for entity_type in self.types for prefix in PREFIXES[self.name]]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.labels)}

    @cached_property
    def _labels_by_id(self) -> dict[int, str]:
        return dict(enumerate(self.labels))

    def encode(self, tags: Sequence[str]) -> list[int]:
        """Label ids [W] of the BIO tags [W] of one sentence.

        Raises ValueError for an unknown tag and for an orphan ``I-``: a model with constraints gives it no
        probability, so training on it would only push the loss about (see `data_prep.tag_repair`).
        """
        check_tags(tags, self.types)
        as_bioes = bio_to_bioes(tags)  # refuses orphans, whatever the scheme
        return [self._ids[tag] for tag in (as_bioes if self.name == "BIOES" else tags)]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """BIO tags [W] of the label ids [W] of one sentence, valid as a sequence or not (see `bioes_to_bio`).

        Orphans in the ids stay orphans in the tags. Raises ValueError for an id that is no label.
        """
        try:
            tags = list(map(self._labels_by_id.__getitem__, ids))
        except KeyError as error:
            raise ValueError(f"label id {error.args[0]} is not in 0 .. {len(self.labels) - 1}") from None
        return bioes_to_bio(tags) if self.name == "BIOES" else tags

    def allowed_transitions(self) -> np.ndarray:
        """Bool [L, L]: whether label j may follow label i.

        Arrays, not tensors: they keep their values when a model is built on torch's meta device.
        """
        return np.array([[self._may_follow(i, j) for j in self.labels] for i in self.labels])

    def allowed_start(self) -> np.ndarray:
        """Bool [L]: whether a sentence may begin with the label (as after ``O``)."""
        return np.array([self._may_follow("O", label) for label in self.labels])

    def allowed_end(self) -> np.ndarray:
        """Bool [L]: whether a sentence may end with the label (as before ``O``)."""
        return np.array([self._may_follow(label, "O") for label in self.labels])

    def _may_follow(self, first: str, second: str) -> bool:
        (first_prefix, first_type), (second_prefix, second_type) = split_tag(first), split_tag(second)
        first_is_open = first_prefix in "BI"  # the entity may go on; in BIOES it must
        if second_prefix in "IE":
            return first_is_open and first_type == second_type
        return self.name == "BIO" or not first_is_open
