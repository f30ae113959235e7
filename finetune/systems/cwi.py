"""CWI, the paper's Character-Word-Image model (section 3.1, Tables 5 to 8), with or without attention.

    characters -> convolutions with skip connections --.
    words      -> vectors -> BiLSTM -------------------+--> BiLSTM (-> attention) -> CRF
    image      -> five label words -> LSTM ------------'

Shapes: B tweets, W words of the longest, U distinct words of the batch, C characters of a word, K channels, I image words,
H size of a hidden state, L labels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import TokenClassifierOutput

from finetune.layers import ModalityAttention, SequenceAttention, SineReLU, TargetedDropout
from finetune.word_model import PADDING, BiLSTM, WordConfig, WordModel, rows_of

CHARACTER_SIZE, IMAGE_SIZE, HIDDEN_SIZE = 40, 50, 100
"""Of the characters' embedding (layer 2), of the image's embedding and LSTM (26, 27), and of each LSTM over words."""
CHANNELS = 16
"""Of the last convolution (layer 13), and groups of the normalisation (17)."""
ATTENTIONS = ("none", "sequence", "modality")


class CWIConfig(WordConfig):
    """Configuration of CWI.

    ``characters`` and ``image_words`` count the rows of their vocabularies, ``word_length`` is how many characters of a word
    are read. ``attention`` is ``none``, ``sequence`` (section 4.2) or ``modality`` (section 3.1); without ``regularised`` a
    plain ReLU stands in for targeted dropout, SineReLU and group normalisation (Table 10).
    """

    model_type = "cwi"

    def __init__(
        self,
        characters: int = 2,
        word_length: int = 40,
        image_words: int = 2,
        attention: str = "none",
        regularised: bool = True,
        **options: Any,
    ) -> None:
        if attention not in ATTENTIONS:
            raise ValueError(f"attention {attention!r} is not one of {', '.join(ATTENTIONS)}")
        if word_length < 8 or word_length % 8:
            raise ValueError(f"words of {word_length} characters cannot be halved three times: give a multiple of 8")
        self.characters, self.word_length, self.image_words = characters, word_length, image_words
        self.attention, self.regularised = attention, regularised
        super().__init__(**options)


class CWIForTokenClassification(WordModel):
    """CWI: characters, words and the image's words, fused for each word, and a CRF over the words."""

    config_class = CWIConfig

    def __init__(self, config: CWIConfig) -> None:
        super().__init__(config)
        self.character_features = CharacterFeatures(config.characters, config.regularised)
        self.word_lstm = BiLSTM(config.vector_size, HIDDEN_SIZE)
        self.image_features = ImageFeatures(config.image_words)
        sizes = [config.word_length * CHANNELS, 2 * HIDDEN_SIZE, IMAGE_SIZE]
        by_modality = config.attention == "modality"
        self.modality_attention = ModalityAttention(sizes, 2 * HIDDEN_SIZE) if by_modality else None
        self.fusion_lstm = BiLSTM(2 * HIDDEN_SIZE if by_modality else sum(sizes), HIDDEN_SIZE)
        by_sequence = config.attention == "sequence"
        self.sequence_attention = SequenceAttention(2 * HIDDEN_SIZE) if by_sequence else None
        self.add_head(2 * HIDDEN_SIZE * (2 if by_sequence else 1))

    def forward(
        self, word_ids_BW: Tensor, character_ids_UC: Tensor, spelling_BW: Tensor, image_word_ids_BI: Tensor
    ) -> TokenClassifierOutput:
        """Scores of each label at each word, ``logits`` [B, W, L]; ``spelling_BW`` is each word's row in the characters."""
        word_mask_BW = word_ids_BW != PADDING
        characters_BWH = self.character_features(character_ids_UC, spelling_BW)
        words_BWH = self.word_lstm(self.words(word_ids_BW), word_mask_BW)
        image_BWH = self.image_features(image_word_ids_BI)[:, None].expand(-1, words_BWH.shape[1], -1)
        modalities = [characters_BWH, words_BWH, image_BWH]
        if self.modality_attention:
            fused_BWH = self.modality_attention(modalities)
        else:
            fused_BWH = torch.cat(modalities, dim=2)  # 28
        hidden_BWH = self.fusion_lstm(fused_BWH, word_mask_BW)  # 29 to 31
        if self.sequence_attention:
            hidden_BWH = self.sequence_attention(hidden_BWH, word_mask_BW)
        return TokenClassifierOutput(logits=self.classifier(hidden_BWH))


