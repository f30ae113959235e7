"""MSB, the paper's multimodal small BERT (section 3.2): one encoder over a tweet's words and its image's words.

    [CLS] tweet word pieces [SEP] image words [SEP]        token types 0 … 0 1 … 1

Each word is labelled at its first piece. Without a CRF the model is a stock ``…ForTokenClassification``; with one it is
:class:`MSBForTokenClassification`, whose CRF runs over words, not pieces.

Shapes: B tweets, T word pieces of the longest, L labels, H hidden size (of embeddings: theirs).
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, BatchEncoding, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from finetune.crf import LinearChainCRF
from finetune.tags import TagScheme
from finetune.word_shapes import shape_of


class MSBConfig(PreTrainedConfig):
    """Configuration of an encoder with a CRF over words.

    ``encoder`` is the encoder's own configuration, as a dict with its ``model_type``. ``scheme`` and ``types`` give the
    labels (:class:`finetune.tags.TagScheme`). ``word_shapes`` is how many shapes of words the model tells apart; 0 for a
    model that reads word pieces alone. ``image_gate`` says whether an :class:`ImageGate` weighs the image words.
    """

    model_type = "msb"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        scheme: str = "BIO",
        types: tuple[str, ...] | list[str] = ("PER", "LOC", "ORG", "MISC"),
        classifier_dropout: float = 0.1,
        word_shapes: int = 0,
        image_gate: bool = False,
        **options: Any,
    ) -> None:
        self.encoder = encoder or {"model_type": "bert"}
        self.scheme = scheme
        self.types = list(types)
        self.classifier_dropout = classifier_dropout
        self.word_shapes = word_shapes
        self.image_gate = image_gate
        labels = TagScheme(scheme, tuple(types)).labels
        options.setdefault("id2label", dict(enumerate(labels)))
        options.setdefault("label2id", {label: index for index, label in enumerate(labels)})
        super().__init__(**options)

    def encoder_config(self) -> PreTrainedConfig:
        """The encoder's configuration as an object."""
        return AutoConfig.for_model(**self.encoder)


class MSBForTokenClassification(PreTrainedModel):
    """Any BERT-like encoder with a linear layer and a CRF over words.

    The CRF's transitions are initialised here, and left alone where a checkpoint holds them.
    """

    config_class = MSBConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: MSBConfig) -> None:
        super().__init__(config)
        scheme = TagScheme(config.scheme, tuple(config.types))
        encoder_config = config.encoder_config()
        self.encoder = AutoModel.from_config(encoder_config, **without_pooler(encoder_config))
        embedding_size = self.encoder.get_input_embeddings().embedding_dim  # ALBERT's, among others, are narrower
        if config.word_shapes:
            self.shape_embeddings = nn.Embedding(config.word_shapes, embedding_size)
        if config.image_gate:
            self.image_gate = ImageGate(embedding_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(encoder_config.hidden_size, len(scheme.labels))
        self.crf = LinearChainCRF(
            len(scheme.labels), scheme.allowed_transitions(), scheme.allowed_start(), scheme.allowed_end()
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LinearChainCRF | ImageGate):
            module.reset_parameters()
        elif module is getattr(self, "shape_embeddings", None):
            nn.init.zeros_(module.weight)  # the encoder begins as it was pretrained
        else:
            super()._init_weights(module)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        shape_ids: torch.Tensor | None = None,
        **options: Any,
    ) -> TokenClassifierOutput:
        """Scores of each label at each piece, ``logits`` [B, T, L]; see
        :class:`finetune.tagger.PieceTagger` for words and the CRF.

        ``shape_ids`` [B, T] are for a model with ``word_shapes``, which raises ValueError without them: each piece's
        embedding has that of its word's shape added to it.
        """
        inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if self.embeds_more:
            inputs["inputs_embeds"] = self.embedded(input_ids, attention_mask, token_type_ids, shape_ids)
        else:
            inputs["input_ids"] = input_ids
        hidden_BTH = self.encoder(**inputs).last_hidden_state
        return TokenClassifierOutput(logits=self.classifier(self.dropout(hidden_BTH)))

    @property
    def embeds_more(self) -> bool:
        """Whether the encoder is given more than the embeddings of the pieces."""
        return bool(self.config.word_shapes or self.config.image_gate)

    def embedded(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        shape_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """What the encoder is given of each piece, [B, T, H]: its embedding, with that of its word's shape, gated."""
        pieces_BTH = self.encoder.get_input_embeddings()(input_ids)
        if self.config.word_shapes:
            if shape_ids is None:
                raise ValueError(
                    "this model reads how words are written, too: give shape_ids, as shape_ids_of makes them"
                )
            pieces_BTH = pieces_BTH + self.shape_embeddings(shape_ids)
        if self.config.image_gate and token_type_ids is not None:
            mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            pieces_BTH = self.image_gate(pieces_BTH, mask_BT * (1 - token_type_ids), mask_BT * token_type_ids)
        return pieces_BTH

    @staticmethod
    def shape_ids_of(words: list[str], encoding: BatchEncoding) -> torch.Tensor:
        """``shape_ids`` [1, T] of one tweet, given as words, from what a fast tokenizer made of them."""
        pieces = zip(encoding.sequence_ids(0), encoding.word_ids(0), strict=True)
        return torch.tensor([[shape_of(words[word]) if segment == 0 else 0 for segment, word in pieces]])


class ImageGate(nn.Module):
    """Weighs the image words by how much they have to do with the tweet: a gate of relevance on the second segment.

    The embeddings of the image's pieces are multiplied by one number in 0 .. 1 for each tweet, the logistic function of a
    bilinear form of the mean embeddings of both segments, their special tokens and the shapes of words included. A new gate
    is nearly open, whatever the words.
    """

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.relevance = nn.Parameter(torch.empty(embedding_size, embedding_size))
        self.openness = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Open it: 0.88."""
        nn.init.zeros_(self.relevance)
        nn.init.constant_(self.openness, 2.0)

    def forward(self, pieces_BTH: torch.Tensor, text_BT: torch.Tensor, image_BT: torch.Tensor) -> torch.Tensor:
        """The pieces with those of the image gated; ``text_BT`` and ``image_BT`` are 1 at the pieces of a segment."""
        text_BH, image_BH = (mean_of(pieces_BTH, segment_BT) for segment_BT in (text_BT, image_BT))
        gate_B = torch.sigmoid(((text_BH @ self.relevance) * image_BH).sum(dim=1) + self.openness)
        return torch.where(image_BT[:, :, None].bool(), pieces_BTH * gate_B[:, None, None], pieces_BTH)


def mean_of(x_BTH: torch.Tensor, chosen_BT: torch.Tensor) -> torch.Tensor:
    """The mean [B, H] of what is chosen in each row; 0 where nothing is."""
    chosen_BT1 = chosen_BT[:, :, None].to(x_BTH.dtype)
    return (x_BTH * chosen_BT1).sum(dim=1) / chosen_BT1.sum(dim=1).clamp(min=1)


def without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """The option that leaves out an encoder's pooling layer, which nothing here reads, where it has one."""
    has_option = "add_pooling_layer" in inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if has_option else {}
