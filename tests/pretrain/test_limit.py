import pytest
import torch
from transformers import BertConfig

from pretrain import limit
from pretrain.limit import tokens_per_second_of_products


def test_counts_each_product_forward_and_backward(monkeypatch):
    """With a clock that counts multiplications: 6 for each weight and token (2 forward, 4 backward), halved for pairs."""
    multiplications = lambda left, right: left.shape[0] * left.shape[1] * right.shape[1]  # noqa: E731
    monkeypatch.setattr(limit, "_median_seconds", multiplications)
    config = BertConfig(hidden_size=8, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, vocab_size=50)
    found = tokens_per_second_of_products(config, 100, 0.15, torch.float32, torch.device("cpu"))
    encoder = 100 * 3 * (4 * 8 * 8 + 2 * 8 * 20)
    output = 15 * (8 * 8 + 8 * 50)
    assert found == pytest.approx(100 / (3 * (encoder + output)))


def test_measures():
    config = BertConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
    assert tokens_per_second_of_products(config, 16, 0.15, torch.bfloat16, torch.device("cpu")) > 0
