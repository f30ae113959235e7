"""LSTM+CNN+CRF (Ma and Hovy, 2016), the paper's [31]: a convolution over a word's characters beside its vector, BiLSTM, CRF.

Shapes: B tweets, W words of the longest, U distinct words of the batch, C characters of a word, F filters, H size of a hidden
state, L labels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import TokenClassifierOutput

from finetune.word_model import PADDING, BiLSTM, WordConfig, WordModel, rows_of

CHARACTER_SIZE, FILTERS, WINDOW, HIDDEN_SIZE = 30, 30, 3, 200
"""Table 1 of [31]."""


class LSTMCNNCRFConfig(WordConfig):
    """Configuration of LSTM+CNN+CRF: ``characters`` counts the rows of their vocabulary, ``word_length`` those of a word.

    ``dropout`` is before the convolution, before the BiLSTM and after it.
    """

    model_type = "lstm_cnn_crf"

    def __init__(self, characters: int = 2, word_length: int = 40, dropout: float = 0.5, **options: Any) -> None:
        self.characters, self.word_length, self.dropout = characters, word_length, dropout
        super().__init__(**options)


class LSTMCNNCRFForTokenClassification(WordModel):
    """Word vectors and character features, a BiLSTM and a CRF over the words."""

    config_class = LSTMCNNCRFConfig

    def __init__(self, config: LSTMCNNCRFConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.dropout)
        self.character_embedding = nn.Embedding(config.characters, CHARACTER_SIZE, padding_idx=PADDING)
        self.convolution = nn.Conv1d(CHARACTER_SIZE, FILTERS, WINDOW, padding=WINDOW // 2)
        self.lstm = BiLSTM(config.vector_size + FILTERS, HIDDEN_SIZE)
        self.add_head(2 * HIDDEN_SIZE)

    def forward(self, word_ids_BW: Tensor, character_ids_UC: Tensor, spelling_BW: Tensor) -> TokenClassifierOutput:
        """Scores of each label at each word, ``logits`` [B, W, L]; ``spelling_BW`` is each word's row in the characters."""
        characters_UF = self.character_features(character_ids_UC)
        characters_BWF = rows_of(characters_UF, spelling_BW).unflatten(0, spelling_BW.shape)
        x_BWD = self.dropout(torch.cat([self.words(word_ids_BW), characters_BWF], dim=2))
        hidden_BWH = self.lstm(x_BWD, word_ids_BW != PADDING)
        return TokenClassifierOutput(logits=self.classifier(self.dropout(hidden_BWH)))

    def character_features(self, character_ids_UC: Tensor) -> Tensor:
        """The highest response [U, F] of each filter to each distinct word, at its own characters.

        Words that are there twice in a batch share what is dropped of their characters.
        """
        is_character_UC = character_ids_UC != PADDING
        longest = max(1, int(is_character_UC.sum(dim=1).max()))
        characters_UFC = self.dropout(self.character_embedding(character_ids_UC[:, :longest])).transpose(1, 2)
        response_UFC = self.convolution(characters_UFC)
        padding_U1C = ~is_character_UC[:, None, :longest]
        lowest = torch.finfo(response_UFC.dtype).min
        highest_UF = response_UFC.masked_fill(padding_U1C, lowest).amax(dim=2)
        return highest_UF.masked_fill(padding_U1C.all(dim=2), 0.0)  # of a word of no characters
