import copy
import json
from collections import Counter
from datetime import datetime, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.posts import EMPTY, NOT_A_POST, NOT_UTF8, PROTECTED, WITHHELD, Post
from data_prep.sources.post_fields import ROUNDED_ID, id_of, images_of, is_rounded, moment_of
from data_prep.sources.x_json import NOT_FOUND, UNKNOWN_ID, post_of_v1, posts_of_v2


def photo(name, kind="photo", **more):
    return {"type": kind, "media_url_https": f"https://pbs.twimg.com/media/{name}.jpg", **more}


def v1(text="Jordan at last", own_id="153928603371978755", **more):
    return {"id_str": own_id, "text": text, "user": {"id_str": "28", "screen_name": "ann", "protected": False}, **more}


def urls(post):
    return [image.url.rpartition("/")[2] for image in post.images]


def test_v1_plain():
    tweet = v1("R&amp;D &lt;3", lang="EN", created_at="Mon Jan 02 20:00:13 +0000 2012", id=153928603371978760)
    expected = datetime(2012, 1, 2, 20, 0, 13, tzinfo=timezone.utc)
    assert post_of_v1(tweet) == Post("153928603371978755", "R&D <3", "en", expected, "x", "28")


@pytest.mark.parametrize("form", [{"full_text": "long"}, {"extended_tweet": {"full_text": "long"}}])
def test_v1_full_text(form):
    assert post_of_v1(v1("lo…", truncated=True) | form).text == "long"
    retweet = v1("RT @bob: lo…", retweeted_status=v1("lo…", "1") | form)
    assert post_of_v1(retweet).text == "RT @bob: long"
    retweet["text"] = "lo…"  # without the prefix the name comes from the original
    assert post_of_v1(retweet).text == "RT @ann: long"
    assert post_of_v1(retweet).id == "153928603371978755"


@pytest.mark.parametrize("lang", ["und", "qme", "zxx", "", None, 5])
def test_no_language(lang):
    assert post_of_v1(v1(lang=lang)).lang is None
    assert posts_of_v2({"data": {"id": "1", "text": "a", "lang": lang}})[0].lang is None


def test_v1_photos():
    # `entities` has the first photo only, and calls videos photos.
    two = {
        "entities": {"media": [photo("a")]},
        "extended_entities": {"media": [photo("a", ext_alt_text="A"), photo("b")]},
    }
    post = post_of_v1(v1(**two))
    assert urls(post) == ["a.jpg", "b.jpg"]
    assert [image.alt_text for image in post.images] == ["A", None]
    assert urls(post_of_v1(v1(entities={"media": [photo("a")]}))) == ["a.jpg"]
    video = {"entities": {"media": [photo("v")]}, "extended_entities": {"media": [photo("v", "video")]}}
    assert urls(post_of_v1(v1(**video))) == []
    thumb = photo("v") | {"media_url_https": "https://pbs.twimg.com/ext_tw_video_thumb/1/pu/img/v.jpg"}
    assert urls(post_of_v1(v1(entities={"media": [thumb]}))) == []
    assert urls(post_of_v1(v1(extended_tweet={"full_text": "long", **two}))) == ["a.jpg", "b.jpg"]
    retweet = v1("RT @bob: a", retweeted_status=v1("a", "1", extended_tweet={"full_text": "all", **two}))
    assert urls(post_of_v1(retweet)) == ["a.jpg", "b.jpg"]
    assert urls(post_of_v1(retweet | two)) == ["a.jpg", "b.jpg"]  # once, though both have them


@pytest.mark.parametrize(
    ("own_id", "digits"),
    [
        (153928603371978755, "153928603371978755"),
        (12345.0, "12345"),
        (float(2**53 - 1), str(2**53 - 1)),
        (float(2**53), None),
        (1.5392860337197876e17, None),
        (Decimal("153928603371978755.0"), "153928603371978755"),  # all digits, and no double
        (Decimal("1.53928603371978755E+17"), "153928603371978755"),
        (Decimal("1.5392860337197876E+17"), None),  # a digit is missing
        (Decimal("153928603371978752.0"), None),  # what a double would show
        (Decimal("1e999999999"), None),
        (float("inf"), None),
        (1.5, None),
        (-1.0, None),
    ],
)
def test_ids_from_numbers(own_id, digits):
    assert id_of(own_id) == digits
    assert is_rounded(own_id) == (digits is None)
    tweet = v1() | {"id": own_id}
    assert post_of_v1(tweet).id == "153928603371978755"  # `id_str` is better
    del tweet["id_str"]
    post = post_of_v1(tweet)
    assert post.problem == (None if digits else ROUNDED_ID)
    assert post.id == digits if digits else post.id.startswith(UNKNOWN_ID)
    assert post.text == "Jordan at last"


