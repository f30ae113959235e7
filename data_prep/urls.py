"""Where the URLs of a post are: whole, without a scheme, glued to words, cut short by `…`, or split by a tokenizer.

The paper removes URLs and changes nothing else of the text (its section 4.1), so this errs on the side of leaving
text alone: a bare domain without a path (`gmail.com`) stays, and so do `e.g.`, `3.5` and `and/or`.
"""

from __future__ import annotations

import re
import unicodedata

# Characters of a URL after RFC 3986, without quotes, brackets and parentheses: posts put those around URLs. A URL
# ends where the next one begins: "http://t.co/ahttp://t.co/b" is two.
_NEXT = r"(?!https?:/)"
_CHARACTER = rf"(?:{_NEXT}[-A-Za-z0-9._~:/?#@!$&*+,;=%|]|\([A-Za-z0-9_-]*\))"
_REST = rf"{_CHARACTER}*(?<![.,;:!?*])"
# Twitter's shortener: at most ten letters and digits, then, seldom, a path. What is glued on after them is a word.
_T_CO = rf"t\.co/(?:{_NEXT}[A-Za-z0-9]){{1,10}}(?:/[A-Za-z0-9/_-]*)?"
_AFTER_BREAK = r"(?<![A-Za-z0-9@._-])"
_TOP_DOMAINS = r"com|net|org|co|ly|gl|gd|be|fm|tv"
_DOMAINS = rf"(?![A-Za-z0-9-]*pic\.twitter\.)(?:[A-Za-z0-9-]+\.)+(?:{_TOP_DOMAINS})"
_SHORTENERS = r"(?:fb\.me|wp\.me|j\.mp|tr\.im|instagr\.am|amzn\.to|nyti\.ms|bbc\.in|mf\.tt|ift\.tt|yfrog\.us)"
_ELLIPSIS = r"(?:…|\.\.)"

_URL = re.compile(
    rf"""
    https?\s?:\s?/\s?/\s?t\s\.\s?co\s?/\s?[A-Za-z0-9]+…*          # taken apart by a tokenizer: "https : //t . co/abc"
  | (?:https?|ftp|{_AFTER_BREAK}t?tps?)://(?:{_T_CO}|{_REST})…*   # with its scheme, which may lack its first letters
  | https?\s?:\s?/+…*                                             # cut within the scheme: "http:/…", "http :/ ..."
  | https?:(?=\s*(?:{_ELLIPSIS}|$))…*                             # "http:…", and "http:" where the text ends
  | https?(?=\s?…|\s?\.\s?\.)…*                                   # "http…", "http ..."
  | (?<=\s)(?-i:https?)(?=\s*$)                                    # a post that was cut there
  | {_AFTER_BREAK}{_T_CO}…*                                       # without a scheme
  | pic\.twitter\.com/(?:{_NEXT}[A-Za-z0-9]){{1,10}}…*            # often glued to the word before it
  | {_AFTER_BREAK}www\.[A-Za-z0-9]{_REST}…*
  | {_AFTER_BREAK}(?:{_DOMAINS}|{_SHORTENERS})/[A-Za-z0-9~]{_REST}…*
    """,
    re.IGNORECASE | re.VERBOSE,
)
MAY_HOLD_URL = rf"(?i)http|://|www\.|t\.co/|pic\.twitter\.com/|\.(?:{_TOP_DOMAINS})/|{_SHORTENERS}/"
"""What every text with a URL has, as a regular expression of Python and of RE2."""
_MAY_HOLD_URL = re.compile(MAY_HOLD_URL)


def find_urls(text: str) -> list[tuple[int, int]]:
    """Places of the URLs in ``text``: ``(start, end)`` in characters, in order, not overlapping."""
    if not _MAY_HOLD_URL.search(text):
        return []
    return [match.span() for match in _URL.finditer(text)]


def remove_urls(text: str) -> str:
    """``text`` without its URLs; the white space around them stays as it was."""
    kept, position = [], 0
    for start, end in find_urls(text):
        kept.append(text[position:start])
        position = end
    return "".join(kept) + text[position:]


def remove_urls_from_tokens(tokens: list[str]) -> list[str]:
    """What removing the URLs leaves of each token: as many strings as ``tokens``, empty for a token that goes.

    A token goes if it is a URL, is a piece of one ("https", ":", "//t", ".", "co/abc"), or holds nothing but
    punctuation beside one. Words glued to a URL stay: "http://t.co/Abcdef1234@victoria" leaves "@victoria".
    """
    urls = find_urls(" ".join(tokens))
    left_over, token_start = [], 0
    for token in tokens:
        token_end = token_start + len(token)
        cuts = [
            (max(start, token_start) - token_start, min(end, token_end) - token_start)
            for start, end in urls
            if start < token_end and end > token_start
        ]
        rest = token
        for start, end in reversed(cuts):
            rest = rest[:start] + rest[end:]
        left_over.append(rest if not cuts or not _is_punctuation(rest) else "")
        token_start = token_end + 1
    return left_over


def _is_punctuation(text: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in text)
