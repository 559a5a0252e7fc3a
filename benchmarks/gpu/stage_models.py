"""models: whole networks with random weights beside PyTorch (CUDA graph, torch.compile) and JAX.

All engines have the same weights and inputs, on the device; normalisations are folded into
convolutions for everyone. tinycomp appears twice: its kernels in one CUDA graph, and `module.run`
as a user calls it. At batch 1 small weights stay in the L2 cache, for all engines alike.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from device import Program, compile_module
from harness import Case, Env, Row, engine_failed
from peers.models import MODELS, SIZES, folded, weights_of
from timing import DriverGraph, HostLoop, Timed, TorchGraph, beside_best, measure

from tinycomp.precision import Precision
from tinycomp.testing.graph_builder import seeded_inputs
from tinycomp.testing.models import builders

PEERS = {  # by the end of the case's name; autotuning takes minutes for each model
    "": ("torch graph", "torch.compile reduce-overhead", "jax"),
    "/autotune": ("torch graph", "torch.compile max-autotune"),
    "/pdl": ("tinycomp pdl",),
}
_ALWAYS = ("reference", "tinycomp graph", "tinycomp run")
Prepared = tuple[list[np.ndarray], Timed]


def cases() -> list[Case]:
    plan = [
        (name, precision, 1) for precision in ("bf16", "tf32", "fp16", "fp32") for name in MODELS
    ]
    plan += [(name, "bf16", 32) for name in ("resnet50", "bert_base", "vit_base")]
    return [
        Case(
            f"{name}/{precision}/b{batch}{suffix}",
            functools.partial(_run, name, precision, batch, peers),
            240,
        )
        for suffix, peers in PEERS.items()
        for name, precision, batch in plan
    ]


def _run(name: str, precision: str, batch: int, peers: tuple[str, ...], env: Env) -> Iterator[Row]:
    builder, sizes = SIZES[name]
    model = builders()[builder](**sizes, batch=batch)  # type: ignore[arg-type]
    program = compile_module(env, model, precision)
    programmatic = None
    if "tinycomp pdl" in peers:  # kernels may begin before the one ahead ends
        programmatic = compile_module(env, model, precision, f"{env.target} -pdl")
    facts = {"kernels": program.kernels}
    if env.dry:
        yield {"engine": "tinycomp", "compiled": True, **facts}
        return
    inputs = seeded_inputs(model, 0)
    arrays = folded(weights_of(model))
    wanted: list[np.ndarray] | None = None
    engines: dict[str, Timed] = {}
    errors: dict[str, float] = {}
    for engine, build in _engines(name, program, programmatic, arrays, inputs, precision).items():
        if engine not in (*_ALWAYS, *peers):
            continue
        try:
            got, timed = build()
        except Exception as error:  # another engine's failure is a row, and ours still counts
            yield engine_failed(engine, error)
            continue
        if engine == "reference":
            wanted = got
            continue
        engines[engine] = timed
        errors[engine] = float("nan") if wanted is None else worst(got, wanted)
    tolerance = 10 * Precision(precision).tolerance
    times = measure(engines)
    for engine, found in times.items():
        row: Row = {"engine": engine, **found, "error": errors[engine]}
        if engine.startswith("tinycomp"):
            allowed = max(tolerance, 2 * errors.get("torch graph", 0.0))
            row |= {"ok": bool(errors[engine] <= allowed), **facts}
            row["ratio"] = beside_best(times, engine)
        yield row


def worst(got: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The largest difference of any output, relative to its largest value."""
    pairs = zip(got, wanted, strict=True)
    return max(
        float(np.abs(a.astype("f8") - b.astype("f8")).max() / np.abs(b).max()) for a, b in pairs
    )


def _engines(
    name: str, program: Program, programmatic: Program | None, arrays: list[np.ndarray],
    inputs: dict[str, np.ndarray], precision: str,
) -> dict[str, Callable[[], tuple[list[np.ndarray], Any]]]:  # fmt: skip
    torch = functools.partial(_torch, MODELS[name], arrays, inputs)
    return {
        "reference": functools.partial(torch, "fp32", "eager"),
        "tinycomp graph": functools.partial(_tinycomp, program, inputs),
        "tinycomp pdl": functools.partial(_tinycomp, programmatic or program, inputs),
        "tinycomp run": functools.partial(_tinycomp_run, program, inputs),
        "torch graph": functools.partial(torch, precision, "eager"),
        "torch.compile reduce-overhead": functools.partial(torch, precision, "reduce-overhead"),
        "torch.compile max-autotune": functools.partial(torch, precision, "max-autotune"),
        "jax": functools.partial(_jax, MODELS[name], arrays, inputs, precision),
    }


def _tinycomp(program: Program, inputs: dict[str, np.ndarray]) -> Prepared:
    order = [inputs[spec.name] for spec in program.module.inputs]
    frame = program.frame(order)
    graph = DriverGraph(program.driver, lambda _, stream: program.enqueue(frame, stream))
    return program.results(frame), graph


def _tinycomp_run(program: Program, inputs: dict[str, np.ndarray]) -> Prepared:
    """The public call with PyTorch's tensors as inputs and outputs, in place."""
    import torch
    from peers.torch_ops import on_device, to_numpy

    module = program.module
    held = {k: on_device(v) for k, v in inputs.items()}
    out = {
        spec.name: torch.empty(
            tuple(int(d) for d in spec.shape), dtype=getattr(torch, spec.dtype), device="cuda"
        )
        for spec in module.outputs
    }
    stream = torch.cuda.current_stream()

    def call() -> None:
        module.run(held, out=out, stream=stream)

    loop = HostLoop(call, lambda _: torch.cuda.synchronize())
    return [to_numpy(y) for y in out.values()], loop


def _torch(
    definition: Callable[..., Any], arrays: list[np.ndarray], inputs: dict[str, np.ndarray],
    precision: str, mode: str,
) -> tuple[list[np.ndarray], Timed]:  # fmt: skip
    from peers import torch_models

    model, held = torch_models.prepared(definition, arrays, inputs, precision)
    if mode == "eager":
        result = torch_models.outputs(model, held)
        return result, TorchGraph(lambda _: model(held))
    call = torch_models.compiled(model, mode)
    result = torch_models.outputs(call, held)
    return result, torch_models.Calls(lambda: call(held))


def _jax(
    definition: Callable[..., Any], arrays: list[np.ndarray], inputs: dict[str, np.ndarray],
    precision: str,
) -> tuple[list[np.ndarray], Timed]:  # fmt: skip
    import os

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from peers import jax_models

    call = jax_models.prepared(definition, arrays, inputs, precision)
    return jax_models.outputs(call), HostLoop(call, jax_models.finish)
