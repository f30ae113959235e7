"""Tweets as X's API gives them, versions 1.1 and 2, become `Post` records.

Texts are the full ones, wherever an answer keeps them: `full_text`, `extended_tweet`, `note_tweet`. A retweet shows its
original in full behind the platform's "RT @name: ". What is no tweet, or one that must not be used, has a ``problem``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any

from data_prep.posts import NOT_A_POST, PROTECTED, WITHHELD, Post, PostImage, storable
from data_prep.sources.post_fields import ROUNDED_ID, finished_post, id_of, is_rounded, lang_of, moment_of

UNKNOWN_ID = "unknown:"
"""How the id of a post begins that has none of its own; what follows is a hash of its JSON."""

NOT_FOUND = "not found"
STREAM_MESSAGE = "stream message: {}"
STREAM_MESSAGES = (
    "delete scrub_geo limit status_withheld user_withheld disconnect warning friends event control for_user".split()
)
"""What a v1.1 stream holds beside tweets (developer.x.com, "Streaming message types")."""

MALFORMED = (AttributeError, KeyError, TypeError, ValueError, IndexError)
"""What reading a tweet raises that is not built as the API builds it. A dump may hold anything in any place."""

_RETWEET = re.compile(r"RT @\w+: ")


def post_of_v1(tweet: dict[str, Any], source: str = "x") -> Post:
    """The post of a tweet object of API v1.1, of any of its forms; a stream's other messages have a ``problem``.

    Without an id of its own, the post's begins with `UNKNOWN_ID`.
    """
    try:
        if message := _stream_message(tweet):
            return _no_post(tweet, STREAM_MESSAGE.format(message), source)
        original = tweet.get("retweeted_status") or None
        text, user = _text_of_v1(tweet), tweet.get("user") or {}
        statuses = [tweet]
        if original is not None:
            statuses.append(original)
            text = _retweet(text, _text_of_v1(original), (original.get("user") or {}).get("screen_name"))
        return _post(
            tweet,
            tweet.get("id_str") or tweet.get("id"),
            text,
            source=source,
            author_id=id_of(user.get("id_str") or user.get("id")),
            images=_distinct(image for status in statuses for image in _photos_of_v1(status)),
            versions=_versions((tweet.get("edit_history") or {}).get("edit_tweet_ids")),
            problem=_restriction_of_v1(statuses),
        )
    except MALFORMED:
        return _no_post(tweet, NOT_A_POST, source)


def posts_of_v2(page: dict[str, Any], source: str = "x") -> list[Post]:
    """The posts of an answer of API v2, of a stream's item, or of a tweet that twarc flattened (as `data`).

    Each item of `data` gives one post. So does each of `errors` about a tweet that was asked for and is not in `data`;
    those about tweets that others refer to give none. Ids are as with :func:`post_of_v1`.
    """
    if not isinstance(page, dict):
        return [_no_post(page, NOT_A_POST, source)]
    data = page.get("data")
    items = data if isinstance(data, list) else [] if data is None else [data]
    included = page.get("includes") if isinstance(page.get("includes"), dict) else {}
    users, tweets = _by(included.get("users"), "id"), _by(included.get("tweets"), "id")
    media = _by(included.get("media"), "media_key")
    posts = []
    for item in items:
        try:
            posts.append(_post_of_v2(item, users, tweets, media, source))
        except MALFORMED:
            posts.append(_no_post(item, NOT_A_POST, source))
    given = {post.id for post in posts}
    return posts + [post for post in _missing_posts(page.get("errors"), source) if post.id not in given]


def _post_of_v2(tweet: Any, users: Mapping, tweets: Mapping, media: Mapping, source: str) -> Post:
    text = _text_of_v2(tweet)
    statuses = [tweet]
    for reference in tweet.get("referenced_tweets") or []:
        if reference["type"] == "retweeted":
            original = tweets.get(reference["id"], reference)
            if "text" in original:
                statuses.append(original)
                text = _retweet(text, _text_of_v2(original), _author_of_v2(original, users).get("username"))
    return _post(
        tweet,
        tweet.get("id"),
        text,
        source=source,
        author_id=id_of(tweet.get("author_id")),
        images=_distinct(image for status in statuses for image in _photos_of_v2(status, media)),
        versions=_versions(tweet.get("edit_history_tweet_ids")),
        problem=_restriction_of_v2(statuses, users),
    )


def _post(tweet: dict[str, Any], own_id: object, text: str, problem: str | None, **fields: Any) -> Post:
    """What the two versions have in common."""
    return finished_post(
        text,
        id=id_of(own_id) or _unknown_id(_as_text(tweet)),
        lang=lang_of(tweet.get("lang")),
        created_at=moment_of(tweet.get("created_at")),
        problem=problem or (ROUNDED_ID if is_rounded(own_id) else None),
        **fields,
    )


def _no_post(item: Any, problem: str, source: str) -> Post:
    text = _as_text(item)
    return Post(_unknown_id(text), text, source=source, problem=problem)


def _as_text(item: Any) -> str:
    try:
        return storable(json.dumps(item, ensure_ascii=False, default=str))
    except RecursionError:
        return "(nested too deeply)"


def _unknown_id(text: str) -> str:
    return UNKNOWN_ID + sha256(text.encode()).hexdigest()[:16]


def _stream_message(tweet: dict[str, Any]) -> str | None:
    if "text" in tweet or "full_text" in tweet:
        return None
    return next((name for name in STREAM_MESSAGES if name in tweet), None)


def _text_of_v1(status: dict[str, Any]) -> str:
    extended = status.get("extended_tweet") or {}
    return _string(extended.get("full_text") or status.get("full_text") or status["text"])


def _text_of_v2(tweet: dict[str, Any]) -> str:
    return _string((tweet.get("note_tweet") or {}).get("text") or tweet["text"])


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("a text that is no string")
    return value


def _retweet(text: str, original_text: str, name: str | None) -> str:
    """The retweet of a text; ``text`` is what the API gives for it: cut off, behind the name."""
    if prefix := _RETWEET.match(text):
        return prefix[0] + original_text
    return f"RT @{name}: {original_text}" if name else text


def _author_of_v2(tweet: dict[str, Any], users: Mapping) -> dict[str, Any]:
    return users.get(tweet.get("author_id")) or tweet.get("author") or {}


def _photos_of_v1(status: dict[str, Any]) -> Iterator[PostImage]:
    """`entities` call a video a photo and have the first photo only, so they are read where there is nothing better."""
    parts = [part for part in (status.get("extended_tweet"), status) if part]
    for name in ("extended_entities", "entities"):
        found = [item for part in parts for item in (part.get(name) or {}).get("media") or []]
        if found:
            for item in found:
                url = item.get("media_url_https") or item.get("media_url")
                if item["type"] == "photo" and url and "_video_thumb/" not in url:
                    yield _image(url, item.get("ext_alt_text"))
            return


def _photos_of_v2(tweet: dict[str, Any], media: Mapping) -> Iterator[PostImage]:
    attachments = tweet.get("attachments") or {}
    embedded = attachments.get("media") or [media.get(key, {}) for key in attachments.get("media_keys") or []]
    for item in embedded:
        if item.get("type") == "photo" and item.get("url"):
            yield _image(item["url"], item.get("alt_text"))


def _image(url: str, alt_text: str | None) -> PostImage:
    return PostImage(storable(url), storable(alt_text) if alt_text else None)


def _distinct(images: Iterable[PostImage]) -> tuple[PostImage, ...]:
    """A retweet repeats its original's photos."""
    return tuple({image.url: image for image in images}.values())


