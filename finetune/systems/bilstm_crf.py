"""BiLSTM+CRF (Huang et al., 2015), the paper's [21]: word vectors, a BiLSTM and a CRF, without features made by hand.

Shapes: B tweets, W words of the longest, H size of a hidden state, L labels.
"""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import TokenClassifierOutput

from finetune.word_model import PADDING, BiLSTM, WordConfig, WordModel


class BiLSTMCRFConfig(WordConfig):
    """Configuration of BiLSTM+CRF. ``hidden_size`` is that of each direction; ``dropout`` is before and after the BiLSTM."""

    model_type = "bilstm_crf"

    def __init__(self, hidden_size: int = 300, dropout: float = 0.5, **options: Any) -> None:
        self.hidden_size, self.dropout = hidden_size, dropout
        super().__init__(**options)


class BiLSTMCRFForTokenClassification(WordModel):
    """A BiLSTM over word vectors and a CRF over the words."""

    config_class = BiLSTMCRFConfig

    def __init__(self, config: BiLSTMCRFConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = BiLSTM(config.vector_size, config.hidden_size)
        self.add_head(2 * config.hidden_size)

    def forward(self, word_ids_BW: Tensor) -> TokenClassifierOutput:
        """Scores of each label at each word, ``logits`` [B, W, L]."""
        hidden_BWH = self.lstm(self.dropout(self.words(word_ids_BW)), word_ids_BW != PADDING)
        return TokenClassifierOutput(logits=self.classifier(self.dropout(hidden_BWH)))