@pytest.mark.parametrize("own_id", [None, True, [], {}, "", float("nan")])
def test_no_id(own_id):
    tweet = v1() | {"id": own_id, "id_str": None}
    post = post_of_v1(tweet)
    assert post.id.startswith(UNKNOWN_ID) and post.problem is None
    assert post_of_v1(tweet).id == post.id != post_of_v1(tweet | {"text": "other"}).id


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"user": {"protected": True}}, PROTECTED),
        ({"withheld_in_countries": ["DE"]}, WITHHELD),
        ({"withheld_in_countries": []}, None),
        ({"withheld_copyright": True}, WITHHELD),
        ({"withheld_scope": "status"}, WITHHELD),
        ({"user": {"withheld_in_countries": ["XX"]}}, WITHHELD),
        ({"retweeted_status": v1("a", "1", withheld_copyright=True)}, WITHHELD),
        ({"text": "half a pair: \ud83d"}, NOT_UTF8),
        ({"text": ""}, EMPTY),
        ({"text": None}, NOT_A_POST),
        ({"text": ["a"]}, NOT_A_POST),
        ({"user": "ann"}, NOT_A_POST),
        ({"entities": {"media": "x"}}, NOT_A_POST),
        ({"user": None, "entities": None, "extended_entities": None, "extended_tweet": None}, None),
    ],
)
def test_v1_problems(change, problem):
    post = post_of_v1(v1() | change)
    assert post.problem == problem
    post.text.encode()


@pytest.mark.parametrize(
    "message",
    [
        {"delete": {"status": {"id": 12, "id_str": "12", "user_id": 3}, "timestamp_ms": "1"}},
        {"limit": {"track": 5}},
        {"scrub_geo": {"user_id": 1, "up_to_status_id": 2}},
        {"status_withheld": {"id": 1, "user_id": 2, "withheld_in_countries": ["DE"]}},
        {"disconnect": {"code": 4, "reason": ""}},
    ],
)
def test_stream_messages(message):
    post = post_of_v1(message)
    assert post.problem == f"stream message: {next(iter(message))}"
    assert json.loads(post.text) == message
    assert post.id.startswith(UNKNOWN_ID)  # not the tweet's it is about


PAGE = {
    "data": [
        {"id": "1", "text": "RT @bob: lo…", "author_id": "10", "referenced_tweets": [{"type": "retweeted", "id": "9"}]},
        {
            "id": "2",
            "text": "shor…",
            "note_tweet": {"text": "all &amp; everything"},
            "author_id": "11",
            "lang": "en",
            "created_at": "2021-09-22T16:37:29.000Z",
            "attachments": {"media_keys": ["3_1", "7_1", "3_2", "3_404"]},
            "edit_history_tweet_ids": ["0", "2"],
            "referenced_tweets": [{"type": "quoted", "id": "9"}],
        },
        {"id": "3", "text": "hidden", "author_id": "12"},
        {"id": "4", "text": "kept from some", "author_id": "11", "withheld": {"country_codes": ["DE"]}},
        {"id": "5", "text": "of a missing one", "referenced_tweets": [{"type": "retweeted", "id": "404"}]},
        "no tweet",
        {"id": "6"},
    ],
    "includes": {
        "users": [
            {"id": "10", "username": "ann"},
            {"id": "11", "username": "bob"},
            {"id": "12", "username": "eve", "protected": True},
        ],
        "tweets": [
            {
                "id": "9",
                "text": "lo…",
                "note_tweet": {"text": "long"},
                "author_id": "11",
                "attachments": {"media_keys": ["3_2"]},
            }
        ],
        "media": [
            {"media_key": "3_1", "type": "photo", "url": "https://pbs.twimg.com/media/a.jpg", "alt_text": "A"},
            {"media_key": "3_2", "type": "photo", "url": "https://pbs.twimg.com/media/b.jpg"},
            {"media_key": "7_1", "type": "video", "preview_image_url": "https://pbs.twimg.com/media/c.jpg"},
        ],
    },
    "errors": [
        {
            "resource_type": "tweet",
            "resource_id": "404",
            "parameter": "referenced_tweets.id",
            "title": "Not Found Error",
        },
        {"resource_type": "user", "resource_id": "13", "parameter": "ids"},
        {"resource_type": "tweet", "resource_id": "4", "parameter": "ids"},  # which is there
        {"resource_type": "tweet", "value": "20", "parameter": "ids", "detail": "Could not find tweet with ids: [20]."},
        {
            "resource_type": "tweet",
            "resource_id": "21",
            "parameter": "id",
            "type": "https://api.twitter.com/2/problems/not-authorized-for-resource",
        },
    ],
}


def test_v2_page():
    posts = posts_of_v2(PAGE)
    assert [(post.text, post.problem) for post in posts[:5]] == [
        ("RT @bob: long", None),
        ("all & everything", None),
        ("hidden", PROTECTED),
        ("kept from some", WITHHELD),
        ("of a missing one", None),
    ]
    assert [post.problem for post in posts[5:7]] == [NOT_A_POST] * 2
    assert [(post.id, post.problem) for post in posts[7:]] == [("20", NOT_FOUND), ("21", PROTECTED)]
    assert [urls(post) for post in posts[:3]] == [["b.jpg"], ["a.jpg", "b.jpg"], []]
    assert posts[1].images[0].alt_text == "A"
    assert posts[1].versions == ("0", "2")
    assert posts[1].created_at == datetime(2021, 9, 22, 16, 37, 29, tzinfo=timezone.utc)
    assert [post.author_id for post in posts[:3]] == ["10", "11", "12"]


