"""BiLSTM+CNN+Co-Attention (Zhang et al., 2018), the paper's [11]: an adaptive co-attention network of words and image regions.

    characters -> convolutions --.
    words      -> vectors -------+--> BiLSTM -> h_t --------------------------------.
                                                 |                                   +--> CRF
    image      -> VGG16's 7 x 7 regions ------- co-attention, fusion, filter -> u_t -'

What has no image is masked: u_t is zero. The formulas stand by the names of the sections of [11]; sizes are those of its
Keras code.

Shapes: B tweets, W words of the longest, U distinct words of the batch, C characters of a word, F filters of a window,
R regions of an image, V size of a region, D size of h_t and of all that is as large, Q guides, T things that are attended to,
K hidden size of an attention, L labels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import TokenClassifierOutput

from finetune.word_model import PADDING, BiLSTM, WordConfig, WordModel, rows_of

CHARACTER_SIZE, FILTERS, WINDOWS = 30, 32, (2, 3, 4)
HIDDEN_SIZE, ATTENTION_SIZE = 200, 200
"""Of each direction of the BiLSTM, and of the layer in which words and regions meet."""


class CoAttentionConfig(WordConfig):
    """Configuration of BiLSTM+CNN+Co-Attention.

    ``characters`` counts the rows of their vocabulary, ``word_length`` those of a word that are read, ``region_size`` the
    numbers of a region. ``dropout`` is before the convolutions, before the BiLSTM and before the labels, as in LSTM+CNN+CRF.
    """

    model_type = "coattention"

    def __init__(
        self,
        characters: int = 2,
        word_length: int = 40,
        region_size: int = 512,
        dropout: float = 0.5,
        **options: Any,
    ) -> None:
        self.characters, self.word_length = characters, word_length
        self.region_size, self.dropout = region_size, dropout
        super().__init__(**options)


class CoAttentionForTokenClassification(WordModel):
    """Words and characters in a BiLSTM, beside them what the image has to say to each word, and a CRF over the words."""

    config_class = CoAttentionConfig

    def __init__(self, config: CoAttentionConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.dropout)
        self.character_features = CharacterFeatures(config.characters, config.dropout)
        self.lstm = BiLSTM(config.vector_size + FILTERS * len(WINDOWS), HIDDEN_SIZE)
        self.co_attention = CoAttention(config.region_size, 2 * HIDDEN_SIZE)
        self.add_head(2 * 2 * HIDDEN_SIZE)

    def forward(
        self,
        word_ids_BW: Tensor,
        character_ids_UC: Tensor,
        spelling_BW: Tensor,
        regions_BRV: Tensor | None = None,
        has_image_B: Tensor | None = None,
    ) -> TokenClassifierOutput:
        """Scores of each label at each word, ``logits`` [B, W, L]; ``spelling_BW`` is each word's row in the characters.

        Without ``regions_BRV``, and where ``has_image_B`` is false, the image side is masked.
        """
        word_mask_BW = word_ids_BW != PADDING
        characters_UD = self.character_features(character_ids_UC)
        characters_BWD = rows_of(characters_UD, spelling_BW).unflatten(0, spelling_BW.shape)
        x_BWD = self.dropout(torch.cat([self.words(word_ids_BW), characters_BWD], dim=2))
        h_BWD = self.lstm(x_BWD, word_mask_BW)
        if regions_BRV is None:
            u_BWD = torch.zeros_like(h_BWD)
        else:
            u_BWD = self.co_attention(h_BWD, word_mask_BW, regions_BRV)
            u_BWD = u_BWD.masked_fill(~has_image_B[:, None, None], 0.0)
        # Filtration Gate: W (h_t ⊕ u_t) is what the CRF reads.
        return TokenClassifierOutput(logits=self.classifier(self.dropout(torch.cat([h_BWD, u_BWD], dim=2))))


class CharacterFeatures(nn.Module):
    """Character Features: F_j = tanh(C_j * c + b_j) for filters of several windows, and the highest of each over a word."""

    def __init__(self, characters: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, CHARACTER_SIZE, padding_idx=PADDING)
        self.dropout = nn.Dropout(dropout)
        self.convolutions = nn.ModuleList(nn.Conv1d(CHARACTER_SIZE, FILTERS, window) for window in WINDOWS)

    def forward(self, character_ids_UC: Tensor) -> Tensor:
        """A vector [U, F times windows] of each distinct word: windows begin at its own characters, with zeros behind them.

        Words that are there twice in a batch share what is dropped of their characters.
        """
        is_character_UC = character_ids_UC != PADDING
        longest = max(1, int(is_character_UC.sum(dim=1).max()))
        x_UEC = self.dropout(self.embedding(character_ids_UC[:, :longest])).transpose(1, 2)
        is_padding_U1C = ~is_character_UC[:, None, :longest]
        highest: Sequence[Tensor] = [
            convolution(functional.pad(x_UEC, (0, window - 1))).tanh().masked_fill(is_padding_U1C, -1.0).amax(dim=2)
            for convolution, window in zip(self.convolutions, WINDOWS, strict=True)
        ]
        return torch.cat(highest, dim=1).masked_fill(is_padding_U1C.all(dim=2), 0.0)  # of a word of no characters


class CoAttention(nn.Module):
    """Adaptive Co-attention Network: what a tweet's image, and its words seen by way of the image, have to say to each word.

    Image Feature Extraction          v_i = tanh(W ṽ_i + b), as large as h_t
    Word-Guided Visual Attention      v̂_t: the v_i, attended to by the word h_t
    Image-Guided Textual Attention    ĥ_t: the h_j, attended to by the image v̂_t
    Gated Multimodal Fusion           h_v̂ = tanh(W v̂_t + b), h_ĥ = tanh(W ĥ_t + b)
                                      g_t = σ(W (h_v̂ ⊕ h_ĥ)), m_t = g_t h_v̂ + (1 - g_t) h_ĥ
    Filtration Gate                   s_t = σ(W h_t + (W m_t + b)), u_t = s_t tanh(W m_t + b)

    Both gates are a single number for each word, as in the Keras code. ⊕ stands for concatenation; [11] has it for the first +
    of s_t, too, where it would leave two numbers. Added, they are a linear layer over h_t ⊕ m_t.
    """

    def __init__(self, region_size: int, size: int) -> None:
        super().__init__()
        self.project = nn.Linear(region_size, size)
        self.visual_attention = GuidedAttention(size, ATTENTION_SIZE)
        self.textual_attention = GuidedAttention(size, ATTENTION_SIZE)
        self.fuse_image = nn.Linear(size, size)
        self.fuse_text = nn.Linear(size, size)
        self.fusion_gate = nn.Linear(2 * size, 1, bias=False)
        self.filtration_gate = nn.Linear(2 * size, 1)
        self.filtered = nn.Linear(size, size)

    def forward(self, h_BWD: Tensor, word_mask_BW: Tensor, regions_BRV: Tensor) -> Tensor:
        """The filtered multimodal vectors u_t [B, W, D]."""
        v_BRD = self.project(regions_BRV).tanh()
        seen_BWD = self.visual_attention(h_BWD, v_BRD)
        read_BWD = self.textual_attention(seen_BWD, h_BWD, word_mask_BW)
        image_BWD, text_BWD = self.fuse_image(seen_BWD).tanh(), self.fuse_text(read_BWD).tanh()
        g_BW1 = self.fusion_gate(torch.cat([image_BWD, text_BWD], dim=2)).sigmoid()
        m_BWD = g_BW1 * image_BWD + (1 - g_BW1) * text_BWD
        s_BW1 = self.filtration_gate(torch.cat([h_BWD, m_BWD], dim=2)).sigmoid()
        return s_BW1 * self.filtered(m_BWD).tanh()


class GuidedAttention(nn.Module):
    """For each guide q the sum of things x_i, each weighted by how well it goes with the guide.

    z_i = tanh(W_x x_i + (W_q q + b))        alpha = softmax(w z_i)        sum_i alpha_i x_i

    [11] prints ⊕ for the first +, and reads it as concatenation. Then w z_i is a number of x_i plus a number of q, the softmax
    over i cancels the latter, and the guide guides nothing: every word would attend to the same regions. What its text
    describes needs the sum, as Bahdanau et al. (2015) have it. w has no bias, which the softmax would cancel, too.
    """

    def __init__(self, size: int, hidden_size: int) -> None:
        super().__init__()
        self.thing = nn.Linear(size, hidden_size, bias=False)
        self.guide = nn.Linear(size, hidden_size)
        self.score = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, guides_BQD: Tensor, things_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """The sums [B, Q, D]. ``mask_BT`` is true at what may be attended to; without any, a sum means nothing."""
        z_BQTK = (self.thing(things_BTD)[:, None] + self.guide(guides_BQD)[:, :, None]).tanh()
        scores_BQT = self.score(z_BQTK)[..., 0].float()
        if mask_BT is not None:
            scores_BQT = scores_BQT.masked_fill(~mask_BT[:, None], torch.finfo(scores_BQT.dtype).min)
        return scores_BQT.softmax(dim=2).to(things_BTD.dtype) @ things_BTD
