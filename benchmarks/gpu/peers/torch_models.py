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
        self, definition: Callable[..., list[Any]], arrays: list[np.ndarray], precision: str
    ) -> None:
        super().__init__()
        self.definition = definition
        dtype = DTYPES[precision]
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(on_device(a).to(dtype), requires_grad=False) for a in arrays
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


class Calls:
    """Calls of a compiled model between two events; it replays graphs of its own."""

    count = 1

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        for _ in range(5):  # compiles, warms up, records
            self._once()
        torch.cuda.synchronize()

    def _once(self) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            self.call()

    def seconds(self, replays: int) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(replays):
            self._once()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3


def prepared(
    definition: Callable[..., list[Any]], arrays: list[np.ndarray], inputs: dict[str, np.ndarray],
    precision: str,
) -> tuple[Model, dict[str, torch.Tensor]]:  # fmt: skip
    """The model and its inputs on the device in one precision."""
    allow_tf32(precision == "tf32")
    dtype = DTYPES[precision]
    held = {k: on_device(v) for k, v in inputs.items()}
    held = {k: v.to(dtype) if v.is_floating_point() else v for k, v in held.items()}
    model = Model(definition, arrays, precision).eval()
    model.arrange(held)
    return model, held


def outputs(model: Callable[..., Any], inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    with torch.no_grad():
        return [to_numpy(y) for y in model(inputs)]


def compiled(model: Model, mode: str) -> Callable[..., Any]:
    """torch.compile as its users call it, with its own graphs."""
    torch._dynamo.reset()
    return torch.compile(model, mode=mode, dynamic=False)