class CharacterFeatures(nn.Module):
    """Table 5. Its concatenations fit along the characters alone, and with convolutions that keep their number.

    Convolutions have no activation but layer 16, as the table names none. They run once for each distinct word.
    """

    def __init__(self, characters: int, regularised: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, CHARACTER_SIZE, padding_idx=PADDING)  # 2
        self.conv3 = nn.Conv1d(CHARACTER_SIZE, 16, kernel_size=2)
        self.conv5 = nn.Conv1d(16, 32, kernel_size=3)
        self.conv7 = nn.Conv1d(32, 64, kernel_size=4)
        self.conv9 = nn.Conv1d(64, 64, kernel_size=4)
        self.conv11 = nn.Conv1d(64, 32, kernel_size=3)
        self.conv13 = nn.Conv1d(32, CHANNELS, kernel_size=2)
        self.dropout15 = TargetedDropout(rate=0.25, target=0.4) if regularised else nn.Identity()
        self.activation16 = SineReLU(epsilon=0.0025) if regularised else nn.ReLU()
        self.norm17 = nn.GroupNorm(CHANNELS, CHANNELS) if regularised else nn.Identity()

    def forward(self, character_ids_UC: Tensor, spelling_BW: Tensor) -> Tensor:
        """A vector [B, W, C K] for each word: its characters' channels, one after the other."""
        x_UKC = self.embedding(character_ids_UC).transpose(1, 2)
        layer4 = functional.max_pool1d(same(self.conv3, x_UKC), 2)
        layer6 = functional.max_pool1d(same(self.conv5, layer4), 2)
        layer8 = functional.max_pool1d(same(self.conv7, layer6), 2)
        layer10 = torch.cat([layer8, same(self.conv9, layer8)], dim=2)
        layer12 = torch.cat([layer6, same(self.conv11, layer10)], dim=2)
        layer14 = torch.cat([layer4, same(self.conv13, layer12)], dim=2)
        if self.training:  # each occurrence of a word has channels of its own dropped
            return self.finish(rows_of(layer14, spelling_BW)).unflatten(0, spelling_BW.shape)
        return rows_of(self.finish(layer14), spelling_BW).unflatten(0, spelling_BW.shape)

    def finish(self, x_NKC: Tensor) -> Tensor:
        """Layers 15 to 17, and each row's channels as one vector."""
        return self.norm17(self.activation16(self.dropout15(x_NKC))).transpose(1, 2).flatten(1)


class ImageFeatures(nn.Module):
    """Table 7: the last hidden state of an LSTM over the image's words; zeros for an image without any."""

    def __init__(self, image_words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(image_words, IMAGE_SIZE, padding_idx=PADDING)
        self.lstm = nn.LSTM(IMAGE_SIZE, IMAGE_SIZE, batch_first=True)

    def forward(self, image_word_ids_BI: Tensor) -> Tensor:
        """One vector [B, H] for each tweet."""
        words_B = (image_word_ids_BI != PADDING).sum(dim=1)
        hidden_BIH, _ = self.lstm(self.embedding(image_word_ids_BI))
        last_BH = hidden_BIH[torch.arange(len(words_B), device=words_B.device), (words_B - 1).clamp(min=0)]
        return last_BH.masked_fill((words_B == 0)[:, None], 0.0)


def same(conv: nn.Conv1d, x_NKC: Tensor) -> Tensor:
    """The convolution of as many places as there were; what an even kernel needs more stands behind them, as in Keras."""
    missing = conv.kernel_size[0] - 1
    return conv(functional.pad(x_NKC, (missing // 2, missing - missing // 2)))
