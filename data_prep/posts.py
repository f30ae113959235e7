"""A social-media post, wherever it comes from, and the `posts` data set that keeps it.

Every source (X, Bluesky, Mastodon, files) gives :class:`Post` records; `data_prep/crawl.py` stores them.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from datetime import datetime
from html.entities import html5
from typing import Any

from datasets import Features, List, Value

IMAGE_FEATURES = {
    "url": Value("string"),
    "path": Value("string"),  # of the downloaded file, in the data set's folder: images/ab/ab….jpg
    "sha256": Value("string"),  # of the downloaded file
    "alt_text": Value("string"),  # what the author says of it
    "problem": Value("string"),  # why there is no file, where one was wanted
}

POSTS_FEATURES = Features(
    {
        "id": Value("string"),
        "text": Value("string"),  # full length, HTML entities decoded, otherwise as posted
        "lang": Value("string"),  # as the platform says, lower case; null where it does not know
        "created_at": Value("timestamp[us, tz=UTC]"),
        "source": Value("string"),  # "x", "bluesky", "mastodon:HOST" or a file's name
        "author_id": Value("string"),
        "images": List(IMAGE_FEATURES),  # photos only, in the order of the post
    }
)

NOT_UTF8 = "not UTF-8"
NOT_JSON = "not JSON"
NOT_A_POST = "not a post"
WITHHELD = "withheld"
PROTECTED = "protected"
EMPTY = "empty"
"""Reasons (``Post.problem``) that several sources give. Short: they name rows of a table."""


@dataclass(frozen=True)
class PostImage:
    """A photo of a post: where it is on the web, and, once downloaded, where its file is."""

    url: str
    alt_text: str | None = None
    path: str | None = None
    sha256: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Post:
    """A post of a source; ``problem`` says why it cannot be used, if it cannot (then ``text`` is what there is of it).

    ``id`` is unique within ``source``. ``versions`` are the ids under which an edited post is known, its own included,
    oldest first; empty where it was not edited.
    """

    id: str
    text: str
    lang: str | None = None
    created_at: datetime | None = None
    """Aware, in UTC."""
    source: str = ""
    author_id: str | None = None
    images: tuple[PostImage, ...] = ()
    versions: tuple[str, ...] = ()
    problem: str | None = None

    def row(self) -> dict[str, Any]:
        """The post as a row of `POSTS_FEATURES`."""
        return {
            "id": self.id,
            "text": self.text,
            "lang": self.lang,
            "created_at": self.created_at,
            "source": self.source,
            "author_id": self.author_id,
            "images": [
                {
                    "url": image.url,
                    "path": image.path,
                    "sha256": image.sha256,
                    "alt_text": image.alt_text,
                    "problem": image.problem,
                }
                for image in self.images
            ],
        }


# "&amp;lt;" is met in posts that were escaped twice. Entities without their semicolon stay: "R&D", "a=1&copy=2".
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_ESCAPED_AT_MOST = 2


def unescape_html(text: str) -> str:
    """``text`` with its HTML entities decoded: `&amp;` becomes `&`, and `&amp;lt;` becomes `<`."""
    for _ in range(_ESCAPED_AT_MOST):
        if "&" not in text:
            break
        text = _ENTITY.sub(_decoded, text)
    return text


def storable(text: str) -> str:
    """``text`` with half surrogate pairs, which JSON can spell and UTF-8 cannot, as backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _decoded(entity: re.Match[str]) -> str:
    # `unescape` alone would also decode the beginning of an unknown name: "&notit;".
    return html.unescape(entity[0]) if entity[0][1] == "#" or entity[0][1:] in html5 else entity[0]
