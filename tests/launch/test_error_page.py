"""The error browser: what its pages hold, and, in a real browser, what its filters show."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser
from test_report import ATTACK, Page, Run, source

import launch.report as report
from launch.errors import InputError

BREAKS_OUT = "</script><script>document.title='broken'</script><!--<script>"
WORDS = ("Anna", "in", "New", "York", "City", BREAKS_OUT)
GOLD = ("B-PER", "O", "B-LOC", "I-LOC", "I-LOC", "O")
PREDICTIONS = {
    "right": GOLD,
    "missed": ("O", "O", *GOLD[2:]),
    "spurious": (*GOLD[:5], "B-MISC"),
    "type": ("B-ORG", *GOLD[1:]),
    "boundary": (*GOLD[:4], "O", "O"),
    "both": ("B-PER", "O", "B-ORG", "I-ORG", "O", "O"),
}
TESTED = [*PREDICTIONS, "missed", "type"]
"""What the run with image words does with each test tweet."""
WITHOUT = ["type", "right", "spurious", "right", "boundary", "right", "both", "type"]
MANY = 230


def row(identity: str, predicted: str, words: tuple[str, ...] = ()) -> dict:
    tags = {"gold": [*GOLD], "predicted": [*PREDICTIONS[predicted]]}
    return {"id": identity, "tokens": [*WORDS], **tags, "image_id": "1", "image_words": [*words]}


def write(run: Run, name: str, split: str, rows: list[dict]) -> None:
    (run.folder / name / "predictions").mkdir(exist_ok=True)
    lines = "".join(json.dumps(one) + "\n" for one in rows)
    (run.folder / name / "predictions" / f"{split}.jsonl").write_text(lines)


def family(folder: Path) -> Run:
    """A system with and without image words; validation has `MANY` tweets with an entity missed."""
    run = Run(folder / "my_run")
    data, encoder = run.data(), source("hub:google/bert-tiny@abc")
    for name, image_words, tests, words in (
        ("with words", "given", TESTED, ("skyline", ATTACK)),
        ("without", "none", WITHOUT, ()),
    ):
        run.ner(name, data, encoder, 0.7, 1, image_words)
        write(run, name, "test", [row(f"test:{n}", kind, words) for n, kind in enumerate(tests)])
        kinds = ["right"] * 20 + ["missed"] * MANY
        write(run, name, "validation", [row(f"valid:{n}", kind, words) for n, kind in enumerate(kinds)])
    return run


def write_pages(run: Run) -> dict[str, Path]:
    output = report.write_report(run.folder, run.stages, run.folder / "report.html", "A title")
    return {page.stem: page for page in output.with_name("report_errors").iterdir()}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    return write_pages(family(tmp_path_factory.mktemp("pages")))


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture
def opened(browser: Browser, pages: dict[str, Path]) -> Iterator[Browser]:
    browser.errors.clear()
    browser.open(pages["with words"])
    yield browser
    assert browser.errors == []


def choose(browser: Browser, **filters: str) -> tuple[str, int]:
    """Set filters as a reader does, and return the count that is told and that of the tweets shown."""
    for name, value in filters.items():
        browser.run(
            f"""(() => {{
                const [name, value] = {json.dumps([name, value])};
                const field = document.querySelector(`[name="${{name}}"][value="${{value}}"]`);
                if (field) return field.click();
                const entered = document.querySelector(`[name="${{name}}"]`);
                entered.value = value;
                entered.dispatchEvent(new Event('input', {{bubbles: true}}));
            }})()"""
        )
    return told(browser)


def told(browser: Browser) -> tuple[str, int]:
    return tuple(
        browser.run("[document.getElementById('count').textContent, document.querySelectorAll('.tweet').length]")
    )


def test_the_report_links_a_page_for_each_run(pages):
    folder = pages["without"].parents[1]
    links = re.findall(r'href="([^#"]*)"', (folder / "report.html").read_text())
    assert links == ["report_errors/with%20words.html", "report_errors/without.html"]
    for name, page in pages.items():
        html = page.read_text()
        assert f"Errors of {name}" in html and 'href="../report.html"' in html
        assert "http://" not in html and "/secret/" not in html and "url(" not in html


def test_pages_of_runs_that_are_gone_go_too(tmp_path):
    run = family(tmp_path)
    assert set(write_pages(run)) == {"with words", "without"}
    shutil.rmtree(run.folder / "with words")
    assert set(write_pages(run)) == {"without"}


def test_words_of_a_tweet_cannot_leave_their_element(pages):
    html = pages["with words"].read_text()
    page = Page(html)
    data, script = page.scripts
    assert BREAKS_OUT in json.loads(data)["tweets"][0]["tokens"]
    assert html.count("<script") == html.count("</script") == 2 and "<!--" not in html
    assert "script-src 'sha256-" in html and "default-src 'none'" in html
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "innerHTML" not in script


def test_runs_without_errors_or_predictions_bear_a_report(tmp_path):
    run = Run(tmp_path / "my_run")
    data = run.data()
    run.ner("right", data, source("hub:x"), 0.7, 1)
    run.ner("untold", data, source("hub:y"), 0.7, 1)
    write(run, "right", "test", [row("a", "right")])
    assert [*write_pages(run)] == ["right"]


@pytest.mark.parametrize(
    "break_row",
    [
        lambda one: one["predicted"].pop(),
        lambda one: one.pop("gold"),
        lambda one: one.update(id="other"),
        lambda one: one["tokens"].__setitem__(0, "Hanna"),
    ],
)
def test_predictions_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, break_row):
    run = family(tmp_path)
    rows = [row(f"test:{n}", kind) for n, kind in enumerate(WITHOUT)]
    break_row(rows[1])
    write(run, "without", "test", rows)
    with pytest.raises(InputError, match=r"without/predictions/test\.jsonl:2: "):
        write_pages(run)
    assert not (run.folder / "report.html").exists() and not (run.folder / "report_errors").exists()


def test_fewer_tweets_than_the_other_run_are_refused(tmp_path):
    run = family(tmp_path)
    write(run, "without", "test", [row("test:0", "right")])
    with pytest.raises(InputError, match=r"test\.jsonl: (1 tweets, but 8|8 tweets, but 1)"):
        write_pages(run)


def test_many_tweets_are_shown_by_hundreds(opened):
    assert told(opened) == (f"{MANY} errors in {MANY} of {MANY + 20} tweets", 100)
    opened.run("document.getElementById('more').focus()")
    opened.press("Enter")
    assert told(opened)[1] == 200
    # The first of the new ones has the focus: reading goes on where it ended.
    assert opened.run("[...document.querySelectorAll('.tweet')].indexOf(document.activeElement)") == 100
    opened.press("Tab", "Enter")
    assert told(opened)[1] == MANY and opened.run("document.getElementById('more').hidden")


@pytest.mark.parametrize(
    ("filters", "errors", "tweets"),
    [
        ({}, 7, 7),
        ({"kind": "missed"}, 2, 2),
        ({"kind": "wrong type"}, 2, 2),
        ({"kind": "wrong boundary"}, 1, 1),
        ({"kind": "wrong boundary and type"}, 1, 1),
        ({"kind": "spurious"}, 1, 1),
        ({"type": "PER"}, 4, 4),
        ({"type": "ORG"}, 3, 3),
        ({"type": "ORG", "gold": "LOC"}, 1, 1),
        ({"predicted": "ORG"}, 3, 3),
        ({"gold": "PER", "predicted": "ORG"}, 2, 2),
        ({"gold": "PER", "kind": "missed"}, 2, 2),
        ({"image": "helped"}, 1, 1),
        ({"image": "hurt"}, 3, 3),
        ({"image": "neither"}, 4, 4),
        ({"image": "hurt", "kind": "missed"}, 1, 1),
        ({"image": "helped", "type": "MISC"}, 0, 0),
        ({"text": "NEW york"}, 7, 7),
        ({"text": "test:3"}, 1, 1),
        ({"text": "skyline"}, 7, 7),
        ({"text": "nowhere"}, 0, 0),
    ],
)
def test_filters(opened, filters, errors, tweets):
    noun = "error" if errors == 1 else "errors"
    assert choose(opened, split="test", **filters) == (f"{errors} {noun} in {tweets} of 8 tweets", tweets)


def test_kinds_add_up_and_reset_takes_all_back(opened):
    assert choose(opened, split="test", kind="missed")[1] == 2
    assert choose(opened, kind="spurious")[1] == 3
    assert choose(opened, split="")[0] == f"{MANY + 3} errors in {MANY + 3} of {MANY + 28} tweets"
    opened.run("document.querySelector('[type=reset]').click(), new Promise(done => setTimeout(done, 20))")
    assert told(opened)[0].startswith(f"{MANY} errors")


def test_the_other_runs_page_tells_the_same_of_the_image(browser, pages):
    browser.open(pages["without"])
    assert choose(browser, split="test", image="helped")[1] == 1
    assert browser.run("document.querySelector('.tweet .verdict').textContent") == "test:0"
    assert choose(browser, image="hurt")[1] == 3
    assert "errors of with words" in browser.run("document.querySelector('.tweet .verdict').textContent")


def test_each_number_of_a_table_finds_as_many_errors(opened):
    wrong = opened.run(
        """[...document.querySelectorAll('[data-kinds]')].filter(button => {
            button.click();
            const [count] = document.getElementById('count').textContent.split(' ');
            return count !== button.textContent.trim();
        }).map(button => button.getAttribute('aria-label'))"""
    )
    assert wrong == []
    assert opened.run("document.querySelectorAll('[data-kinds]').length") > 20


def test_keys_alone_set_the_filters(opened):
    opened.run("document.querySelector('[name=split]').focus()")
    opened.press("ArrowRight")
    assert told(opened) == ("7 errors in 7 of 8 tweets", 7)
    opened.press("Tab", " ")
    assert told(opened) == ("2 errors in 2 of 8 tweets", 2)
    assert opened.run("document.activeElement.value") == "missed"


def test_texts_are_shown_as_texts_and_entities_are_marked(opened):
    choose(opened, split="test", kind="wrong boundary")
    assert opened.run("document.title") == "Errors of with words"
    shown = opened.run("document.querySelector('.tweet .text').textContent")
    assert BREAKS_OUT in shown
    assert ATTACK in opened.run("document.querySelector('.tweet .words').textContent")
    errors = opened.run("[...document.querySelectorAll('.tweet .errors li')].map(item => item.textContent)")
    assert errors == ["wrong boundary New York City LOC → New York LOC"]
    marked = opened.run(
        "['.g.in', '.p0.in', '.p0.bad', '.p1.in'].map(name => [...document.querySelectorAll('.tweet .token')]"
        ".filter(token => token.querySelector(name)).map(token => token.querySelector('bdi').textContent).join(' '))"
    )
    assert marked == ["Anna New York City", "Anna New York", "New York", "Anna New York"]
