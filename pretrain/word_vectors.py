"""Train word vectors of a corpus: fastText's skip-gram with subwords (Bojanowski et al. 2017 [28]), by gensim.

    python pretrain/word_vectors.py --data CORPUS --output VECTORS

Writes `vectors.vec` (text: a word and its numbers on each line, the most frequent first), which the systems on word vectors
read; `counts.txt`, a word and its count on each line; and with `--binary true` `vectors.bin`, fastText's own format, which
gives vectors to other words, too.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.layout import splits_of
from data_prep.text_batches import iterate_texts
from launch.errors import InputError
from launch.settings import NOT_IDENTITY
from launch.stage import Stage, StageSettings, run_stage

WORD = re.compile(r"https?://\S+|[@#]\w+|\w+(?:['’\-]\w+)*|[^\w\s]")
"""What a word is, in the order of choice: a URL; a @mention or #hashtag; letters, digits and underscores, with single
apostrophes and hyphens inside (``don't``, ``e-mail``); any other character alone. Close to how the tweets of TMN are split."""


@dataclass(frozen=True, kw_only=True)
class WordVectorSettings(StageSettings):
    """Settings of `pretrain/word_vectors.py`."""

    data: Path = field(metadata=NOT_IDENTITY)
    """Folder of the `corpus` or `ner` data set; its split `train` is read."""
    dimension: int = 300
    """Numbers of a vector."""
    epochs: int = 5
    """Passes over the corpus."""
    window: int = 5
    """Words to either side that a word is to predict, at the most."""
    minimum_count: int = 5
    """A word that is rarer has no vector of its own."""
    negative: int = 5
    """Drawn words for each word that is there."""
    buckets: int = 200_000
    """Vectors that all subwords share, by hash; each takes as much memory as a word."""
    lower_case: bool = True
    """Take words in lower case."""
    binary: bool = False
    """Write `vectors.bin`, too."""
    seed: int = 1
    """First vectors and draws are functions of it."""
    threads: int = 1
    """Threads that train. With more than one, two runs give different vectors."""

    def __post_init__(self) -> None:
        """Refuse sizes of nothing."""
        for name in ("dimension", "epochs", "window", "minimum_count", "negative", "buckets", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")


@dataclass
class Sentences:
    """The words of each text of a data set; each iteration reads it anew, with a bar of its own."""

    stage: Stage
    folder: Path
    lower_case: bool
    passes: Sequence[str]
    """What each iteration is for."""
    texts: int | None = None
    """How many there are, known after the first iteration."""
    begun: int = 0

    def __iter__(self) -> Iterator[list[str]]:
        description = self.passes[min(self.begun, len(self.passes) - 1)]
        self.begun += 1
        texts = 0
        with self.stage.progress(None, description, total=self.texts, unit="text") as progress:
            for batch in iterate_texts(self.folder, ["train"], image_words=False):
                yield from self._words(batch.texts, progress)
                texts += len(batch.texts)
        self.texts = texts

    def _words(self, texts: Sequence[str], progress: tqdm) -> Iterator[list[str]]:
        for text in texts:
            yield words_of(text, self.lower_case)
            progress.update()


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    return run_stage(WordVectorSettings, train_vectors, lambda settings: {"data": settings.data}, argv)


def train_vectors(settings: WordVectorSettings, stage: Stage) -> None:
    """The stage: from texts to vectors of their words."""
    fasttext = import_fasttext()
    stage.seeds = [settings.seed]
    if "train" not in splits_of(settings.data):
        raise InputError(f"{settings.data}: has no split train. Give a corpus, as data_prep/clean.py makes it.")
    passes = ["vocabulary", *(f"epoch {number} of {settings.epochs}" for number in range(1, settings.epochs + 1))]
    sentences = Sentences(stage, settings.data, settings.lower_case, passes)

    model = fasttext.FastText(
        vector_size=settings.dimension,
        window=settings.window,
        min_count=settings.minimum_count,
        negative=settings.negative,
        bucket=settings.buckets,
        sg=1,
        seed=settings.seed,
        workers=settings.threads,
        hashfxn=stable_hash,
    )
    model.build_vocab(sentences)
    if not model.wv.index_to_key:
        raise InputError(
            f"{settings.data}: no word is there {settings.minimum_count} times. Give more texts, or lower --minimum_count."
        )
    stage.log(f"{len(model.wv):,} words with a vector, of {sentences.texts:,} texts")
    model.train(sentences, total_examples=model.corpus_count, epochs=settings.epochs)

    model.wv.save_word2vec_format(str(stage.folder / "vectors.vec"), fvocab=str(stage.folder / "counts.txt"))
    if settings.binary:
        fasttext.save_facebook_model(model, str(stage.folder / "vectors.bin"))
    stage.rows.taken = stage.rows.kept = sentences.texts or 0
    stage.facts["vectors"] = {
        "words": len(model.wv),
        "words_in_text": model.corpus_total_words,
        "words_in_text_with_a_vector": sum(int(model.wv.get_vecattr(word, "count")) for word in model.wv.key_to_index),
        "method": "fastText, skip-gram with subwords of 3 to 6 characters",
        "reproducible": settings.threads == 1,
    }
    if settings.threads > 1:
        stage.facts["vectors"]["note"] = "trained by several threads at once: another run gives other vectors"


def import_fasttext() -> Any:
    """gensim's fastText; InputError where it is not installed."""
    try:
        from gensim.models import fasttext
    except ImportError:
        raise InputError("gensim trains word vectors, and is not installed. pip install 'msb-ner[vectors]'") from None
    logging.getLogger("gensim").setLevel(logging.WARNING)  # the bars tell what it would say
    return fasttext


def words_of(text: str, lower_case: bool = True) -> list[str]:
    """The words of a text (see :data:`WORD`).

    >>> words_of("RT @Ann: don't miss #Oslo!!")
    ['rt', '@ann', ':', "don't", 'miss', '#oslo', '!', '!']
    """
    return WORD.findall(text.lower() if lower_case else text)


def stable_hash(text: str) -> int:
    """A hash that is the same in every process, unlike Python's."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


if __name__ == "__main__":
    raise SystemExit(main())
