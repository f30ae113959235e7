"""Encoders and tokenizers, from a folder or the Hub, refused where their weights would be silently random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from launch.errors import InputError, first_line

UNUSED_PARTS = ("pooler.",)
"""Parts of an encoder that no system here reads: they may be new."""


POSITIONS_BEHIND_PADDING = frozenset(
    "camembert esm ibert layoutlmv3 lilt longformer luke markuplm mpnet roberta roberta-prelayernorm xlm-roberta "
    "xlm-roberta-xl xmod".split()
)
"""Architectures that count positions from ``pad_token_id + 1``, as RoBERTa does, and have embeddings for those before, too."""


def encoder_input(encoder: str) -> Path | str:
    """The stage input that an encoder setting names: its folder, or ``hub:ID``."""
    is_folder = Path(encoder).exists() or encoder.startswith((".", "/", "~")) or encoder.count("/") > 1
    return Path(encoder) if is_folder else f"hub:{encoder}"  # `owner/name` at the most


def is_unused(parameter: str) -> bool:
    """Whether no system here reads the parameter of this name."""
    return any(part in parameter for part in UNUSED_PARTS)


def refuse_twice(names: list[str], setting: str) -> None:
    """InputError where one model is named twice, by whatever path: it would count twice."""
    places = [str(place.resolve()) if isinstance(place := encoder_input(name), Path) else place for name in names]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise InputError(f"{setting}: {names[number]} is given twice. Name each once.")


def load_config(encoder: str) -> PreTrainedConfig:
    """The encoder's configuration. Code that lies beside it is never run, nor asked about."""
    try:
        return AutoConfig.from_pretrained(encoder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _cannot_load("configuration", encoder, ValueError(f"config.json cannot be read: {error}")) from None


def first_position(config: PreTrainedConfig) -> int:
    """The position of an input's first token."""
    return config.pad_token_id + 1 if config.model_type in POSITIONS_BEHIND_PADDING else 0


def longest_input(config: PreTrainedConfig) -> int:
    """Tokens of the longest input that has a position embedding for each."""
    return config.max_position_embeddings - first_position(config)


def load_tokenizer(encoder: str) -> PreTrainedTokenizerBase:
    """The encoder's fast tokenizer, which tells words that it is given one by one apart as it does words of a text.

    RoBERTa's is loaded with ``add_prefix_space``: as it is published, it would read ``["at", "last"]`` as ``atlast``.
    """
    tokenizer = _tokenizer(encoder)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes of a folder without a vocabulary
        raise InputError(f"{encoder}: its tokenizer has no vocabulary. Put its tokenizer.json beside the weights.")
    if not tokenizer.is_fast:
        raise InputError(f"{encoder}: it has no fast tokenizer, which the alignment of words and pieces needs.")
    if not _parts_words(tokenizer):
        tokenizer = _tokenizer(encoder, add_prefix_space=True)
        if not _parts_words(tokenizer):
            raise InputError(f"{encoder}: its tokenizer runs words together that it is given one by one. Give another.")
    return tokenizer


def _tokenizer(encoder: str, **options: Any) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(encoder, use_fast=True, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise _cannot_load("tokenizer", encoder, error) from None


def _parts_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether words given one by one become the pieces that they are in a text, behind a space."""
    one_by_one = tokenizer(["at", "last"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return one_by_one == tokenizer(" at last", add_special_tokens=False)["input_ids"]


def load_pretrained(
    model_class: Any, encoder: str, new_parts: tuple[str, ...], **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """``model_class.from_pretrained(encoder)`` and the names of its freshly initialised parameters.

    Raises InputError where a parameter outside ``new_parts`` (name prefixes: the heads that are to be trained) is not in
    the checkpoint, or not in its shape: a model must never be trained from a silently random encoder.
    """
    transformers_logging.set_verbosity_error()  # its report of unused heads; what matters of it is checked below
    transformers_logging.disable_progress_bar()
    try:
        model, info = model_class.from_pretrained(
            encoder,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,  # not what the file holds: what is computed in is a setting
            trust_remote_code=False,  # nor asked about
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _cannot_load("model", encoder, error) from None
    new = sorted(info["missing_keys"]) + sorted(name for name, *_ in info["mismatched_keys"])
    random = [name for name in new if not name.startswith(new_parts) and not is_unused(name)]
    if random:
        raise InputError(
            f"{encoder}: {len(random)} encoder parameters are not in its weights ({', '.join(random[:3])}, …), so they "
            "would be random. Give an encoder whose weights are complete and of this architecture."
        )
    return model, [name for name in new if name not in random]


def check_vocabulary(encoder: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that makes ids the encoder has no embedding for."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(
            f"{encoder}: the tokenizer has {len(tokenizer)} entries but the encoder only {rows} embeddings."
        )


def _cannot_load(what: str, encoder: str, error: Exception) -> InputError:
    return InputError(
        f"{encoder}: its {what} cannot be loaded ({first_line(error)}). Give a folder with a Hugging Face model in "
        "safetensors, or an id that the Hub has (needs a network)."
    )