def test_v2_flattened_by_twarc():
    """As `twarc2 flatten` writes it: what a tweet refers to is put into it."""
    original = PAGE["includes"]["tweets"][0] | {"attachments": {"media": [PAGE["includes"]["media"][1]]}}
    tweet = {
        "id": "1",
        "text": "RT @bob: lo…",
        "author": {"id": "10", "username": "ann", "protected": False},
        "author_id": "10",
        "attachments": {"media_keys": ["3_1"], "media": [PAGE["includes"]["media"][0], {}]},
        "referenced_tweets": [{"type": "retweeted", **original}],
        "__twarc": {"version": "2.12.1"},
    }
    [post] = posts_of_v2({"data": tweet})
    assert (post.text, urls(post)) == ("RT @bob: long", ["a.jpg", "b.jpg"])
    tweet["author"]["protected"] = True
    assert posts_of_v2({"data": tweet})[0].problem == PROTECTED


@pytest.mark.parametrize("page", [{}, {"meta": {"result_count": 0}}, {"data": []}, {"data": None}])
def test_v2_empty_pages(page):
    assert posts_of_v2(page) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
V1_WHOLE = v1(
    created_at="Mon Jan 02 20:00:13 +0000 2012",
    lang="en",
    retweeted_status=v1("a", "1", extended_tweet={"full_text": "long"}),
    extended_entities={"media": [photo("a")]},
    edit_history={"edit_tweet_ids": ["1", "2"]},
)


def changed(value, places, new):
    """A copy with something else in one place."""
    value = copy.deepcopy(value)
    holder = value
    while True:
        keys = sorted(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[next(places) % len(keys)]
        inside = holder[key]
        if not isinstance(inside, dict | list) or not inside or next(places) % 3 == 0:
            holder[key] = new
            return value
        holder = inside


@given(places=st.lists(st.integers(0, 99), min_size=40, max_size=40), new=json_values)
def test_anything_may_be_anywhere(places, new):
    for post in (post_of_v1(new), post_of_v1(changed(V1_WHOLE, iter(places), new))):
        post.text.encode()
        assert post.id
    page = changed(PAGE, iter(places), new)
    posts = posts_of_v2(page)
    if isinstance(page["data"], list):
        assert len(posts) >= len(page["data"])
    for post in posts:
        str(post.row()).encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2021-09-22T16:37:29.123Z", datetime(2021, 9, 22, 16, 37, 29, 123000, timezone.utc)),
        ("2021-09-22 18:37:29+02:00", datetime(2021, 9, 22, 16, 37, 29, tzinfo=timezone.utc)),
        ("2021-09-22", datetime(2021, 9, 22, tzinfo=timezone.utc)),
        ("Mon Jan 02 20:00:13 +0000 2012", datetime(2012, 1, 2, 20, 0, 13, tzinfo=timezone.utc)),
        ("Mon Jan 02 20:00:13 +0000 99999999999999999999", None),
        ("0001-01-01T00:00:00+10:00", None),
        ("yesterday", None),
        ("", None),
        (5, None),
    ],
)
def test_moments(text, expected):
    assert moment_of(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://a/b.jpg", ["https://a/b.jpg"]),
        ("https://a/b.jpg https://a/c.jpg", ["https://a/b.jpg", "https://a/c.jpg"]),
        ("my photos/b 1.jpg", ["my photos/b 1.jpg"]),
        ('["https://a/b.jpg", {"url": "c.jpg"}]', ["https://a/b.jpg", "c.jpg"]),
        ([{"url": "c.jpg", "alt_text": "C"}, {"url": None}, 3], ["c.jpg"]),
        ("[broken", []),
        ("", []),
        (None, []),
    ],
)
def test_images(value, expected):
    assert [image.url for image in images_of(value)] == expected


def test_real_page_of_v2(shared_data):
    page = json.loads((shared_data / "tweet_json/v2_twarc_csv/brexit.jsonl").read_text(encoding="utf-8"))
    posts = posts_of_v2(page)
    assert [post.id for post in posts] == [tweet["id"] for tweet in page["data"]]
    originals = {tweet["id"]: tweet["text"] for tweet in page["includes"]["tweets"]}
    references = [tweet.get("referenced_tweets", [{"type": None}]) for tweet in page["data"]]
    retweets = [(post, r[0]["id"]) for post, r in zip(posts, references, strict=True) if r[0]["type"] == "retweeted"]
    assert len(retweets) == 67
    for post, original in retweets:
        prefix, _, text = post.text.partition(": ")
        assert prefix.startswith("RT @") and "&amp;" not in text
        assert text == originals[original].replace("&amp;", "&").replace("&gt;", ">").replace("&lt;", "<")
    assert not any(post.text.endswith("…") for post, _ in retweets)
    assert Counter(post.lang for post in posts) == {"en": 92, "de": 4, None: 3, "es": 1}
