"""One computation in tinycomp, PyTorch, torch.compile and Triton: checked, then timed together."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from device import Program, compile_graph, relative_error
from harness import Env, Row, engine_failed
from timing import DriverGraph, Timed, beside_best, measure, rates, sets_for, torch_graph

from tinycomp.dtype import DType

Shapes = Sequence[tuple[Sequence[int], str]]
LIMITS = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}


def contest(
    env: Env,
    make: Callable[..., Any],
    inputs: Shapes,
    torch_call: str | Callable[..., Any],
    triton_call: str = "",
    *,
    precision: str = "fp32",
    flops: float = 0,
    channels_last: Sequence[int] = (),
    autotune: bool = False,
    weights: Sequence[int] = (),
) -> Iterator[Row]:
    """Rows of all engines for one computation.

    Args:
        make: the graph for tinycomp, `make(builder, *inputs)`.
        torch_call: the name of the function in `peers.torch_ops`, or how to get one from there.
        triton_call: the name in `peers.triton_ops` of one that takes an output too.
        precision: of products; "tf32" switches it on in the peers as well.
        flops: of the computation, to report TFLOP/s; 0 reports GB/s only.
        channels_last: positions of inputs in NCHW that the peers get with channels innermost.
        weights: positions of inputs that are constants; all engines reuse them in every launch.
    """
    inputs = [(env.sizes(*shape), dtype) for shape, dtype in inputs]
    rng = np.random.default_rng(0)
    first = [_random(rng, s, d) for s, d in inputs]
    known = {i: first[i] for i in weights}
    program = compile_graph(env, make, *inputs, precision=precision, constants=known)
    facts = {"kernels": program.kernels, "precision": _precision(program)}
    if env.compile_only:
        yield {"engine": "tinycomp", "compiled": True, **facts}
        return
    nbytes = sum(t.nbytes for t in (*program.plan.plan.inputs, *program.plan.plan.outputs))
    nbytes += sum(a.nbytes for a in known.values())
    count = 2 if env.dry else sets_for(nbytes)
    sets = [first]
    for _ in range(count - 1):
        sets.append(
            [known[i] if i in known else _random(rng, s, d) for i, (s, d) in enumerate(inputs)]
        )
    engines: dict[str, Timed] = {}
    errors: dict[str, float] = {}
    builders = _engines(
        env, program, sets, weights, torch_call, triton_call, precision, channels_last, autotune
    )
    wanted: np.ndarray | None = None
    for name, build in builders.items():
        try:
            got, engine = build()
        except Exception as error:  # another engine's failure is a row, and ours still counts
            yield engine_failed(name, error)
            continue
        if name == "float64":
            wanted = got
            continue
        engines[name] = engine
        if wanted is not None:
            errors[name] = relative_error(got, wanted)
    limit = 1e-3 if precision == "tf32" else LIMITS[inputs[0][1]]
    right = {name for name, error in errors.items() if error <= limit}
    times = measure(env, engines)
    for name, found in times.items():
        row: Row = {"engine": name, **rates(found, nbytes, flops)}
        row["sets"] = count
        if name in errors:
            row |= {"error": errors[name], "ok": name in right}
        if name == "tinycomp":
            row |= {"ratio": beside_best(right, times, name), **facts}
        yield row


def _precision(program: Program) -> str:
    return "; ".join(dict.fromkeys(k.precision for k in program.module.manifest.kernels))


_PERIOD = 1 << 24  # values after which large arrays repeat: more than the caches hold


def _random(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    count = math.prod(shape)
    values = rng.standard_normal(min(count, _PERIOD), np.float32).astype(DType(dtype).numpy)
    return np.resize(values, tuple(shape))


def _engines(
    env: Env, program: Program, sets: list[list[np.ndarray]], weights: Sequence[int],
    torch_call: Any, triton_call: str, precision: str, channels_last: Sequence[int],
    autotune: bool,
) -> dict[str, Callable[[], tuple[np.ndarray, Any]]]:  # fmt: skip
    """How each engine is made ready: its result for the first set, and what to time."""
    torch = functools.partial(_torch, env, sets, torch_call, precision, channels_last)
    engines = {
        "float64": functools.partial(_reference, env, sets[0], torch_call),
        "tinycomp": functools.partial(_tinycomp, program, sets, weights),
        "torch": functools.partial(torch, "eager"),
        "torch.compile": functools.partial(torch, "max-autotune" if autotune else "compile"),
    }
    if triton_call:
        engines["triton"] = functools.partial(_triton, env, program, sets, triton_call, precision)
    return engines


def _tinycomp(
    program: Program, sets: list[list[np.ndarray]], weights: Sequence[int]
) -> tuple[np.ndarray, Timed]:
    inputs = [[a for i, a in enumerate(one) if i not in weights] for one in sets]
    frames = [program.frame(one) for one in inputs]
    graph = DriverGraph(
        program.driver, lambda i, stream: program.enqueue(frames[i], stream), len(sets)
    )
    return program.results(frames[0])[0], graph


def _reference(env: Env, inputs: list[np.ndarray], torch_call: Any) -> tuple[np.ndarray, None]:
    from peers import torch_ops

    call = _named(torch_ops, "plain_attention" if torch_call == "attention" else torch_call)
    held = (torch_ops.on_device(a, env.device).double() for a in inputs)
    return torch_ops.to_numpy(call(*held)), None


def _named(ops: Any, torch_call: Any) -> Callable[..., Any]:
    return getattr(ops, torch_call) if isinstance(torch_call, str) else torch_call(ops)


def _torch(
    env: Env, sets: list[list[np.ndarray]], torch_call: Any, precision: str,
    channels_last: Sequence[int], mode: str,
) -> tuple[np.ndarray, Timed]:  # fmt: skip
    from peers import torch_ops

    torch_ops.allow_tf32(precision == "tf32")
    call = _named(torch_ops, torch_call)
    if mode != "eager":
        call = torch_ops.compiled(call, mode == "max-autotune", env.device)
    arrays = _uploaded(env, sets)
    arrays = [
        [torch_ops.channels_last(t) if i in channels_last else t for i, t in enumerate(inputs)]
        for inputs in arrays
    ]
    result = torch_ops.to_numpy(call(*arrays[0]))
    return result, torch_graph(env, lambda i: call(*arrays[i]), len(sets))


def _uploaded(env: Env, sets: list[list[np.ndarray]]) -> list[list[Any]]:
    """On the device, each distinct array once."""
    from peers import torch_ops

    held = {id(a): torch_ops.on_device(a, env.device) for inputs in sets for a in inputs}
    return [[held[id(a)] for a in inputs] for inputs in sets]


def _triton(
    env: Env, program: Program, sets: list[list[np.ndarray]], name: str, precision: str
) -> tuple[np.ndarray, Timed]:
    import torch
    from peers import torch_ops, triton_ops

    call = getattr(triton_ops, name)
    if name == "matmul":
        call = functools.partial(call, precision=precision)
    shape = program.plan.plan.outputs[0].static_shape
    arrays = _uploaded(env, sets)
    outputs = [torch.full(shape, math.nan, dtype=a[0].dtype, device=env.device) for a in arrays]
    call(*arrays[0], outputs[0])
    result = torch_ops.to_numpy(outputs[0])
    return result, torch_graph(env, lambda i: call(*arrays[i], outputs[i]), len(sets))
