import pytest

from data_prep.column_files import read_conll, read_lines, read_tmn
from launch.errors import InputError

TYPES = ("PER", "LOC", "ORG", "MISC", "OTHER")


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes):
        path = tmp_path / "train.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_tmn(write):
    tweets = read_tmn(write("IMGID:7\nJordan\tB-PER\n\xa0\tO\n\n\nIMGID:a_b\nRT\tO\nCup\tB-OTHER"), TYPES)
    assert [(t.line, t.image_id, t.tokens, t.tags) for t in tweets] == [
        (1, "7", ["Jordan", "\xa0"], ["B-PER", "O"]),
        (6, "a_b", ["RT", "Cup"], ["O", "B-OTHER"]),
    ]


@pytest.mark.parametrize("character", "\u0085\u2028\u2029\x0b\x0c\x1c\x1d\x1e\xa0\u3000\r")
def test_lines_end_at_line_feeds_only(write, character):
    token = f"a{character}b"
    tweets = read_tmn(write(f"IMGID:1\n{token}\tO\n"), TYPES)
    assert tweets[0].tokens == [token]


def test_windows_line_ends_and_byte_order_mark(write):
    assert read_tmn(write(b"\xef\xbb\xbfIMGID:1\r\na\tO\r\n\r\n"), TYPES)[0].tokens == ["a"]
    assert [line for _, line in read_lines(write(b"a\r\nb"))] == ["a", "b"]


def test_a_token_may_look_like_an_image_line(write):
    assert read_tmn(write("IMGID:1\nIMGID:2\tO\n"), TYPES)[0].tokens == ["IMGID:2"]


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("IMGID:1\na O\n", 2, "no tab in 'a O'"),
        ("IMGID:1\na\tO\tO\n", 2, "2 tabs"),
        ("IMGID:1\na\tO\nb\tB-DOG\n", 3, "unknown tag 'B-DOG'"),
        ("IMGID:1\na\tPER\n", 2, "unknown tag 'PER'"),
        ("IMGID:1\na\t\n", 2, "unknown tag ''"),
        ("IMGID:1\n\tO\n", 2, "an empty token"),
        ("a\tO\n", 1, "a token without an IMGID: line"),
        ("IMGID:1\na\tO\n\nb\tO\n", 4, "a token without an IMGID: line"),
        ("IMGID:1\n\nIMGID:2\na\tO\n", 1, "no tokens for image 1"),
        ("IMGID:1\nIMGID:2\na\tO\n", 1, "no tokens for image 1"),
        ("IMGID:1\na\tO\n\nIMGID:2\n", 4, "no tokens for image 2"),
        ("IMGID: \na\tO\n", 1, "IMGID: without an id"),
        (b"IMGID:1\nok\tO\ncaf\xe9\tO\n", 3, "byte 0xe9 at place 4 is not UTF-8"),
        ("", None, "no tweets"),
        ("\n\n", None, "no tweets"),
    ],
)
def test_tmn_refuses(write, content, line, problem):
    path = write(content)
    with pytest.raises(InputError) as error:
        read_tmn(path, TYPES)
    place = f"{path}:{line}: " if line else f"{path}: "
    message = str(error.value)
    assert message.startswith(place + problem)
    assert message.count(". ") >= 1  # a remedy follows


def test_conll(write):
    text = "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\n. . O O \n\n-DOCSTART-\na\tO\n"
    sentences, documents = read_conll(write(text), TYPES)
    assert documents == 2
    assert [(s.line, s.tokens, s.tags) for s in sentences] == [
        (3, ["EU", "."], ["I-ORG", "O"]),
        (7, ["a"], ["O"]),
    ]


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("EU\n", 1, "only one column"),
        ("EU NNP I-NP I-DOG\n", 1, "unknown tag 'I-DOG'"),
        (" NNP O\n", 1, "an empty token"),
        ("a O\n\xa0\n", 2, "only one column"),
        (b"\xff O\n", 1, "byte 0xff"),
        ("-DOCSTART- O\n", None, "no sentences"),
    ],
)
def test_conll_refuses(write, content, line, problem):
    path = write(content)
    with pytest.raises(InputError) as error:
        read_conll(path, TYPES)
    assert str(error.value).startswith((f"{path}:{line}: " if line else f"{path}: ") + problem)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="valid.txt: no such file"):
        read_tmn(tmp_path / "valid.txt", TYPES)
