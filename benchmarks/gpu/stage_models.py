"""models: whole networks with random weights beside PyTorch (CUDA graph, torch.compile) and JAX.

All engines have the same weights and inputs, on the device; normalisations are folded into
convolutions for everyone. tinycomp appears twice: its kernels in one CUDA graph, and `module.run`
as a user calls it. At batch 1 small weights stay in the L2 cache, for all engines alike.

The networks come from `tinycomp.testing.models`, so nothing else is needed. ONNX files in the
folder that the environment variable MODELS names become cases too, "onnx/NAME": tinycomp alone,
beside its code for the CPU.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from device import FakeTensors, Program, TorchTensors, compile_module
from harness import Case, Env, Row, Skipped, engine_failed
from peers.models import MODELS, SIZES, SMALL, folded, weights_of
from timing import (
    DriverGraph,
    HostLoop,
    Timed,
    beside_best,
    measure,
    torch_calls,
    torch_graph,
)

from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.precision import Precision
from tinycomp.runtime.arrays import random_inputs
from tinycomp.runtime.dynamic import sample_specs
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
    networks = [
        Case(
            f"{name}/{precision}/b{batch}{suffix}",
            functools.partial(_run, name, precision, batch, peers),
            240,
        )
        for suffix, peers in PEERS.items()
        for name, precision, batch in plan
    ]
    files = sorted(Path(os.environ["MODELS"]).glob("*.onnx")) if "MODELS" in os.environ else []
    return networks + [
        Case(f"onnx/{path.stem}/{precision}", functools.partial(_run_file, path, precision), 240)
        for path in files
        for precision in ("fp32", "bf16")
    ]


def _run(name: str, precision: str, batch: int, peers: tuple[str, ...], env: Env) -> Iterator[Row]:
    builder, sizes, arguments = (SMALL if env.dry else SIZES)[name]
    definition = functools.partial(MODELS[name], **arguments)
    (batch,) = env.sizes(batch, most=2)
    model = builders()[builder](**sizes, batch=batch)
    program = compile_module(env, model, precision)
    programmatic = None
    if "tinycomp pdl" in peers:  # kernels may begin before the one ahead ends
        programmatic = compile_module(env, model, precision, f"{env.target} -pdl")
    facts = {"kernels": program.kernels}
    if env.compile_only:
        yield {"engine": "tinycomp", "compiled": True, **facts}
        return
    inputs = seeded_inputs(model, 0)
    arrays = folded(weights_of(model))
    torch = functools.partial(_torch, env, definition, arrays, inputs)
    builds = {
        "reference": functools.partial(torch, "fp32", "eager"),
        **_tinycomp_engines(env, program, inputs),
        "tinycomp pdl": functools.partial(_tinycomp, programmatic or program, inputs),
        "torch graph": functools.partial(torch, precision, "eager"),
        "torch.compile reduce-overhead": functools.partial(torch, precision, "reduce-overhead"),
        "torch.compile max-autotune": functools.partial(torch, precision, "max-autotune"),
        "jax": functools.partial(_jax, env, definition, arrays, inputs, precision),
    }
    chosen = {k: v for k, v in builds.items() if k in (*_ALWAYS, *peers)}
    yield from _compare(env, chosen, precision, facts)


def _run_file(path: Path, precision: str, env: Env) -> Iterator[Row]:
    """A model of others, at the smallest sizes that its open dimensions allow."""
    open_module = compile_with(Config.from_environment(), str(path))
    specs = sample_specs(open_module.inputs, open_module.dims)
    inputs = random_inputs(specs, 0)
    dims = {
        name: size
        for general, one in zip(open_module.inputs, specs, strict=True)
        for name, size in zip(general.shape, one.shape, strict=True)
        if isinstance(name, str) and isinstance(size, int)
    }
    program = compile_module(env, str(path), precision, dims=dims)
    facts = {"kernels": program.kernels}
    if env.compile_only:
        yield {"engine": "tinycomp", "compiled": True, **facts}
        return
    builds = {
        "reference": lambda: ([*open_module.run(inputs).values()], None),
        **_tinycomp_engines(env, program, inputs),
    }
    yield from _compare(env, builds, precision, facts)


def _compare(
    env: Env, builds: Mapping[str, Callable[[], tuple[Any, Any]]], precision: str, facts: Row
) -> Iterator[Row]:
    """Rows of all engines, checked against the one called "reference"."""
    wanted: list[np.ndarray] | None = None
    engines: dict[str, Timed] = {}
    errors: dict[str, float] = {}
    for engine, build in builds.items():
        try:
            got, timed = build()
        except Exception as error:  # another engine's failure is a row, and ours still counts
            yield engine_failed(engine, error)
            continue
        if engine == "reference":
            wanted = got
            continue
        engines[engine] = timed
        if wanted is not None:
            errors[engine] = worst(got, wanted)
    tolerance = 10 * Precision(precision).tolerance
    allowed = max(tolerance, 2 * min(errors.get("torch graph", 0.0), tolerance))
    right = {engine for engine, error in errors.items() if error <= allowed}
    times = measure(env, engines)
    for engine, found in times.items():
        row: Row = {"engine": engine, **found}
        if engine in errors:
            row |= {"error": errors[engine], "ok": engine in right}
        if engine.startswith("tinycomp"):
            row |= {"ratio": beside_best(right, times, engine), **facts}
        yield row


def worst(got: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The largest difference of any output, relative to its largest value."""
    pairs = zip(got, wanted, strict=True)
    return max(
        float(np.abs(a.astype("f8") - b.astype("f8")).max() / np.abs(b).max()) for a, b in pairs
    )


