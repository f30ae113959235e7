"""A Mastodon server's stream of public posts, or of those of a hashtag.

It comes over a WebSocket, as Mastodon's own web app takes it. Mastodon.py's streams are not used: they stop at an event
that they cannot read, such as the plain ids that other software than Mastodon sends for deletions, their waits cannot be
ended, and some software has no other streams than these.

The position is `newest`, the `id` of the last status. When the stream is connected, what came since then is got from the
timeline, page by page while the stream goes on, until the pages are empty or hold what the stream had, too.

Events that make no post are counted in `passed_over`: edits (`status.update`) and deletions, which are *not* applied to
what is stored, and others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection

from data_prep.posts import Post
from data_prep.sources.live import Fetched
from data_prep.sources.mastodon_posts import source_of
from data_prep.sources.mastodon_timeline import Server, ids_of, rewound
from data_prep.sources.messages import message_batches, open_websocket
from data_prep.sources.social import json_object, unreadable_post
from data_prep.sources.waiting import Backoff, cause_of

BEFORE_ALL = "0"
"""An id that is below all others."""

logger = logging.getLogger("msb_ner")


class Stream:
    """The posts that a server gets to know from now on, or from a position on."""

    endless = True

    def __init__(self, server: Server) -> None:
        self.passed_over = server.passed_over
        self._server = server

    def fetch(self, position: dict[str, Any] | None) -> Iterator[Fetched]:
        """Posts as they come, without end; before them what came since ``position``, or the timeline's first page."""
        # Before anything else a page, which tells whether the server is there, and takes the key.
        after = {"min_id": rewound(position["newest"])} if position else {}
        page = yield from self._server.page(**after)
        newest = ids_of(page)[0] if page else after.get("min_id", BEFORE_ALL)
        yield Fetched(self._server.posts(page), {"newest": newest})
        backoff = Backoff()
        while True:
            address = f"{self._server.streaming_address()}/api/v1/streaming?{self._stream_name()}"
            try:
                with open_websocket(address, self._server.token) as connection:
                    logger.info("connected to %s", address)
                    for fetched in self._follow(connection, newest):
                        if fetched.position:
                            newest = rewound(fetched.position["newest"])
                            backoff.reset()
                        yield fetched
            except InvalidStatus as error:
                status = error.response.status_code
                if 400 <= status < 500 and status != 429:
                    raise self._server.refusal(f"{status} {error.response.reason_phrase}") from None
                problem = f"{address} answers {status}"
            except (OSError, WebSocketException) as error:
                problem = f"{address}: {cause_of(error)}"
            yield from self._server.wait_out(problem, backoff.delay())

    def _follow(self, connection: ClientConnection, newest: str) -> Iterator[Fetched]:
        """What comes through the connection, and meanwhile what the timeline has above ``newest``."""
        is_behind, streamed = True, set()
        for messages in message_batches(connection):
            statuses, unreadable = self._read(messages)
            ids = ids_of(statuses)
            if is_behind:
                streamed.update(ids)
                page = yield from self._server.page(min_id=newest)
                fresh = [status for status in page if not streamed.intersection(ids_of([status]))]
                is_behind = len(fresh) > len(page) / 2  # one or two may also be late ones of other servers
                statuses, ids = statuses + fresh, ids_of(page)[:1]
            newest = ids[-1] if ids else newest
            yield Fetched(self._server.posts(statuses) + unreadable, {"newest": newest})

    def _read(self, messages: list[bytes]) -> tuple[list[object], list[Post]]:
        """The statuses of messages, and the rejected posts of those that cannot be read."""
        statuses, unreadable = [], []
        for message in messages:
            event = json_object(message)
            if event is None:
                unreadable.append(unreadable_post(message, source_of(self._server.settings.host)))
            elif "error" in event:
                raise self._server.refusal(str(event["error"]))
            elif event.get("event") != "update":
                self.passed_over[f"event {event.get('event')}"] += 1
            elif (status := json_object(str(event.get("payload")))) is None:
                unreadable.append(unreadable_post(message, source_of(self._server.settings.host)))
            else:
                statuses.append(status)
        return statuses, unreadable

    def _stream_name(self) -> str:
        settings = self._server.settings
        name = "hashtag" if settings.tag else "public"
        if settings.posts_of != "all":
            name += f":{settings.posts_of}"
        return urlencode({"stream": name} | ({"tag": settings.tag} if settings.tag else {}))
