"""The stages of run.sh. Written without a GPU: see PENDING.md."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
from pathlib import Path

import numpy as np

OUT = Path(os.environ.get("OUT", "benchmarks/gpu/results"))
SMALL = ("lenet", "bert", "gru_model")
REPEATS = 20


def launch_all(func, arrays):
    """Run a lowered function on the GPU; the arrays after it."""
    import cupy

    from tinycomp.codegen.cuda import emit_cuda
    from tinycomp.codegen.nvrtc import compile_cuda
    from tinycomp.runtime.cuda_driver import present_arch

    kernel = emit_cuda(func, present_arch())
    module = cupy.cuda.function.Module()
    module.load(compile_cuda(kernel.source, present_arch()).code)
    device = [cupy.asarray(a) for a in arrays]
    workspace = cupy.zeros(kernel.workspace_bytes + 256, np.uint8)
    error = cupy.zeros(1, np.int32)
    for one in kernel.launches:
        function = module.get_function(one.name)
        if one.dynamic_shared:
            cupy.cuda.driver.funcSetAttribute(function.ptr, 8, one.dynamic_shared)
        arguments = [np.uint64(device[i].data.ptr) for i in one.params]
        arguments += [np.uint64(workspace.data.ptr + offset) for offset in one.workspace]
        if one.can_fail:
            arguments += [np.uint64(error.data.ptr), np.int32(1)]
        stream = cupy.cuda.Stream.null
        function(one.grid, one.block, tuple(arguments), one.dynamic_shared, stream)
    return [d.get() for d in device]


def elementwise(name, dtype, arrays):
    """An intrinsic of every element of the arrays, as a kernel."""
    from tinycomp import te
    from tinycomp.dtype import DType
    from tinycomp.ir.expr import call
    from tinycomp.schedules.gpu.bind import bind_unbound
    from tinycomp.tir.lower_gpu import lower_gpu

    tensors = [te.placeholder(a.shape, DType.of(a.dtype), f"x{i}") for i, a in enumerate(arrays)]
    out = te.compute(
        arrays[0].shape, lambda i: call(name, *(t[i] for t in tensors)).astype(dtype), name="out"
    )
    schedule = te.create_schedule(out.op)
    return lower_gpu(bind_unbound(schedule.func))


def smoke():
    """The error of every elementary function, in ulp of float32, and 16-bit conversions."""
    from tinycomp.ir.expr import INTRINSICS
    from tinycomp.te.evaluate_expr import INTRINSIC

    rng = np.random.default_rng(0)
    left_out = ("checked_index", "if_then_else", "popcount", "not", "bit_not", "likely")
    count = {"pow": 2, "atan2": 2, "fma": 3}
    worst = {}
    for name in (n for n in INTRINSICS if n not in left_out):
        arrays = [rng.standard_normal(4096).astype("f4") * 4 for _ in range(count.get(name, 1))]
        is_bool = INTRINSICS[name] == "bool"
        out = np.zeros(4096, bool if is_bool else "f4")
        got = launch_all(elementwise(name, str(out.dtype), arrays), [*arrays, out])[-1]
        with np.errstate(all="ignore"):
            wanted = INTRINSIC[name](*arrays)
        difference = np.abs(got.astype("f8") - wanted.astype("f8"))
        scale = np.spacing(np.abs(wanted).astype("f4")).astype("f8")
        finite = np.isfinite(wanted)
        worst[name] = float((difference / scale)[finite].max(initial=0))
        same = np.array_equal(np.isnan(got), np.isnan(wanted))
        print(f"{name:12} {worst[name]:8.2f} ulp {'' if same else 'NaN AT OTHER PLACES'}")
    for short in ("float16", "bfloat16"):
        from tinycomp.dtype import DType

        x = rng.standard_normal(4096).astype(DType(short).numpy)
        got = launch_all(elementwise("neg", short, [x]), [x, np.zeros_like(x)])[-1]
        worst[short] = float(np.abs(got.astype("f4") + x.astype("f4")).max())
        print(f"{short:12} {worst[short]} difference after load and store")
    return worst


def correctness(names=None):
    """Tiny models of every architecture, against the code for the CPU."""
    import tinycomp
    from tinycomp.runtime.compare import compare
    from tinycomp.testing.graph_builder import seeded_inputs
    from tinycomp.testing.models import TINY, builders

    results = {}
    for name in names or TINY:
        model = builders()[name](**TINY[name])
        inputs = seeded_inputs(model, 0)
        try:
            module = tinycomp.compile(model, target="cuda")
            wanted = tinycomp.compile(model).run(inputs)  # the CPU's code
            worst = max(c.difference for c in compare(module.run(inputs), wanted))
            results[name] = {"difference": worst, "ok": bool(worst <= 1e-4)}
        except Exception as error:  # one failing model must not hide the others
            traceback.print_exc()
            results[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        print(name, results[name])
    return results


def sanitizer():
    return correctness(SMALL)


def timed(run):
    """Median microseconds of a run on the device."""
    import cupy

    run()
    times = []
    for _ in range(REPEATS):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, stop) * 1e3)
    return statistics.median(times)


def ceilings():
    """Copy bandwidth, and products through cuBLAS, of this GPU now."""
    import cupy

    results = {}
    source = cupy.random.standard_normal(1 << 28, dtype=np.float32)
    target = cupy.empty_like(source)
    micros = timed(lambda: cupy.copyto(target, source))
    results["copy_gb_per_s"] = 2 * source.nbytes / micros / 1e3
    for n in (1024, 2048, 4096, 8192):
        a, b = (cupy.random.standard_normal((n, n), dtype=np.float32) for _ in range(2))
        c = cupy.empty_like(a)
        micros = timed(lambda a=a, b=b, c=c: cupy.matmul(a, b, out=c))
        results[f"sgemm_{n}_tflops"] = 2 * n**3 / micros / 1e6
    for name, value in results.items():
        print(f"{name:24} {value:10.2f}")
    return results


def models():
    """Time of one run of each built-in model at its default size, arrays on the host and back."""
    import tinycomp
    from tinycomp.testing.graph_builder import seeded_inputs
    from tinycomp.testing.models import builders

    results = {}
    for name, build in builders().items():
        model = build()
        try:
            module = tinycomp.compile(model, target="cuda")
            inputs = seeded_inputs(model, 0)
            module.run(inputs)
            times = []
            for _ in range(REPEATS):
                begin = time.perf_counter()
                module.run(inputs)
                times.append((time.perf_counter() - begin) * 1e3)
            results[name] = {"ms": statistics.median(times)}
            device = module._device  # the graph alone, without copies to and from the host
            if device.graph is not None:
                with device.stream:
                    results[name]["graph_us"] = timed(lambda d=device: d.graph.launch(d.stream))
        except Exception as error:  # one failing model must not hide the others
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        print(name, results[name])
    return results


STAGES = {f.__name__: f for f in (smoke, correctness, sanitizer, ceilings, models)}


def main() -> int:
    stage = sys.argv[1]
    result = STAGES[stage]()
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{stage}.json").write_text(json.dumps(result, indent=1) + "\n")
    failed = [n for n, r in result.items() if isinstance(r, dict) and not r.get("ok", "ms" in r)]
    if failed:
        print("failed:", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
