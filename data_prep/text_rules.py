"""What cleaning does to texts, and what it finds out about them: whole Arrow arrays at once.

Arrow's regular expressions (RE2) work without a Python object for each text, but know no look-behind. Where the rules of
`data_prep/urls.py` need one, the few texts that need it go through Python.

All functions take and give string arrays without nulls, a text for a text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.urls import MAY_HOLD_URL, remove_urls

# What `str.split` takes for white space; RE2's \s is ASCII alone.
_SPACE_BUT_BLANK = r"\t-\r\x1c-\x1f\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
_SPACE = f" {_SPACE_BUT_BLANK}"
_MORE_THAN_SINGLE_SPACES = f"  |[{_SPACE_BUT_BLANK}]"
# By far the most URLs of tweets are these, with white space or a quotation mark behind: Twitter's shortener's, whole or cut
# by `…`, and others of nothing but the usual characters (a host that begins like the shortener's may be that, with a word
# glued on). Where nothing that may be another URL is left, they were all; else the text as it was goes through
# `remove_urls`.
_PLAIN_URL = (
    r"(?i)https?://(?:t\.co/(?:[A-Za-z0-9]{1,10}…?|…)|(?:t(?:\.co?)?)?…"
    r"|(?:[A-SU-Za-su-z0-9]|[Tt][A-Za-z0-9])[-A-Za-z0-9._~/?#&+=%]*[A-Za-z0-9/])"
    rf"([\"{_SPACE}]|$)"
)

# X's names; Bluesky's, which are domains; Mastodon's, with the server.
_NAME = r"(?:[A-Za-z0-9_]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+){2,}|[A-Za-z0-9_]{1,30})"
_MENTION = rf"(^|[^A-Za-z0-9_@/])@{_NAME}"
_RETWEET = rf"^[{_SPACE}]*RT[{_SPACE}]+@[A-Za-z0-9_]{{1,30}}[{_SPACE}]?:"
_EMAIL = r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"
# Three groups of digits or more, as people write numbers to call: not a year, a score, a price or a post's id.
_MAY_HOLD_PHONE = r"\d{3}[\s.-]\d{3}"
_PHONE = re.compile(
    r"(?<![\w#@/.,+-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])(?:\d{3,4}[ .-]){1,2}?\d{3,4}"
    r"(?!\w)(?![ .-]\d{3,4}(?![ .-]?\d|\w))",  # what follows is no group of its own, but it may be another number
    re.ASCII,
)
EMAIL_MASK, PHONE_MASK, MENTION_MASK = "[email]", "[phone]", "@user"


def without_urls(texts: pa.Array) -> pa.Array:
    """The texts without their URLs, as `data_prep.urls.remove_urls` gives them, but for the white space around these."""
    shortened = pc.replace_substring_regex(texts, _PLAIN_URL, r"\1")
    left = pc.match_substring_regex(shortened, MAY_HOLD_URL)
    if not pc.any(left).as_py():
        return shortened
    by_the_rules = [remove_urls(text) for text in texts.filter(left).to_pylist()]
    return pc.replace_with_mask(shortened, left, pa.array(by_the_rules, pa.string()))


def with_single_spaces(texts: pa.Array) -> pa.Array:
    """``" ".join(text.split())`` of each."""
    trimmed = pc.ascii_trim(texts, " ")
    left = pc.match_substring_regex(trimmed, _MORE_THAN_SINGLE_SPACES)
    if not pc.any(left).as_py():
        return trimmed
    made_one = pc.replace_substring_regex(trimmed.filter(left), f"[{_SPACE}]+", " ")
    return pc.replace_with_mask(trimmed, left, pc.ascii_trim(made_one, " "))


def without_retweet_prefix(texts: pa.Array) -> pa.Array:
    """The texts without a leading `RT @name:`."""
    return pc.replace_substring_regex(texts, _RETWEET, "")


def with_mentions(texts: pa.Array, instead: str) -> pa.Array:
    """The texts with ``instead`` in the place of each `@name`."""
    for _ in range(2):  # of two mentions side by side, the first one's end is the second one's beginning
        texts = pc.replace_substring_regex(texts, _MENTION, rf"\1{instead}" if instead else r"\1")
    return texts


def with_sensitive_masked(texts: pa.Array) -> pa.Array:
    """The texts with e-mail addresses and phone numbers masked."""
    texts = pc.replace_substring_regex(texts, _EMAIL, EMAIL_MASK)
    may_hold = pc.match_substring_regex(texts, _MAY_HOLD_PHONE)
    if not pc.any(may_hold).as_py():
        return texts
    masked = [_PHONE.sub(PHONE_MASK, text) for text in texts.filter(may_hold).to_pylist()]
    return pc.replace_with_mask(texts, may_hold, pa.array(masked, pa.string()))


def have_words(texts: pa.Array, count: int) -> pa.Array:
    """Which texts, parted by single spaces, have at least so many runs of non-space with a letter or digit; bool."""
    if count < 1:
        return pa.repeat(pa.scalar(True), len(texts))
    return pc.match_substring_regex(
        texts, rf"(?:[\p{{L}}\p{{N}}][^ ]* [^\p{{L}}\p{{N}}]*){{{count - 1}}}[\p{{L}}\p{{N}}]"
    )


def holding(texts: pa.Array, phrases: Sequence[str]) -> pa.Array:
    """Which texts hold one of the phrases as whole words, case aside; bool."""
    alternatives = "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))
    return pc.match_substring_regex(texts, rf"(?i)(?:^|[^\p{{L}}\p{{N}}_])(?:{alternatives})(?:$|[^\p{{L}}\p{{N}}_])")


def normalised(texts: pa.Array) -> pa.Array:
    """What two texts must share to be duplicates: themselves, case aside."""
    return pc.utf8_lower(texts)


def words(texts: pa.Array) -> pa.Array:
    """The words of each text for comparison, parted by spaces: lower-cased runs of letters and digits.

    A text without any is itself, without spaces, so that two different rows of emoji stay different.
    """
    found = pc.utf8_trim(pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\p{L}\p{M}\p{N}]+", " "), " ")
    return pc.if_else(pc.equal(found, ""), pc.replace_substring(texts, " ", ""), found)
