"""The masked language model as it is trained: packed rows in, and the output layer at masked positions only.

Shapes: R rows, T tokens of a row, M masked tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from launch.errors import InputError
from launch.pretrained import first_position, load_config, load_pretrained, longest_input
from pretrain import varlen_attention
from pretrain.output_layer import linear_cross_entropy

OUTPUT_LAYERS = {"bert": "cls", "roberta": "lm_head", "xlm-roberta": "lm_head", "camembert": "lm_head"}
"""Architectures whose output layer is one module: a small transformation, then `decoder`, a linear layer."""


def load_masked_language_model(encoder: str, dropout: float | None) -> tuple[PreTrainedModel, list[str]]:
    """A stock model with its masked-language-model head; the head may be new, the encoder may not.

    Raises InputError for an architecture that :class:`PackedMaskedLanguageModel` does not know.
    """
    check_architecture(load_config(encoder).model_type)
    options = {} if dropout is None else {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    head = tuple(f"{name}." for name in OUTPUT_LAYERS.values())
    return load_pretrained(AutoModelForMaskedLM, encoder, head, attn_implementation="sdpa", **options)


def check_architecture(model_type: str) -> None:
    """Raise InputError where the output layer of such models is not known."""
    if model_type not in OUTPUT_LAYERS:
        raise InputError(
            f"encoders of type {model_type} cannot be pretrained here; these can: {', '.join(OUTPUT_LAYERS)}."
        )


class PackedMaskedLanguageModel(nn.Module):
    """A stock ``…ForMaskedLM`` on packed rows; the loss is a sum over masked tokens.

    Equal, in loss and gradients, to the stock model on each text alone with the output layer at every position.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        architecture = model.config.model_type
        check_architecture(architecture)
        self.model = model
        self.position_offset = first_position(model.config)
        self.maximum_length = longest_input(model.config)
        """Tokens of the longest text that has a position embedding for each."""

    def forward(
        self,
        tokens_RT: torch.Tensor,
        positions_RT: torch.Tensor,
        samples_RT: torch.Tensor,
        masked_M: torch.Tensor,
        labels_M: torch.Tensor,
        segments_RT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Cross-entropy summed over the masked tokens, in fp32.

        ``masked_M`` are positions in the flattened rows, ``labels_M`` the tokens that stood there, or `NO_LABEL`.
        ``segments_RT`` are token types; None where all are 0.
        """
        # A token attends to the tokens of its own text; the padding (sample -1) to itself, so that no row is empty.
        hidden_RTH = self.model.base_model(
            input_ids=tokens_RT,
            token_type_ids=segments_RT,
            position_ids=positions_RT + self.position_offset,
            **self._attention_inside_texts(samples_RT),
        ).last_hidden_state
        hidden_MH = hidden_RTH.flatten(0, 1)[masked_M]
        transformed_MH, decoder = self._before_decoder(hidden_MH)
        return linear_cross_entropy(transformed_MH, decoder.weight, decoder.bias, labels_M)

    def _attention_inside_texts(self, samples_RT: torch.Tensor) -> dict[str, torch.Tensor]:
        """The mask as the attention implementation wants it: a boolean one, what is added to the scores, or none."""
        implementation = self.model.config._attn_implementation
        if implementation == varlen_attention.NAME:
            return {"text_starts": varlen_attention.text_starts(samples_RT)}
        same_text_R1TT = samples_RT[:, None, :, None] == samples_RT[:, None, None, :]
        if implementation == "sdpa":
            return {"attention_mask": same_text_R1TT}
        dtype = self.model.base_model.encoder.layer[0].attention.self.query.weight.dtype
        added_R1TT = torch.zeros_like(same_text_R1TT, dtype=dtype).masked_fill(~same_text_R1TT, torch.finfo(dtype).min)
        return {"attention_mask": added_R1TT}

    def _before_decoder(self, hidden_MH: torch.Tensor) -> tuple[torch.Tensor, nn.Linear]:
        """The hidden states as the output layer's linear part reads them, and that part."""
        if self.model.config.model_type == "bert":
            head = self.model.cls.predictions
            return head.transform(hidden_MH), head.decoder
        head = self.model.lm_head
        return head.layer_norm(nn.functional.gelu(head.dense(hidden_MH))), head.decoder
