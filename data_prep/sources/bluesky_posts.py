"""Records of Bluesky's `app.bsky.feed.post` become posts.

* The id is the record's address, `at://DID/app.bsky.feed.post/KEY`; the author's is the DID, which stays when the
  handle changes.
* The text is as posted. Bluesky's apps cut the links that they show; the whole address stands beside the text, and is
  not put back into it.
* The time is what the author's app says, and anything can be said. A time after that of the server that saw the post,
  or before there were any such posts to import, is replaced by the server's.
* The language is the first one that the author's app names.
* Photos are addresses of Bluesky's image server, made of the author's DID and the photo's content id.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

from data_prep.posts import NOT_A_POST, PROTECTED, WITHHELD, Post, PostImage, storable
from data_prep.sources.post_fields import finished_post, moment_of
from data_prep.sources.social import no_post, primary_language

SOURCE = "bluesky"
COLLECTION = "app.bsky.feed.post"

EARLIEST = datetime(2006, 3, 21, tzinfo=timezone.utc)
"""The day of the first tweet: posts that were imported from elsewhere keep their time, and none is older."""

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

PROTECTING_LABELS = frozenset({"!no-unauthenticated"})
"""The author asks not to be shown to people without an account, which all readers of a data set are."""
WITHHOLDING_LABELS = frozenset({"!hide", "!takedown", "!suspend"})
"""Moderation has taken the post or its author down. See https://docs.bsky.app/docs/advanced-guides/moderation."""


def post_of_commit(event: dict[str, Any], images_address: str) -> Post:
    """The post that a Jetstream event of operation `create` tells of.

    https://github.com/bluesky-social/jetstream#example-events
    """
    did, key, seen = event.get("did"), event["commit"].get("rkey"), _moment_of_microseconds(event.get("time_us"))
    if not (isinstance(did, str) and isinstance(key, str) and seen):
        return no_post(event, SOURCE)
    return _post(f"at://{did}/{COLLECTION}/{key}", did, event["commit"].get("record"), seen, images_address)


def post_of_view(view: object, images_address: str) -> Post:
    """The post of a `postView`, which searches give: https://docs.bsky.app/docs/api/app-bsky-feed-search-posts."""
    author = view.get("author") if isinstance(view, dict) else None
    if not isinstance(author, dict):
        return no_post(view, SOURCE)
    uri, did, seen = view.get("uri"), author.get("did"), moment_of(view.get("indexedAt"))
    if not (isinstance(uri, str) and isinstance(did, str) and seen):
        return no_post(view, SOURCE)
    post = _post(uri, did, view.get("record"), seen, images_address)
    labels = {*_labels(view), *_labels(author)}
    if labels & WITHHOLDING_LABELS:
        return Post(post.id, "", created_at=post.created_at, source=SOURCE, problem=WITHHELD)
    if labels & PROTECTING_LABELS:
        return Post(post.id, "", created_at=post.created_at, source=SOURCE, problem=PROTECTED)
    return post


def _post(uri: str, did: str, record: object, seen: datetime, images_address: str) -> Post:
    record = record if isinstance(record, dict) else {}
    text, said, languages = record.get("text"), moment_of(record.get("createdAt")), record.get("langs")
    return finished_post(
        text if isinstance(text, str) else "",
        problem=None if isinstance(text, str) else NOT_A_POST,
        id=storable(uri),
        lang=primary_language(languages[0]) if isinstance(languages, list) and languages else None,
        created_at=said if said and EARLIEST <= said <= seen else seen,
        source=SOURCE,
        author_id=storable(did),
        images=tuple(_photos(record.get("embed"), did, images_address)),
    )


def _photos(embed: object, did: str, images_address: str) -> Iterator[PostImage]:
    """The photos of an `embed`: a set of images, the gallery that takes its place from five on, or beside a quotation."""
    if not isinstance(embed, dict):
        return
    kind = embed.get("$type")
    if kind == "app.bsky.embed.recordWithMedia":
        yield from _photos(embed.get("media"), did, images_address)
    elif kind in ("app.bsky.embed.images", "app.bsky.embed.gallery"):
        for item in _dicts(embed.get("images" if kind == "app.bsky.embed.images" else "items")):
            blob, alt_text = item.get("image"), item.get("alt")
            reference = blob.get("ref") if isinstance(blob, dict) else None
            content_id = reference.get("$link") if isinstance(reference, dict) else None
            if isinstance(content_id, str):
                name = f"{quote(storable(did), safe=':')}/{quote(storable(content_id), safe='')}@jpeg"
                url = f"{images_address.rstrip('/')}/img/feed_fullsize/plain/{name}"
                yield PostImage(url, storable(alt_text) if isinstance(alt_text, str) and alt_text else None)


def _moment_of_microseconds(value: object) -> datetime | None:
    try:
        return EPOCH + timedelta(microseconds=value) if isinstance(value, int) else None
    except OverflowError:
        return None


def _labels(labelled: dict[str, Any]) -> Iterator[str]:
    return (str(label.get("val")) for label in _dicts(labelled.get("labels")) if not label.get("neg"))


def _dicts(values: object) -> Iterator[dict[str, Any]]:
    return (value for value in values if isinstance(value, dict)) if isinstance(values, list) else iter(())
