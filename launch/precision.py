"""Computing a module in a lower precision than its weights are kept in, with each weight rounded once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call


class RoundedOnce(nn.Module):
    """A module computed in ``dtype`` on copies of its fp32 parameters, which are made once a call.

    Autocast rounds a weight each time it is used, and decides anew for each operation. Gradients arrive at the fp32
    parameters. Those of embeddings and normalisation are sums over all tokens, which a CPU takes in the parameter's type:
    thousands of numbers do not add up in bf16. So these stay in fp32, and what leaves a normalisation is ``dtype`` again.

    >>> layer = RoundedOnce(nn.Linear(2, 2), torch.bfloat16)
    >>> layer(torch.ones(1, 2, dtype=torch.bfloat16)).dtype, next(layer.parameters()).dtype
    (torch.bfloat16, torch.float32)
    """

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self.dtype = dtype
        summed = [module for module in inner.modules() if isinstance(module, (nn.Embedding, nn.LayerNorm))]
        kept = {id(parameter) for module in summed for parameter in module.parameters()}
        self.rounded = {name for name, parameter in inner.named_parameters() if id(parameter) not in kept}
        for module in summed:
            if isinstance(module, nn.LayerNorm):
                module.register_forward_pre_hook(lambda _, arguments: (arguments[0].float(),))
                module.register_forward_hook(lambda _module, _arguments, output: output.to(dtype))

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """What the inner module returns."""
        rounded = {
            name: parameter.to(self.dtype) for name, parameter in self.inner.named_parameters() if name in self.rounded
        }
        return functional_call(self.inner, rounded, arguments, keywords)
