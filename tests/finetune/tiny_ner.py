"""What the tests of finetune train on: a vocabulary of letters and a few words, a thin BERT, made-up tweets."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_models import save_encoder
from transformers import BertConfig, BertTokenizer

from data_prep.layout import NER_FEATURES, ner_row, write_dataset
from data_prep.tag_repair import tags_without_tokens
from data_prep.urls import remove_urls_from_tokens

Tweet = tuple[list[str], list[str], list[str]]
"""Tokens, tags and image words."""

SPECIAL = "[PAD] [UNK] [CLS] [SEP] [MASK]".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = "the a in at with and saw met likes jordan smith maria lee paris oslo acme corp nasa sea court face".split()

NAMES = {
    "PER": [["maria", "lee"], ["maria"], ["smith"]],
    "LOC": [["paris"], ["oslo", "bay"]],
    "ORG": [["acme", "corp"], ["nasa"]],
    "MISC": [["iliad"]],
}
FILLERS = "the a in at with and saw met likes today ! , #fun @friend".split()

ODD = [
    ("an orphan tag", ["with", "dr", ".", "maria"], ["O", "O", "O", "I-PER"]),
    ("a name around a URL", ["saw", "maria", "http://t.co/abc", "lee"], ["O", "B-PER", "O", "I-PER"]),
    ("a word of no pieces", ["saw", "\u200d", "paris"], ["O", "O", "B-LOC"]),
    ("too long", ["a"] * 70 + ["paris"], ["O"] * 70 + ["B-LOC"]),
]
"""Rows that every split of the fixture `named` has beside the plain ones: what they are, tokens, tags."""

STAGE = [
    *("--input.maximum_length", "64", "--input.image_length", "8", "--optimizer.learning_rate", "3e-3"),
    *("--run.precision", "fp32", "--seed", "3"),
]
"""Arguments of the stage that suit the encoder and the data."""


def make_tokenizer() -> BertTokenizer:
    """Knows every letter, and some words as a whole; punctuation such as "!" and "#", but no emoji."""
    pieces = [*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS), *"!#@,.:;'_-/&"]
    return BertTokenizer(vocab={piece: place for place, piece in enumerate(dict.fromkeys(pieces))}, do_lower_case=True)


def bert_config(vocabulary_size: int, **options: object) -> BertConfig:
    """Two layers of width 32, 96 positions, no dropout."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(vocab_size=vocabulary_size, max_position_embeddings=96, **sizes, **(dropout | options))


def make_encoder(folder: Path, **options: object) -> Path:
    """A folder with such an encoder, untrained but for nothing else than its seed, and its tokenizer."""
    tokenizer = make_tokenizer()
    return save_encoder(folder, tokenizer, bert_config(len(tokenizer), **options))


def named_tweet(draw: random.Random) -> Tweet:
    """A tweet whose names have the same type wherever they stand, and image words that tell nothing."""
    tokens, tags = [], []
    for _ in range(draw.randint(1, 3)):
        fillers = draw.choices(FILLERS, k=draw.randint(1, 3))
        kind = draw.choice(list(NAMES))
        name = draw.choice(NAMES[kind])
        tokens += [*fillers, *name]
        tags += ["O"] * len(fillers) + [f"B-{kind}"] + [f"I-{kind}"] * (len(name) - 1)
    if draw.random() < 0.3:
        place = draw.randint(0, len(tokens))
        if place == len(tokens) or tags[place][0] != "I":
            tokens.insert(place, "http://t.co/abc")
            tags.insert(place, "O")
    return tokens, tags, draw.choices(["sea", "court", "face"], k=2)


def ambiguous_tweet(draw: random.Random) -> Tweet:
    """A tweet with a name whose type is in the image words alone: "jordan" by the sea is a place."""
    fillers = draw.choices(["the", "at", "saw", "today"], k=draw.randint(1, 2))
    kind, word = draw.choice([("LOC", "sea"), ("PER", "face")])
    tags = ["O"] * len(fillers) + [f"B-{kind}"]
    return [*fillers, "jordan"], tags, [word]


def make_row(row_id: str, tokens: list[str], tags: list[str], image_words: list[str]) -> dict:
    """A row of a `ner` data set, as the TMN reader makes it."""
    left_over = remove_urls_from_tokens(tokens)
    kept = [place for place, token in enumerate(left_over) if token]
    words = [left_over[place] for place in kept]
    row = ner_row(row_id, words, tags_without_tokens(tags, kept), tokens, tags, kept, image_id=f"image of {row_id}")
    return row | {"image_words": image_words}


def make_rows(make_tweet: Callable[[random.Random], Tweet], count: int, seed: int) -> list[dict]:
    """Rows of a split."""
    draw = random.Random(seed)
    return [make_row(f"{seed}:{number}", *make_tweet(draw)) for number in range(count)]


def make_ner(folder: Path, make_tweet: Callable[[random.Random], Tweet], **more_rows: list[dict]) -> Path:
    """A `ner` data set of such tweets, and of more rows for its splits."""
    splits = {
        name: make_rows(make_tweet, count, seed) + more_rows.get(name, [])
        for seed, (name, count) in enumerate([("train", 128), ("validation", 40), ("test", 40)], start=1)
    }
    write_dataset(folder, splits, NER_FEATURES, "Made-up tweets")
    return folder


def write_vectors(path: Path, words: list[str]) -> Path:
    """A file of random vectors of 6 numbers, with word2vec's header."""
    rows = torch.randn(len(words), 6, generator=torch.Generator().manual_seed(1)).tolist()
    lines = [f"{word} {' '.join(f'{x:.4f}' for x in row)}\n" for word, row in zip(words, rows, strict=True)]
    path.write_text(f"{len(words)} 6\n{''.join(lines)}")
    return path
