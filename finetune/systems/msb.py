"""MSB, the paper's multimodal small BERT (section 3.2): one encoder over a tweet's words and its image's words.

    [CLS] tweet word pieces [SEP] image words [SEP]        token types 0 … 0 1 … 1

Each word is labelled at its first piece. Without a CRF the model is a stock ``…ForTokenClassification``; with one it is
:class:`MSBForTokenClassification`, whose CRF runs over words, not pieces.

Shapes: B tweets, T word pieces of the longest, W words of the longest, L labels, H hidden size.
"""

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

from finetune.crf import LinearChainCRF
from finetune.tags import TagScheme


class MSBConfig(PreTrainedConfig):
    """Configuration of an encoder with a CRF over words.

    ``encoder`` is the encoder's own configuration, as a dict with its ``model_type``. ``scheme`` and ``types`` give the
    labels (:class:`finetune.tags.TagScheme`).
    """

    model_type = "msb"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        scheme: str = "BIO",
        types: tuple[str, ...] | list[str] = ("PER", "LOC", "ORG", "MISC"),
        classifier_dropout: float = 0.1,
        **options: Any,
    ) -> None:
        self.encoder = encoder or {"model_type": "bert"}
        self.scheme = scheme
        self.types = list(types)
        self.classifier_dropout = classifier_dropout
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
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(encoder_config.hidden_size, len(scheme.labels))
        self.crf = LinearChainCRF(
            len(scheme.labels), scheme.allowed_transitions(), scheme.allowed_start(), scheme.allowed_end()
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LinearChainCRF):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **options: Any,
    ) -> TokenClassifierOutput:
        """Scores of each label at each piece, ``logits`` [B, T, L]; see :class:`WordTagger` for words and the CRF."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        hidden_BTH = self.encoder(**inputs).last_hidden_state
        return TokenClassifierOutput(logits=self.classifier(self.dropout(hidden_BTH)))


def without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """The option that leaves out an encoder's pooling layer, which nothing here reads, where it has one."""
    has_option = "add_pooling_layer" in inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if has_option else {}


class WordTagger(nn.Module):
    """Words in, a label for each word out: what the training loop and the recognizer use of either kind of MSB.

    The loss is the softmax cross-entropy of each word's first piece, or the CRF's negative log-likelihood; both are
    sums, to be divided by the number of words.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def emissions(
        self,
        input_ids_BT: torch.Tensor,
        attention_mask_BT: torch.Tensor,
        token_type_ids_BT: torch.Tensor,
        first_piece_BW: torch.Tensor,
    ) -> torch.Tensor:
        """Scores [B, W, L], in fp32, of each label at each word's first piece."""
        logits_BTL = self.model(
            input_ids=input_ids_BT, attention_mask=attention_mask_BT, token_type_ids=token_type_ids_BT
        ).logits.float()
        return logits_BTL.gather(1, first_piece_BW[:, :, None].expand(-1, -1, logits_BTL.shape[2]))

    def forward(self, word_mask_BW: torch.Tensor, labels_BW: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """The loss, summed over the words of the batch."""
        return self.loss(self.emissions(**inputs), word_mask_BW, labels_BW)

    def loss(self, emissions_BWL: torch.Tensor, word_mask_BW: torch.Tensor, labels_BW: torch.Tensor) -> torch.Tensor:
        """The loss of given emissions, summed over the words of the batch."""
        if self.has_crf:
            return self.model.crf(emissions_BWL, labels_BW, word_mask_BW).sum()
        labels_BW = labels_BW.masked_fill(~word_mask_BW, -100)
        return functional.cross_entropy(emissions_BWL.flatten(0, 1), labels_BW.flatten(), reduction="sum")

    def decode(self, emissions_BWL: torch.Tensor, word_mask_BW: torch.Tensor) -> list[list[int]]:
        """The best label ids of each tweet's words."""
        if self.has_crf:
            return self.model.crf.decode(emissions_BWL, word_mask_BW)
        words = word_mask_BW.sum(dim=1).tolist()
        return [row[:n] for row, n in zip(emissions_BWL.argmax(dim=2).tolist(), words, strict=True)]

    def log_probability(
        self, emissions_BWL: torch.Tensor, word_mask_BW: torch.Tensor, labels_BW: torch.Tensor
    ) -> torch.Tensor:
        """Log-probability [B], in nats, of all labels of each tweet."""
        if self.has_crf:
            return -self.model.crf(emissions_BWL, labels_BW, word_mask_BW)
        log_p_BW = emissions_BWL.log_softmax(dim=2).gather(2, labels_BW[:, :, None])[:, :, 0]
        return (log_p_BW * word_mask_BW).sum(dim=1)

    @property
    def has_crf(self) -> bool:
        """Whether a CRF decides the labels."""
        return getattr(self.model, "crf", None) is not None
