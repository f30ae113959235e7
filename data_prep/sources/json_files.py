"""Posts in JSON: one object a line, or a list, or one indented object after another.

An object is told by its keys: a tweet of X's API v1.1, a page or a tweet of v2, or a post with the keys of our own
`posts` data set, of which `text` is needed.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from itertools import chain
from typing import Any

from data_prep.posts import EMPTY, NOT_A_POST, NOT_JSON, NOT_UTF8, Post, storable
from data_prep.sources.members import LONGEST_LINE, Member
from data_prep.sources.post_fields import post_of_fields
from data_prep.sources.x_json import STREAM_MESSAGES, UNKNOWN_ID, post_of_v1, posts_of_v2

V1_KEYS = frozenset("full_text id_str retweeted_status extended_tweet".split())
V2_KEYS = frozenset(
    "edit_history_tweet_ids referenced_tweets note_tweet attachments conversation_id public_metrics".split()
)

UNREADABLE = (ValueError, RecursionError, ArithmeticError)
"""What `json.loads` raises; ArithmeticError is for exponents too large for a Decimal."""


def read_json_lines(member: Member, blocks: Iterator[bytes] | None = None) -> Iterator[Post]:
    """The posts of a file with a JSON object a line. A line that is none gives one with a ``problem``."""
    number = 0
    for block in member.line_blocks(blocks):
        for line in block.split(b"\n")[:-1]:
            number += 1
            yield from _posts_of_line(line, f"{member.stem}:{number}", member.name)


def read_json(member: Member) -> Iterator[Post]:
    """The posts of a `.json` file: JSON lines, a list, or indented objects.

    InputError if a list or an indented object is broken: what comes after the break cannot be told.
    """
    blocks = member.blocks()
    first = next(blocks, b"")
    blocks = chain([first], blocks)
    if not re.match(rb"\s*(?:\[|\{\s*\n)", first):
        yield from read_json_lines(member, blocks)
        return
    for number, (value, text) in enumerate(_json_values(member, blocks), start=1):
        yield from posts_of_value(value, text, f"{member.stem}:{number}", member.name)


def posts_of_value(value: Any, text: str, place: str, source: str) -> list[Post]:
    """The posts of a JSON value whose JSON is ``text``; those without an id of their own get ``place`` as theirs.

    ``source`` is that of posts which name none and are not X's.
    """
    if not isinstance(value, dict):
        return [Post(place, storable(text), source=source, problem=NOT_A_POST)]
    if _is_page(value):
        posts = posts_of_v2(value)
        if not posts and "data" not in value and "meta" not in value:  # a stream's message that it has an error
            posts = [Post(place, storable(text), source="x", problem=NOT_A_POST)]
    elif isinstance(value.get("user"), dict) or not V1_KEYS.isdisjoint(value) or _is_stream_message(value):
        posts = [post_of_v1(value)]
    elif not V2_KEYS.isdisjoint(value):
        posts = posts_of_v2({"data": value})
    elif isinstance(value.get("text"), str):
        posts = [post_of_fields(value, place, source)]
    else:
        posts = [Post(place, storable(text), source=source, problem=NOT_A_POST)]
    places = [place] if len(posts) == 1 else [f"{place}.{number}" for number in range(1, len(posts) + 1)]
    return [
        replace(post, id=place) if post.id.startswith(UNKNOWN_ID) else post
        for post, place in zip(posts, places, strict=True)
    ]


def _is_page(value: dict[str, Any]) -> bool:
    """Whether an object is a page of X's API v2, to which what stored it may have added keys of its own."""
    meta = value.get("meta")
    return "text" not in value and (
        isinstance(value.get("data"), list | dict)
        or isinstance(value.get("includes"), dict)
        or isinstance(value.get("errors"), list)
        or (isinstance(meta, dict) and "result_count" in meta)
    )


def _is_stream_message(value: dict[str, Any]) -> bool:
    return "text" not in value and not value.keys().isdisjoint(STREAM_MESSAGES)


def _posts_of_line(line: bytes, place: str, source: str) -> list[Post]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return [Post(place, line.decode("utf-8", "backslashreplace"), source=source, problem=NOT_UTF8)]
    if not text.strip():
        return [Post(place, text, source=source, problem=EMPTY)]
    try:
        value = json.loads(text, parse_float=Decimal)
    except UNREADABLE:
        return [Post(place, text, source=source, problem=NOT_JSON)]
    return posts_of_value(value, text, place, source)


def _json_values(member: Member, blocks: Iterator[bytes]) -> Iterator[tuple[Any, str]]:
    """The values of a list, or that follow each other, with their JSON; holds one of them in memory, and a block."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    parse = json.JSONDecoder(parse_float=Decimal).raw_decode
    between = re.compile(r"[\s,\[\]]*")
    text, position, number, last = "", 0, 0, ""
    is_list = at_end = False
    while not at_end:
        block = next(blocks, b"")
        # Twice as much at each try, or a long value would be parsed over and over again.
        while block and len(block) < len(text) - position:
            more = next(blocks, b"")
            block += more
            if not more:
                break
        at_end = not block
        text, position = text[position:] + decode(block, final=at_end), 0
        while True:
            start = between.match(text, position).end()
            last = text[position:start].strip() or last
            is_list = is_list or (number == 0 and last.startswith("["))
            position = start
            if position == len(text):
                break
            try:
                value, end = parse(text, position)
            except UNREADABLE as error:
                if at_end or len(text) - position > LONGEST_LINE:
                    reason = getattr(error, "msg", error)
                    problem = f"broken JSON in value {number + 1}, or it has over {LONGEST_LINE >> 20} MB ({reason})"
                    raise member.error(
                        None, problem, "Give an object a line, so that a broken one costs no other."
                    ) from None
                break
            if end == len(text) and not at_end:  # a number may go on in the next block
                break
            number += 1
            yield value, text[position:end]
            position, last = end, ""
    if is_list and not last.endswith("]"):
        raise member.error(None, f"a JSON list that ends after its value {number}, without ]", "Get the file again.")
