import inspect
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import varlen

from pretrain.varlen_attention import can_be_used, text_starts


def test_text_starts_of_rows():
    samples = torch.tensor([[4, 4, 4, 7, 7, -1], [9, 9, 9, 9, 9, 9], [9, 9, -1, -1, -1, -1]])
    starts = text_starts(samples)
    assert starts.tolist() == [0, 3, 5, 6, 12, 14] + [18] * 7
    assert starts.dtype == torch.int32


def test_as_many_texts_as_fit():
    starts = text_starts(torch.arange(6).repeat_interleave(2).reshape(2, 6))
    assert starts.tolist() == [0, 2, 4, 6, 8, 10, 12, 12, 12]


def test_torchs_kernel_takes_what_it_is_given():
    names = list(inspect.signature(varlen.varlen_attn).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"] and "scale" in names


@pytest.mark.parametrize(
    "device, dtype, dropout, capability, usable",
    [
        ("cuda", torch.bfloat16, 0.0, (8, 0), True),
        ("cuda", torch.bfloat16, 0.0, (7, 5), False),
        ("cuda", torch.float32, 0.0, (9, 0), False),
        ("cuda", torch.bfloat16, 0.1, (9, 0), False),
        ("cuda", torch.bfloat16, None, (9, 0), False),
        ("cpu", torch.bfloat16, 0.0, (9, 0), False),
    ],
)
def test_where_it_is_used(monkeypatch, device, dtype, dropout, capability, usable):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _device: capability)
    assert can_be_used(SimpleNamespace(type=device), dtype, dropout) is usable
