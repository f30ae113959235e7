"""The systems whose models a recognizer can be loaded from, by the ``model_type`` of their configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoModelForTokenClassification

from finetune.features import InputFormat, PieceReader
from finetune.inputs import Reader
from finetune.systems.bilstm_crf import BiLSTMCRFForTokenClassification
from finetune.systems.coattention import CoAttentionForTokenClassification
from finetune.systems.cwi import CWIForTokenClassification
from finetune.systems.lstm_cnn_crf import LSTMCNNCRFForTokenClassification
from finetune.systems.msb import MSBConfig, MSBForTokenClassification
from finetune.tagger import PieceTagger, Tagger, WordTagger
from finetune.word_input import load_word_reader
from launch.pretrained import load_tokenizer


@dataclass(frozen=True)
class System:
    """What a system's recognizers are made of."""

    model_class: type
    """Loads the weights by ``from_pretrained``."""
    tagger_class: type[Tagger]
    load_reader: Callable[[str, dict[str, Any]], Reader]
    """From the folder or Hub id, and its ``config.json``. Raises TypeError or ValueError for ``msb_input`` that it does
    not understand."""
    code_files: tuple[str, ...] = ()
    """Files of `finetune/` that the model needs to load with ``trust_remote_code``, without this toolkit; the first
    holds its classes."""


def load_piece_reader(name: str, config: dict[str, Any]) -> PieceReader:
    """The reader of a recognizer over word pieces."""
    layout = InputFormat(**config["msb_input"])
    return PieceReader(load_tokenizer(name), layout)


STOCK = System(AutoModelForTokenClassification, PieceTagger, load_piece_reader)
"""A stock ``…ForTokenClassification`` of transformers: MSB without a CRF."""

SYSTEMS = {
    MSBConfig.model_type: System(
        MSBForTokenClassification,
        PieceTagger,
        load_piece_reader,
        ("systems/msb.py", "crf.py", "tags.py", "word_shapes.py"),
    ),
    **{
        model_class.config_class.model_type: System(
            model_class, WordTagger, load_word_reader, (f"systems/{file}", *more, "word_model.py", "crf.py", "tags.py")
        )
        for model_class, file, more in (
            (CWIForTokenClassification, "cwi.py", ("layers.py",)),
            (BiLSTMCRFForTokenClassification, "bilstm_crf.py", ()),
            (LSTMCNNCRFForTokenClassification, "lstm_cnn_crf.py", ()),
            (CoAttentionForTokenClassification, "coattention.py", ()),
        )
    },
}
"""Systems with a model class of ours."""

# Without this, transformers would ask whether to run the code beside the weights, which is ours.
for system in SYSTEMS.values():
    config_class = system.model_class.config_class
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForTokenClassification.register(config_class, system.model_class, exist_ok=True)
