"""X's recent and full-archive search, walked backwards page by page, so that it can be gone on with.

X gives the newest posts first, in pages. A *walk* goes from the newest post down to a lower end. Its position says:

* `since_id`: the lower end. Posts up to it are there from earlier walks, or were never wanted. None: as far as X reaches.
* `open`: whether the walk is unfinished. Only then do the others mean anything:
* `newest`: the newest post that the walk found;
* `oldest`: the oldest one so far;
* `next_token`: X's name for the next page, which is of the search between `since_id` and `until_id`.

A run that finds an open walk finishes it first, so that never more than one stretch is missing. Then, and in a run that
finds none, it walks from the newest post of all down to `since_id`. A finished walk's `newest` is the next one's
`since_id`. So nothing is left out between walks, and nothing is asked for twice, but for pages whose posts were not
stored before a crash.

X may refuse a `next_token` it gave long ago. Then the walk goes on with a search of its own below its `oldest` post
(`until_id`). Recent search reaches back seven days, and refuses older ends: a lower end that is too old is left out (the
gap is told once in the log); a walk whose oldest post is too old is finished.

The ends are ids, never times, since X does not take both in one search. Ids since November 2010 carry their time.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

from data_prep.sources.live import Fetched
from data_prep.sources.x_api import FIELDS, SOURCE, Refused, XApi
from data_prep.sources.x_json import posts_of_v2

FIRST_ID_WITH_TIME = datetime.fromtimestamp(1288834974.657, timezone.utc)
"""Ids hold the milliseconds since this moment, shifted by 22 bits."""

ARCHIVE_DAYS = 30
"""What full-archive search goes back where no lower end is given."""

ARCHIVE_PAUSE_SECONDS = 1.0
"""Full-archive search takes one request a second, and its headers do not tell."""

logger = logging.getLogger("msb_ner")


@dataclass(frozen=True)
class Search:
    """A search for ``query``, for posts from ``since`` and before ``before``, ``page_size`` posts a request."""

    endless = False

    api: XApi
    endpoint: Literal["recent", "all"]
    query: str
    since: datetime | None
    before: datetime | None
    page_size: int

    def fetch(self, position: dict[str, Any] | None) -> Iterator[Fetched]:
        """The rest of an interrupted walk, if there is one, then what is newer. See the module's docstring."""
        here = _Position(**position) if position else _Position(since_id=self._first_since_id())
        if here.open:
            here = yield from self._walk(here)
        since_id, until_id = here.since_id, self._first_until_id()
        if since_id is None or until_id is None or int(since_id) < int(until_id):
            yield from self._walk(_Position(since_id, open=True, until_id=until_id))

    def _walk(self, here: _Position) -> Generator[Fetched, None, _Position]:
        client = self.api.client
        call = client.search_recent_tweets if self.endpoint == "recent" else client.search_all_tweets
        while here.open:
            try:
                page = yield from self.api.ask(call, **self._parameters(here))
            except Refused as refusal:
                here = self._position_after_refusal(here, refusal)
                yield Fetched(position=asdict(here))
                continue
            here = _position_after(here, page)
            yield Fetched(posts_of_v2(page, SOURCE), asdict(here))
            if self.endpoint == "all":
                yield from self.api.wait(ARCHIVE_PAUSE_SECONDS)
        return here

    def _parameters(self, here: _Position) -> dict[str, Any]:
        ends = {"since_id": here.since_id, "until_id": here.until_id, "next_token": here.next_token}
        given = {name: value for name, value in ends.items() if value is not None}
        return {"query": self.query, "max_results": self.page_size, "sort_order": "recency", **FIELDS, **given}

    def _position_after_refusal(self, here: _Position, refusal: Refused) -> _Position:
        """How to go on where X takes no longer what the position says; raises the refusal if that is not why."""
        below_oldest = replace(here, until_id=here.oldest or here.until_id, next_token=None)
        if refusal.status == 400 and self.endpoint == "recent":
            if here.since_id is not None and "since_id" in str(refusal):
                logger.warning(
                    "recent search reaches back 7 days: posts between id %s and then are out of its reach "
                    "(--endpoint all has them)",
                    here.since_id,
                )
                return replace(below_oldest, since_id=None)
            if here.until_id is not None and here.until_id == here.oldest and "until_id" in str(refusal):
                logger.warning(
                    "recent search reaches back 7 days: posts before id %s are out of its reach", here.oldest
                )
                return _finished(here)
        if refusal.status == 400 and here.next_token is not None:
            logger.info("X takes the page's token no longer; going on below id %s", below_oldest.until_id)
            return below_oldest
        raise refusal

    def _first_since_id(self) -> str | None:
        if self.since is not None:
            return str(_first_id_at(self.since) - 1)
        if self.endpoint == "all":  # X's own default moves with the clock, and does not hold beside an `until_id`
            return str(_first_id_at(self._now() - timedelta(days=ARCHIVE_DAYS)))
        return None

    def _first_until_id(self) -> str | None:
        return str(_first_id_at(self.before)) if self.before is not None and self.before < self._now() else None

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.api.clock(), timezone.utc)


@dataclass(frozen=True)
class _Position:
    since_id: str | None
    open: bool = False
    until_id: str | None = None
    newest: str | None = None
    oldest: str | None = None
    next_token: str | None = None


def _position_after(here: _Position, page: dict[str, Any]) -> _Position:
    meta = page["meta"]
    here = replace(
        here,
        newest=here.newest or meta.get("newest_id"),
        oldest=meta.get("oldest_id") or here.oldest,
        next_token=meta.get("next_token"),
    )
    return here if here.next_token else _finished(here)


def _finished(here: _Position) -> _Position:
    return _Position(since_id=here.newest or here.since_id)


def _first_id_at(moment: datetime) -> int:
    return (moment - FIRST_ID_WITH_TIME) // timedelta(milliseconds=1) << 22
