import pytest

from data_prep.image_words import read_image_words
from launch.errors import InputError


@pytest.fixture
def table(tmp_path):
    def write(content: str):
        path = tmp_path / "words.tsv"
        path.write_text(content, encoding="utf-8", newline="")
        return path

    return write


def test_a_caption_is_one_entry(table):
    path = table("image_id\tcaption\n27\ta man, a ball\n33\t\n\n")
    assert read_image_words(path) == {"27": ["a man, a ball"], "33": []}


def test_labels_are_split(table):
    path = table("id\tlabels\n27\tbasketball, scoreboard,\n")
    assert read_image_words(path, ",") == {"27": ["basketball", "scoreboard"]}
    assert read_image_words(table("id\tlabels\n27\tball\tnet\n"), "\t") == {"27": ["ball", "net"]}


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("27\ta man\n", 1, r"not a header line: '27\\ta man'"),
        ("image_id caption\n", 1, "not a header line"),
        ("image_id\tcaption\n27 a man\n", 2, "no tab"),
        ("image_id\tcaption\n\ta man\n", 2, "no image id"),
        ("image_id\tcaption\n27\ta\tb\n", 2, "more than two columns"),
        ("image_id\tcaption\n27\ta\n33\tb\n27\tc\n", 4, r"image id 27 again \(first on line 2\)"),
        ("image_id\tcaption\n", None, "no image words"),
        ("", None, "no image words"),
    ],
)
def test_refuses(table, content, line, problem):
    path = table(content)
    with pytest.raises(InputError, match=f"words.tsv:{line}: {problem}" if line else f"words.tsv: {problem}") as error:
        read_image_words(path)
    assert "header line" in str(error.value) or "one line" in str(error.value)
