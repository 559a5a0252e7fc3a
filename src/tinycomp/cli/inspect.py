"""`tinycomp inspect MODEL.onnx|MODEL.tc`"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..diagnostics import TinycompError, UnsupportedModel
from .common import (
    add_compile_options,
    add_json_option,
    human_bytes,
    load_or_compile,
    note,
    print_json,
    print_table,
    print_values,
    require_file,
)

if TYPE_CHECKING:
    import onnx

    from ..runtime.artifact import Manifest
    from ..runtime.module import Module


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an ONNX file or an artifact")
    parser.add_argument(
        "--ir",
        choices=["relay", "te", "tir", "llvm", "asm", "cuda", "access"],
        help="print this level instead; access: how GPU kernels touch memory",
    )
    parser.add_argument(
        "--registers",
        action="store_true",
        help="print what the kernels use of the machine: spilled vector registers on a CPU; "
        "registers, spills, stack and shared memory on a GPU",
    )
    parser.add_argument(
        "--sass",
        action="store_true",
        help="count the machine instructions of GPU kernels, with what looks slow; needs nvdisasm",
    )
    add_json_option(parser)
    add_compile_options(parser)


def run(args: argparse.Namespace) -> int:
    from ..runtime.artifact import Artifact, is_artifact

    require_file(args.model)
    if args.ir:
        print(load_or_compile(args, args.model).ir(args.ir))
        return 0
    if args.registers:
        _show_registers(args, load_or_compile(args, args.model))
        return 0
    if args.sass:
        _show_sass(args, load_or_compile(args, args.model))
        return 0
    if is_artifact(args.model) or Path(args.model).suffix == ".tc":
        _show(args, _of_manifest(Artifact.load(args.model).manifest))
        return 0
    return _inspect_onnx(args)


def _show_registers(args: argparse.Namespace, module: Module) -> None:
    from ..runtime.cuda.module import CudaModule

    if isinstance(module, CudaModule):
        rows = [
            (entry, r.registers, r.spill_stores + r.spill_loads, r.stack, r.shared)
            for used in module.plan.resources.values()
            for entry, r in used.items()
        ]
        header = ("kernel", "registers", "spilled bytes", "stack", "shared")
    else:
        from ..codegen.inspect import find_spills

        loops = find_spills(module.ir("asm")).loops
        rows = [(l.loop, l.depth, l.spills, l.reloads) for l in loops]
        header = ("loop", "depth", "spills", "reloads")
    if args.json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
    elif rows:
        print_table("registers", header, [tuple(map(str, row)) for row in rows])
    else:
        print("no vector registers are spilled inside loops")


_COUNTED = ("HGMMA", "HMMA", "IMMA", "FFMA", "LDS", "LDSM", "LDG", "STG", "LDL", "STL", "BAR",
            "UTMALDG", "UTMASTG")  # fmt: skip


def _show_sass(args: argparse.Namespace, module: Module) -> None:
    """A line for each kernel: instructions of some kinds, loads of 16 bytes, FFMA for each LDS in
    its loops, and what is worth a look."""
    from ..codegen.cuda.sass import disassemble, findings
    from ..runtime.cuda.module import CudaModule

    if not isinstance(module, CudaModule):
        raise TinycompError("--sass is for GPUs", hint="add --target cuda")
    programmatic = module.manifest.target.programmatic
    header = ("kernel", "all", *_COUNTED, "LDG.128", "FFMA:LDS", "worth a look")
    rows = []
    for machine_code in module.artifact.objects.values():
        for name, code in disassemble(machine_code).items():
            counts = code.counts()
            inside = sum((code.counts(loop) for loop in code.loops), Counter())
            ratio = f"{inside['FFMA'] / inside['LDS']:.1f}" if inside["LDS"] else ""
            remarks = findings(code)
            if programmatic and (early := code.early_reads()):
                remarks.append(f"{early[0].name} comes before the launch has waited")
            rows.append(
                (name, len(code.instructions), *(counts[base] for base in _COUNTED),
                 code.widths("LDG")[16], ratio, "; ".join(remarks))
            )  # fmt: skip
    if args.json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
    else:
        print_table("machine instructions", header, [tuple(map(str, row)) for row in rows])


def _inspect_onnx(args: argparse.Namespace) -> int:
    """What the file says by itself, then what compiling it gives; that may fail."""
    from ..frontend.onnx.read import read_model

    facts = _of_onnx(read_model(args.model))
    error: TinycompError | None = None
    try:
        facts |= _of_manifest(load_or_compile(args, args.model).manifest)
    except UnsupportedModel as unsupported:
        error = unsupported
        facts["unsupported"] = str(unsupported)
    _show(args, facts)
    if error is None:
        return 0
    note(f"error: {error}")
    return error.exit_code


def _of_onnx(model: onnx.ModelProto) -> dict[str, Any]:
    import math

    graph = model.graph
    initializers = {i.name for i in graph.initializer}
    operators = Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in graph.node)
    return {
        "opsets": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": [_value(i) for i in graph.input if i.name not in initializers],
        "outputs": [_value(o) for o in graph.output],
        "operators": dict(operators.most_common()),
        "parameters": sum(math.prod(i.dims) for i in graph.initializer if len(i.dims)),
    }


def _value(info: onnx.ValueInfoProto) -> str:
    import onnx

    tensor = info.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = [
        str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?"
        for d in tensor.shape.dim
    ]
    return f"{info.name}: {dtype}[{', '.join(shape)}]"


def _of_manifest(manifest: Manifest) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "target": str(manifest.target),
        "made by": f"tinycomp {manifest.tinycomp}, llvmlite {manifest.llvmlite}",
        "inputs": [str(spec) for spec in manifest.inputs],
        "outputs": [str(spec) for spec in manifest.outputs],
        "threads": manifest.max_threads,
    }
    if manifest.dims:  # the rest depends on sizes
        return {**facts, "open_dimensions": {n: str(r) for n, r in manifest.dims.items()}}
    return {
        **facts,
        "parameters": manifest.parameters,
        "precision": _precision(manifest.options),
        "flops": sum(kernel.flops for kernel in manifest.kernels),
        "kernel_calls": len(manifest.kernels),
        "distinct_kernels": len({kernel.name for kernel in manifest.kernels}),
        "arena_bytes": manifest.arena_bytes,
        "unshared_bytes": manifest.unshared_bytes,
        "groups": [
            {
                "operators": k.label,
                "nodes": list(k.nodes),
                "flops": k.flops,
                "bytes": k.nbytes,
                "precision": k.precision,
            }
            for k in manifest.kernels
        ],
    }


def _precision(options: Mapping[str, Any]) -> str:
    overrides = options.get("precision_overrides", {})
    return ", ".join(
        [options.get("precision", "fp32"), *(f"{k}={v}" for k, v in overrides.items())]
    )


def _show(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    if args.json:
        print_json(facts)
        return
    groups = facts.pop("groups", [])
    facts.pop("unsupported", None)
    lines: dict[str, object] = {}
    for name, value in facts.items():
        lines[name.replace("_", " ")] = _text(name, value)
    print_values(lines)
    if groups:
        print()
        rows = [
            (i, g["operators"], f"{g['flops'] / 1e6:.3f}", human_bytes(g["bytes"]), g["precision"],
             ", ".join(g["nodes"][:4]) + (", ..." if len(g["nodes"]) > 4 else ""))
            for i, g in enumerate(groups)
        ]  # fmt: skip
        print_table(
            "fused groups", ("call", "operators", "MFLOP", "bytes", "precision", "ONNX nodes"), rows
        )


def _text(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return human_bytes(value)
    if name in ("flops", "parameters"):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "; ".join(value) if isinstance(value, list) else str(value)
