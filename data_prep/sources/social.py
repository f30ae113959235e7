"""What the sources of Bluesky and of Mastodon have in common."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from hashlib import sha256
from typing import Any

from data_prep.posts import NOT_A_POST, NOT_JSON, Post
from data_prep.sources.post_fields import lang_of

KEPT_CHARACTERS = 2000
"""Of an item that is no post: enough to see what it was."""

ANOTHER_LANGUAGE = "another language"


def in_languages(posts: list[Post], languages: Collection[str], passed_over: Counter[str]) -> list[Post]:
    """``posts`` without those in other ``languages``, if any are named; these are counted in ``passed_over``."""
    wanted = {language.lower() for language in languages}
    kept = [post for post in posts if not wanted or post.problem or post.lang in wanted]
    if len(kept) < len(posts):
        passed_over[ANOTHER_LANGUAGE] += len(posts) - len(kept)
    return kept


def json_object(data: bytes | str) -> dict[str, Any] | None:
    """The JSON object that ``data`` spells; None if it spells none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def unreadable_post(data: bytes, source: str) -> Post:
    """The rejected post for a message that is no JSON object. Its id is made of its content."""
    return _rejected(data, source, NOT_JSON)


def no_post(item: object, source: str) -> Post:
    """The rejected post for a part of a platform's JSON that is not built as a post is."""
    return _rejected(json.dumps(item, default=str).encode(), source, NOT_A_POST)


def primary_language(tag: object) -> str | None:
    """The language of a tag without region or script, in lower case: `pt` of `pt-BR`; None if there is none."""
    language = lang_of(tag)
    return language.partition("-")[0] or None if language else None


def _rejected(data: bytes, source: str, problem: str) -> Post:
    text = data.decode("utf-8", "backslashreplace")[:KEPT_CHARACTERS]
    return Post(f"unknown:{sha256(data).hexdigest()[:16]}", text, source=source, problem=problem)
