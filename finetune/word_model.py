"""What the models on word vectors have in common: embeddings, a BiLSTM, the CRF, and how new weights are drawn.

Shapes: B tweets, W words of the longest, D size of a vector, H size of a hidden state, V words of the vocabulary, L labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, initialization

from finetune.crf import LinearChainCRF
from finetune.tags import TagScheme

PADDING, UNKNOWN, ENTRIES_FROM = 0, 1, 2
"""Ids of padding, of what a vocabulary lacks, and of a vocabulary's first entry."""
EMBEDDING_RANGE = 0.25
"""New embeddings are uniform between minus this and this (Table 5)."""


class WordConfig(PreTrainedConfig):
    """Configuration of a model on word vectors.

    ``words`` counts the rows of the vocabulary, padding and the unknown included, and ``vector_size`` is how wide they are.
    ``scheme`` and ``types`` give the labels (:class:`finetune.tags.TagScheme`).
    """

    def __init__(
        self,
        words: int = 2,
        vector_size: int = 1,
        scheme: str = "BIO",
        types: Sequence[str] = ("PER", "LOC", "ORG", "MISC"),
        **options: Any,
    ) -> None:
        self.words, self.vector_size = words, vector_size
        self.scheme, self.types = scheme, list(types)
        labels = TagScheme(scheme, tuple(types)).labels
        options.setdefault("id2label", dict(enumerate(labels)))
        options.setdefault("label2id", {label: index for index, label in enumerate(labels)})
        super().__init__(**options)


class WordModel(PreTrainedModel):
    """A model on word vectors, ``words``, whose labels are decided by ``crf`` from what ``classifier`` scores.

    What is new is drawn as Keras does, with which the paper was made, and as [31] does: Glorot's uniform matrices, orthogonal
    recurrent ones, biases of zero, but of one at the forget gates.
    """

    config_class = WordConfig

    def __init__(self, config: WordConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.words, config.vector_size, padding_idx=PADDING)

    def add_head(self, size: int) -> None:
        """The linear layer from ``size`` to the labels, and the CRF over them; the last step of ``__init__``."""
        scheme = TagScheme(self.config.scheme, tuple(self.config.types))
        self.classifier = nn.Linear(size, len(scheme.labels))
        self.crf = LinearChainCRF(
            len(scheme.labels), scheme.allowed_transitions(), scheme.allowed_start(), scheme.allowed_end()
        )
        self.post_init()

    @torch.no_grad()
    def set_word_vectors(self, vectors_VD: np.ndarray) -> None:
        """Give the words of the vocabulary their vectors; the unknown's stays as drawn."""
        self.words.weight[ENTRIES_FROM:] = torch.from_numpy(vectors_VD)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # By functions that leave alone what a checkpoint has given.
        if isinstance(module, LinearChainCRF):
            module.reset_parameters()
        elif isinstance(module, nn.Embedding):
            values = torch.empty_like(module.weight).uniform_(-EMBEDDING_RANGE, EMBEDDING_RANGE)
            values[PADDING] = 0.0
            initialization.copy_(module.weight, values)
        elif isinstance(module, nn.LSTM):
            draw_lstm(module)
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            initialization.xavier_uniform_(module.weight)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            initialization.ones_(module.weight)
            initialization.zeros_(module.bias)


class BiLSTM(nn.Module):
    """An LSTM over a sentence's words and one over them backwards (Tables 6 and 8), whatever padding is behind them.

    Two LSTMs of one direction, as padding behind its words does not reach what such a one computes of them. On a CPU this
    takes half the time of torch's bidirectional one over packed sequences, whose results it equals.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.forwards = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.backwards = nn.LSTM(input_size, hidden_size, batch_first=True)

    def forward(self, x_BWD: Tensor, word_mask_BW: Tensor) -> Tensor:
        """Both hidden states [B, W, 2 H] of each word; at padding anything."""
        words_B1 = word_mask_BW.sum(dim=1, keepdim=True)
        places_W = torch.arange(word_mask_BW.shape[1], device=x_BWD.device)
        reverse_BW = torch.where(places_W < words_B1, words_B1 - 1 - places_W, places_W)
        after_BWH, _ = self.backwards(ordered(x_BWD, reverse_BW))
        return torch.cat([self.forwards(x_BWD)[0], ordered(after_BWH, reverse_BW)], dim=2)


def ordered(x_BWD: Tensor, order_BW: Tensor) -> Tensor:
    """The rows of each sentence in another order."""
    return x_BWD.gather(1, order_BW[:, :, None].expand(-1, -1, x_BWD.shape[2]))


def draw_lstm(lstm: nn.LSTM) -> None:
    """Draw the weights of an LSTM, gate by gate."""
    for name, parameter in lstm.named_parameters():
        values = torch.zeros_like(parameter)
        for gate, gate_values in enumerate(values.chunk(4)):
            if name.startswith("weight_ih"):
                nn.init.xavier_uniform_(gate_values)
            elif name.startswith("weight_hh"):
                nn.init.orthogonal_(gate_values)
            elif (
                name.startswith("bias_ih") and gate == 1
            ):  # torch's order is input, forget, cell, output; biases add up
                gate_values.fill_(1.0)
        initialization.copy_(parameter, values)


def rows_of(x: Tensor, places: Tensor) -> Tensor:
    """The rows of ``x`` at all the ``places``, one after another.

    Not ``x[places]``: its gradient is added up in no fixed order by several threads, and a resumed run must end in the same
    weights.
    """
    return x.index_select(0, places.flatten())
