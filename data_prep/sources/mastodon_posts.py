"""Statuses of Mastodon, and of servers that speak its API, become posts.

* The id is the status's `uri`, which is the same at all servers that have a copy of it (the API's `id` is each server's
  own); the source names the server that was asked. So copies from several servers can be told by their ids.
* A boost becomes the status that it boosts.
* The text is the content without its HTML: paragraphs parted by an empty line, links as whole addresses, "@user" and
  "#tag" as they are shown. A content warning, which is also where other software puts titles, stands before it as a
  paragraph of its own.
* What is not public is left out, and so is what authors ask to be left out: those who opted out of search engines
  (`noindex`), or who say so in their profile (`#nobot`, `#noindex` …). Nothing of these posts is kept but their ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from data_prep.posts import NOT_A_POST, PROTECTED, WITHHELD, Post, PostImage, storable
from data_prep.sources.post_fields import finished_post, id_of, moment_of
from data_prep.sources.social import no_post, primary_language

OPTED_OUT = "author opted out"

_OPT_OUT = re.compile(r"(?<!\w)#no(?:bots?|index|search|archive)(?!\w)", re.IGNORECASE)


def source_of(host: str) -> str:
    """The ``source`` of posts from a server."""
    return f"mastodon:{host}"


def post_of_status(status: object, host: str) -> Post:
    """The post of a `Status` that the server ``host`` gave: https://docs.joinmastodon.org/entities/Status/."""
    source = source_of(host)
    status = status.get("reblog") or status if isinstance(status, dict) else None
    account = status.get("account") if isinstance(status, dict) else None
    uri = id_of(status.get("uri")) if isinstance(account, dict) else None
    if uri is None:
        return no_post(status, source)
    created_at = moment_of(status.get("created_at"))
    if reason := _reason_to_leave_out(status, account):
        return Post(uri, "", created_at=created_at, source=source, problem=reason)
    content, warning = status.get("content"), status.get("spoiler_text")
    paragraphs = [warning, plain_text(content)] if isinstance(content, str) else []
    return finished_post(
        "\n\n".join(paragraph for paragraph in paragraphs if isinstance(paragraph, str) and paragraph),
        problem=None if paragraphs else NOT_A_POST,
        id=uri,
        lang=primary_language(status.get("language")),
        created_at=created_at,
        source=source,
        author_id=id_of(account.get("url")),
        images=tuple(_photos(status.get("media_attachments"))),
    )


def plain_text(html: str) -> str:
    """The text of a status's HTML. See the module's docstring."""
    parser = _PlainText()
    parser.feed(html)
    parser.close()
    return re.sub(r"\n{3,}", "\n\n", "".join(parser.parts)).strip()


class _PlainText(HTMLParser):
    PARAGRAPHS = frozenset("p div blockquote pre ul ol h1 h2 h3 h4 h5 h6".split())
    BREAKS = frozenset({"br", "li"})

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._link: tuple[int, str] | None = None
        self._passed_over: list[str] = []  # open tags of a "RE: address", which servers put in for a quoted status

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if "quote-inline" in (attributes.get("class") or "").split():
            self._passed_over = [tag]
        elif tag in self._passed_over:
            self._passed_over.append(tag)
        elif tag in self.BREAKS:
            self._add("\n")
        elif tag in self.PARAGRAPHS:
            self._add("\n\n")
        elif tag == "a":
            self._link = len(self.parts), attributes.get("href") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag in self._passed_over:
            self._passed_over.pop()
        elif tag in self.PARAGRAPHS:
            self._add("\n\n")
        elif tag == "a" and self._link:
            start, address = self._link
            self.parts[start:] = [_link_text("".join(self.parts[start:]), address)]
            self._link = None

    def handle_data(self, data: str) -> None:
        self._add(data)

    def _add(self, text: str) -> None:
        if not self._passed_over:
            self.parts.append(text)


def _link_text(shown: str, address: str) -> str:
    """The whole address where a link shows it, cut or not; the link's words where it shows words."""
    shows_address = "." in shown and not re.search(r"\s|^[@#]", shown.strip())
    return address if shows_address and address.startswith(("https://", "http://")) else shown


def _reason_to_leave_out(status: dict[str, Any], account: dict[str, Any]) -> str | None:
    if status.get("visibility") != "public" or status.get("local_only"):
        return PROTECTED
    if account.get("suspended"):
        return WITHHELD
    profile = account.get("note")
    if account.get("noindex") or (isinstance(profile, str) and _OPT_OUT.search(plain_text(profile))):
        return OPTED_OUT
    return None


def _photos(attachments: object) -> Iterator[PostImage]:
    for attachment in attachments if isinstance(attachments, list) else []:
        if isinstance(attachment, dict) and attachment.get("type") == "image":
            url, alt_text = attachment.get("url") or attachment.get("remote_url"), attachment.get("description")
            if isinstance(url, str):
                yield PostImage(storable(url), storable(alt_text) if isinstance(alt_text, str) and alt_text else None)
