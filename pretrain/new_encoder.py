"""Make a new BERT encoder: a WordPiece vocabulary learnt from a corpus, and random weights.

    python pretrain/new_encoder.py --data CORPUS --output ENCODER --hidden_size 128 --layers 2 --heads 2

For domains and machines without a published encoder. The weights have learnt nothing: `pretrain/mlm.py` comes next.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from data_prep.layout import read_texts
from launch.errors import InputError
from launch.settings import NOT_IDENTITY
from launch.stage import Stage, StageSettings, run_stage
from launch.training_stage import describe_encoder

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True, kw_only=True)
class NewEncoderSettings(StageSettings):
    """Settings of `pretrain/new_encoder.py`."""

    data: Path = field(metadata=NOT_IDENTITY)
    """Data set whose `train` texts the vocabulary is learnt from."""
    vocabulary_size: int = 30522
    """Entries of the vocabulary at the most, special tokens included."""
    minimum_count: int = 2
    """A piece must occur this often."""
    lowercase: bool = True
    """Fold case and strip accents, as the uncased BERTs do."""
    hidden_size: int = 128
    """Width of the encoder; feed-forward layers are four times as wide."""
    layers: int = 2
    """Transformer layers."""
    heads: int = 2
    """Attention heads."""
    maximum_length: int = 512
    """Positions."""
    seed: int = 1
    """Seed of the weights."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be."""
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}")


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    return run_stage(NewEncoderSettings, make_encoder, lambda settings: {"data": settings.data}, argv)


def make_encoder(settings: NewEncoderSettings, stage: Stage) -> None:
    """The stage: learn the vocabulary, draw the weights, write both."""
    stage.seeds = [settings.seed]
    _, texts = read_texts(settings.data, "train", words="tokens")
    tokenizer = learn_vocabulary(texts, settings)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.hidden_size,
        max_position_embeddings=settings.maximum_length,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(settings.seed)
    model = BertForMaskedLM(config)
    stage.rows.taken = stage.rows.kept = len(texts)
    stage.facts["encoder"] = describe_encoder(model, new_parameters=["all"])
    model.save_pretrained(stage.folder)
    tokenizer.save_pretrained(stage.folder)


def learn_vocabulary(texts: list[str], settings: NewEncoderSettings) -> PreTrainedTokenizerFast:
    """A BERT tokenizer with a WordPiece vocabulary of the texts."""
    if not texts:
        raise InputError(f"{settings.data}: no texts to learn a vocabulary from.")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=settings.lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocabulary_size,
        min_frequency=settings.minimum_count,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer numbers pieces as a hash table gives them, in another order each time: numbered anew, they stay.
    pieces = [*SPECIAL_TOKENS, *sorted(tokenizer.get_vocab().keys() - set(SPECIAL_TOKENS))]
    tokenizer.model = models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]")
    cls, sep = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=settings.maximum_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


if __name__ == "__main__":
    raise SystemExit(main())
