"""The models in JAX, compiled by XLA; weights are arguments on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peers import jax_layers
from peers.models import Weights

DTYPES = {
    "fp32": jnp.float32, "tf32": jnp.float32, "fp16": jnp.float16, "bf16": jnp.bfloat16,
}  # fmt: skip
MATMUL = {"fp32": "highest", "tf32": "tensorfloat32", "fp16": "default", "bf16": "default"}


def require(device: str) -> None:
    """Raise RuntimeError unless JAX computes there: "cpu", or PyTorch's name of a GPU."""
    wanted, found = "gpu" if device == "cuda" else device, jax.default_backend()
    if found != wanted:
        raise RuntimeError(f"JAX computes on the {found}, not on the {wanted}")


def prepared(
    definition: Callable[..., list[Any]], arrays: list[np.ndarray], inputs: dict[str, np.ndarray],
    precision: str,
) -> Callable[[], list[Any]]:  # fmt: skip
    """A call that enqueues one run."""
    dtype = DTYPES[precision]
    weights = [jax.device_put(jnp.asarray(a, dtype)) for a in arrays]
    held = {
        k: jax.device_put(jnp.asarray(v, dtype if v.dtype.kind == "f" else jnp.int32))
        for k, v in inputs.items()
    }

    @jax.jit
    def forward(weights: list[Any], inputs: dict[str, Any]) -> list[Any]:
        with jax.default_matmul_precision(MATMUL[precision]):
            return definition(jax_layers, Weights(weights), inputs)

    return functools.partial(forward, weights, held)


def finish(results: Any) -> None:
    jax.block_until_ready(results)


def outputs(call: Callable[[], list[Any]]) -> list[np.ndarray]:
    return [np.asarray(y, np.float32) for y in call()]
