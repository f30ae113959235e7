"""What the tests train: made-up texts and tags, a small vocabulary, encoders of two thin layers."""

import os
import random
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from data_prep.layout import CORPUS_FEATURES, NER_FEATURES, TAG_IDS, write_dataset
from finetune.features import Columns, Encoded
from pretrain.new_encoder import NewEncoderSettings, learn_vocabulary

PROJECT = Path(__file__).resolve().parents[1]

SYLLABLES = "ba ce di fo gu ha je ki lo mu na pe ri so tu va we xi yo zu".split()
NAMES = {"PER": ["jordan", "maria", "lee"], "LOC": ["paris", "oslo", "amman"], "ORG": ["acme", "nasa", "bbc"]}


def environment(**more: str) -> dict[str, str]:
    """What commands are started with: one thread, so that the cores are shared; no network."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"} | more


def make_texts(count: int, seed: int = 0, longest: int = 20) -> list[str]:
    """Texts of 1 to ``longest`` made-up words of one to three syllables."""
    draw = random.Random(seed)
    word = lambda: "".join(draw.choices(SYLLABLES, k=draw.randint(1, 3)))  # noqa: E731
    return [" ".join(word() for _ in range(draw.randint(1, longest))) for _ in range(count)]


def make_tokenizer(vocabulary_size: int = 200) -> PreTrainedTokenizerFast:
    """A BERT tokenizer of the made-up words."""
    texts = make_texts(300) + [" ".join(sum(NAMES.values(), []))]
    settings = NewEncoderSettings(output=Path(), data=Path(), vocabulary_size=vocabulary_size, maximum_length=64)
    return learn_vocabulary(texts, settings)


def bert_config(vocabulary_size: int, **options: object) -> BertConfig:
    """Two layers of width 16."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertConfig(vocab_size=vocabulary_size, max_position_embeddings=64, **sizes, **options)


def make_encoder(folder: Path, **options: object) -> Path:
    """A folder with a new BERT that has a masked-language-model head, and its tokenizer."""
    tokenizer = make_tokenizer()
    return save_encoder(folder, tokenizer, bert_config(len(tokenizer), **options))


def save_encoder(folder: Path, tokenizer: PreTrainedTokenizerFast, config: BertConfig) -> Path:
    """Write a new BERT of this shape, drawn from a fixed seed, and its tokenizer."""
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_corpus(folder: Path, train: int, validation: int = 20) -> Path:
    """A `corpus` data set."""
    splits = {
        name: [{"id": f"{name}-{i}", "text": text} for i, text in enumerate(make_texts(count, seed))]
        for seed, (name, count) in enumerate([("train", train), ("validation", validation)], start=1)
    }
    write_dataset(folder, splits, CORPUS_FEATURES, "Made-up texts")
    return folder


def make_ner(folder: Path, train: int, validation: int = 12, test: int = 12) -> Path:
    """A `ner` data set in which names are names wherever they stand."""
    draw = random.Random(5)

    def row(name: str) -> dict[str, object]:
        words, tags = [], []
        for filler in make_texts(1, draw.randrange(10**6), longest=8)[0].split():
            words.append(filler)
            tags.append("O")
            if draw.random() < 0.3:
                kind = draw.choice(list(NAMES))
                length = draw.randint(1, 2)
                words += draw.choices(NAMES[kind], k=length)
                tags += [f"B-{kind}", f"I-{kind}"][:length]
        return {
            "id": name,
            "tokens": words,
            "ner_tags": [TAG_IDS[tag] for tag in tags],
            "source_tokens": words,
            "source_tags": tags,
            "source_index": list(range(len(words))),
            "image_id": None,
            "image": None,
            "image_words": [draw.choice(SYLLABLES)],
            "image_word_scores": None,
        }

    counts = {"train": train, "validation": validation, "test": test}
    splits = {split: [row(f"{split}-{i}") for i in range(count)] for split, count in counts.items()}
    write_dataset(folder, splits, NER_FEATURES, "Made-up names")
    return folder


def batch_of(encoded: list[Encoded], labels: list[list[int]] | None, pad_token: int) -> dict[str, torch.Tensor]:
    """All of the encoded tweets as one batch."""
    return Columns.of(encoded).batch(range(len(encoded)), labels, pad_token)
