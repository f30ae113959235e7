"""What the fields of a post can look like in JSON and in tables, and how they become those of `Post`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

from data_prep.posts import EMPTY, NOT_A_POST, NOT_UTF8, Post, PostImage, storable, unescape_html

ROUNDED_ID = "id rounded to a float"

_EXACT_BELOW = 2**53  # whole numbers up to here have a double each


NO_LANGUAGES = frozenset("und zxx art qam qct qht qme qst".split())
"""X's codes for texts of no language or an unknown one: only mentions, only hashtags, only media, too short …"""


def post_of_fields(fields: Mapping[str, object], place: str, source: str) -> Post:
    """The post with the given `text`, `id`, `lang`, `created_at`, `author_id`, `images` and `source`, as far as there.

    ``place`` is its id and ``source`` its source if it names none. What is optional and unreadable is left out; a post
    whose text is no string, or whose id was rounded, has a ``problem``.
    """
    text, own_id, own_source = fields.get("text"), fields.get("id"), fields.get("source")
    problem = ROUNDED_ID if is_rounded(own_id) else None
    if not isinstance(text, str):
        text, problem = str(text), NOT_A_POST
    return finished_post(
        text,
        id=id_of(own_id) or place,
        lang=lang_of(fields.get("lang")),
        created_at=moment_of(fields.get("created_at")),
        source=storable(own_source) if isinstance(own_source, str) and own_source else source,
        author_id=id_of(fields.get("author_id")),
        images=images_of(fields.get("images")),
        problem=problem,
    )


def finished_post(text: str, *, problem: str | None, images: tuple[PostImage, ...], **fields: Any) -> Post:
    """A post with its HTML entities decoded.

    It has a ``problem`` if there are half surrogate pairs in its text, or if it has neither a text nor a photo.
    """
    text = unescape_html(text)
    clean = storable(text)
    if not problem and not clean and not images:
        problem = EMPTY
    return Post(text=clean, problem=problem or (NOT_UTF8 if clean != text else None), images=images, **fields)


def id_of(value: object) -> str | None:
    """The id that a string or a number spells; None if it is neither, or was rounded (:func:`is_rounded`)."""
    if isinstance(value, str):
        return storable(value) or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float | Decimal) and value == value and not is_rounded(value):
        return str(int(value))
    return None


def is_rounded(value: object) -> bool:
    """Whether a number that should be an id may have lost digits, being a float, or was one when it was written.

    A :class:`~decimal.Decimal` holds a number as it was written. One that has all its digits and is no double is exact.
    """
    if not isinstance(value, float | Decimal) or value != value:
        return False
    if not 0 <= value < 2**64 or value != int(value):
        return True
    if value < _EXACT_BELOW:
        return False
    return isinstance(value, float) or value.as_tuple().exponent > 0 or Decimal(float(value)) == value


def lang_of(value: object) -> str | None:
    """A language code in lower case, such as `en` or `en-gb`; None if there is none, or one of :data:`NO_LANGUAGES`."""
    code = storable(value).lower().replace("_", "-") if isinstance(value, str) else ""
    return code if code and code not in NO_LANGUAGES else None


def moment_of(value: object) -> datetime | None:
    """A time in UTC from ISO 8601 or from API v1.1's `Mon Jan 02 20:00:13 +0000 2012`; None if it is neither.

    A time without a zone is taken to be UTC.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip().removesuffix("Z"))
        except ValueError:
            try:
                value = parsedate_to_datetime(value)
            except (ValueError, TypeError, IndexError, OverflowError):
                return None
    if not isinstance(value, datetime):
        return None
    try:
        return value.replace(tzinfo=value.tzinfo or timezone.utc).astimezone(timezone.utc)
    except OverflowError:  # at the ends of the calendar
        return None


def images_of(value: object) -> tuple[PostImage, ...]:
    """Photos from an address, several apart by spaces, a list of them, JSON of it, or objects with `url`, `alt_text`."""
    if isinstance(value, str):
        if value.startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return ()
        else:  # a path may have spaces in it
            parts = value.split()
            value = parts if all("://" in part for part in parts) else [value.strip()]
    images = []
    for item in value if isinstance(value, list) else []:
        image = item if isinstance(item, dict) else {"url": item}
        url, alt_text = image.get("url"), image.get("alt_text")
        if isinstance(url, str) and url:
            images.append(PostImage(storable(url), storable(alt_text) if isinstance(alt_text, str) else None))
    return tuple(images)