def _versions(ids: Any) -> tuple[str, ...]:
    return tuple(storable(str(version)) for version in ids) if ids and len(ids) > 1 else ()


def _restriction_of_v1(statuses: list[dict[str, Any]]) -> str | None:
    users = [status.get("user") or {} for status in statuses]
    if any(user.get("protected") for user in users):
        return PROTECTED
    names = ("withheld_copyright", "withheld_in_countries", "withheld_scope")
    return WITHHELD if any(item.get(name) for item in [*statuses, *users] for name in names) else None


def _restriction_of_v2(statuses: list[dict[str, Any]], users: Mapping) -> str | None:
    authors = [_author_of_v2(status, users) for status in statuses]
    if any(author.get("protected") for author in authors):
        return PROTECTED
    return WITHHELD if any(item.get("withheld") for item in [*statuses, *authors]) else None


def _by(items: Any, key: str) -> dict[str, dict[str, Any]]:
    """The objects of a list by their ids; what is not built so is left out."""
    objects = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return {item[key]: item for item in objects if isinstance(item.get(key), str)}


def _missing_posts(errors: Any, source: str) -> Iterator[Post]:
    """A post for each tweet that was asked for by its id and not given."""
    for error in errors if isinstance(errors, list) else []:
        if not isinstance(error, dict) or error.get("resource_type") != "tweet":
            continue
        own_id = id_of(error.get("resource_id")) or id_of(error.get("value"))
        if own_id and error.get("parameter") in ("id", "ids"):
            reason = PROTECTED if "not-authorized" in str(error.get("type")) else NOT_FOUND
            yield Post(own_id, storable(str(error.get("detail") or "")), source=source, problem=reason)
