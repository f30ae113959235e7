"""A WebSocket's messages in batches, with a sign of life each second."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from data_prep.sources.waiting import STEP_SECONDS

BATCH_MESSAGES = 200
MOST_MESSAGE_BYTES = 16 << 20
"""Well above the size of any post: a message above the limit ends the connection, and would do so again and again."""


def open_websocket(address: str, token: str | None = None) -> AbstractContextManager[ClientConnection]:
    """A connection to ``address``, as a context manager; pings tell when the other side is gone."""
    return connect(
        address,
        additional_headers={"Authorization": f"Bearer {token}"} if token else None,
        user_agent_header="msb-ner",
        max_size=MOST_MESSAGE_BYTES,
        close_timeout=1,
    )


def message_batches(connection: ClientConnection, silence_seconds: float = math.inf) -> Iterator[list[bytes]]:
    """Messages as they come, a list a second or oftener; empty when nothing came.

    Never ends by itself: ConnectionClosed when the connection does, TimeoutError after ``silence_seconds`` without a
    message.
    """
    closed: ConnectionClosed | None = None
    heard_at = time.monotonic()
    while closed is None:
        messages: list[bytes] = []
        ends_at = time.monotonic() + STEP_SECONDS
        while len(messages) < BATCH_MESSAGES:
            try:
                messages.append(connection.recv(timeout=max(0.0, ends_at - time.monotonic()), decode=False))
            except TimeoutError:
                break
            except ConnectionClosed as error:
                closed = error
                break
        yield messages
        if messages:
            heard_at = time.monotonic()
        elif time.monotonic() - heard_at > silence_seconds:
            raise TimeoutError(f"no message for {silence_seconds:.0f} s")
    raise closed