def _tinycomp_engines(
    env: Env, program: Program, inputs: dict[str, np.ndarray]
) -> dict[str, Callable[[], Prepared]]:
    engines = {"tinycomp run": functools.partial(_tinycomp_run, env, program, inputs)}
    if program.has_branches:  # decisions are no part of one graph
        return engines
    return {"tinycomp graph": functools.partial(_tinycomp, program, inputs), **engines}


def _tinycomp(program: Program, inputs: dict[str, np.ndarray]) -> Prepared:
    order = [inputs[spec.name] for spec in program.module.inputs]
    frame = program.frame(order)
    graph = DriverGraph(program.driver, lambda _, stream: program.enqueue(frame, stream))
    return program.results(frame), graph


def _tinycomp_run(env: Env, program: Program, inputs: dict[str, np.ndarray]) -> Prepared:
    """The public call with arrays on the device as inputs and outputs, in place: PyTorch's, or in a
    dry run those of the device made of NumPy."""
    module = program.module
    arrays: Any = FakeTensors(program.driver) if env.dry else TorchTensors()
    held = {k: arrays.put(v) for k, v in inputs.items()}
    out = {
        spec.name: arrays.put(np.zeros(tuple(int(d) for d in spec.shape), spec.dtype.numpy))
        for spec in module.outputs
    }

    def call() -> None:
        module.run(held, out=out, stream=arrays.stream)

    loop = HostLoop(call, lambda _: arrays.finish())
    return [arrays.get(y) for y in out.values()], loop


def _torch(
    env: Env, definition: Callable[..., Any], arrays: list[np.ndarray],
    inputs: dict[str, np.ndarray], precision: str, mode: str,
) -> tuple[list[np.ndarray], Timed]:  # fmt: skip
    from peers import torch_models

    model, held = torch_models.prepared(definition, arrays, inputs, precision, env.device)
    if mode == "eager":
        result = torch_models.outputs(model, held)
        return result, torch_graph(env, lambda _: model(held))
    call = torch_models.compiled(model, mode, env.device)
    result = torch_models.outputs(call, held)
    return result, torch_calls(env, lambda: call(held))


def _jax(
    env: Env, definition: Callable[..., Any], arrays: list[np.ndarray],
    inputs: dict[str, np.ndarray], precision: str,
) -> tuple[list[np.ndarray], Timed]:  # fmt: skip
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from peers import jax_models

    jax_models.require(env.device)
    if env.dry and precision == "fp16":
        raise Skipped("JAX has no attention in float16 on the CPU")
    call = jax_models.prepared(definition, arrays, inputs, precision)
    return jax_models.outputs(call), HostLoop(call, jax_models.finish)
