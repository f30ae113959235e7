"""How words are written - small, capitalised, with digits - which an uncased vocabulary cannot tell."""

from __future__ import annotations

SHAPES = ("none", "lower", "capitalised", "upper", "one letter", "mixed", "digits", "with digits", "other")
"""What :func:`shape_of` tells apart; ``none`` is for what is no word of the tweet."""


def shape_of(word: str) -> int:
    """Index in :data:`SHAPES` of a word, whose sign of a hashtag or a mention is left out."""
    bare = word[1:] if word[:1] in ("#", "@") and len(word) > 1 else word
    letters = [character for character in bare if character.isalpha()]
    if any(character.isdigit() for character in bare):
        return SHAPES.index("with digits" if letters else "digits")
    if not letters:
        return SHAPES.index("other")
    upper = sum(character.isupper() for character in letters)
    if upper == 0:
        return SHAPES.index("lower")
    if len(letters) == 1:
        return SHAPES.index("one letter")
    if upper == len(letters):
        return SHAPES.index("upper")
    return SHAPES.index("capitalised" if upper == 1 and letters[0].isupper() else "mixed")
