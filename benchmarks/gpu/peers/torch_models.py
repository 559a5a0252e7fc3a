"""The models in PyTorch: eager in a CUDA graph, and through torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from peers import torch_layers
from peers.models import Weights
from peers.torch_ops import DTYPES, allow_tf32, on_device, to_numpy


class Model(torch.nn.Module):
    """A definition of `peers.models` with its weights as parameters."""

    def __init__(
        self, definition: Callable[..., list[Any]], arrays: list[np.ndarray], precision: str,
        device: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.definition = definition
        dtype = DTYPES[precision]
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(on_device(a, device).to(dtype), requires_grad=False) for a in arrays
        )

    def forward(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return self.definition(torch_layers, Weights(list(self.weights)), inputs)

    def arrange(self, inputs: dict[str, torch.Tensor]) -> None:
        """Bring the weights into the layouts that PyTorch's layers keep them in."""
        used = Weights(list(self.weights))
        with torch.no_grad():
            self.definition(torch_layers, used, inputs)
            for position in used.paired:
                self.weights[position].data = torch_layers.layout(self.weights[position].data)


def prepared(
    definition: Callable[..., list[Any]], arrays: list[np.ndarray], inputs: dict[str, np.ndarray],
    precision: str, device: str,
) -> tuple[Model, dict[str, torch.Tensor]]:  # fmt: skip
    """The model and its inputs on the device in one precision."""
    allow_tf32(precision == "tf32")
    dtype = DTYPES[precision]
    held = {k: on_device(v, device) for k, v in inputs.items()}
    held = {k: v.to(dtype) if v.is_floating_point() else v for k, v in held.items()}
    model = Model(definition, arrays, precision, device).eval()
    model.arrange(held)
    return model, held


def outputs(model: Callable[..., Any], inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    with torch.no_grad():
        return [to_numpy(y) for y in model(inputs)]


def compiled(model: Model, mode: str, device: str) -> Callable[..., Any]:
    """torch.compile as its users call it, with its own graphs; on the CPU it only traces."""
    torch._dynamo.reset()
    if device == "cpu":
        return torch.compile(model, backend="aot_eager", dynamic=False)
    return torch.compile(model, mode=mode, dynamic=False)
