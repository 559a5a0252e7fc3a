"""From a model to a `Module`: the pipeline from top to bottom.

    model -> relay -> fused relay -> [te -> tir -> LLVM IR -> object code] per kernel
          -> memory plan -> entry function -> artifact -> Module

Two caches make it fast the second time: whole artifacts by the model's content, and kernels by
what they compute, so that models and layers share them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import Config
from .diagnostics import ArtifactError, MemoryBudgetError, ModelError, TinycompError
from .dims import DimRange, split_dims
from .extension import NO_EXTENSION, Extension
from .precision import Precision, PrecisionPolicy
from .runtime.arrays import aligned_empty
from .runtime.artifact import Artifact, Manifest, ValueSpec
from .runtime.cache import Cache, content_key, source_digest, touch
from .runtime.cuda.driver import choose_target
from .runtime.dynamic import DynamicModule
from .runtime.module import Module
from .runtime.native import POOL_OBJECT
from .runtime.static import static_module
from .source import Source
from .specialize import (
    Interface,
    LazyModel,
    ModelSpecializer,
    interface_from_json,
    interface_of,
    interface_to_json,
    open_dims,
)
from .target import Target, default_num_threads

if TYPE_CHECKING:
    from .frontend.onnx import OnnxModel
    from .ops.rnn import Unrolling
    from .relay.nodes import IRModule
    from .relay.pass_infra import PassContext
    from .relay.plan import ExecutionPlan
    from .source import Model

Reporter = Callable[[str, int, int], None]
"""Called as `(stage, done, total)` while compiling."""


def compile(
    model: Model,
    target: str | Target = "llvm",
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, Any] | None = None,
    num_threads: int | None = None,
    opt_level: int = 3,
    precision: str = "fp32",
    precision_overrides: Mapping[str, str] | None = None,
    tuning_records: str | os.PathLike[str] | None = None,
    progress: Reporter | None = None,
    extension: Extension | None = None,
) -> Module:
    """Compile a model.

    Args:
        model: path of an ONNX file, its bytes, a ModelProto, or a relay IRModule.
        target: "llvm" for this machine's CPU, or for instance "llvm -mcpu=x86-64-v3"; "cuda" for
            this machine's GPU, or sm_90a where there is none; "cuda -arch=sm_80".
        input_shapes: shapes by input name, where the model leaves them open.
        dims: what is known of open dimensions by name: a size 8, a range (1, 64), buckets
            [1, 8, 32] to compile ahead of time, "auto" or "auto..512" for buckets that are powers
            of two, compiled when needed, or None for any size. With dimensions that remain open
            the result is a `runtime.dynamic.DynamicModule`.
        num_threads: threads of one call; default: the cores this process may use.
        opt_level: 0 (as imported, each operator a kernel) to 3 (everything).
        precision: of matrix products and convolutions: "fp32" (as accurate as a loop of float32
            multiply-adds; on sm_90a large products are computed by parts on tensor cores),
            "fp32_strict" (by such multiply-adds alone), "tf32" (float32 operands rounded to 10
            bits of mantissa for a GPU's tensor cores), "fp16" or "bf16" (operands, weights
            and what goes between kernels stored in 16 bits). Sums, normalisations, softmax and
            exponentials are float32 always, and inputs and outputs keep their types. On CPUs
            16 bits save memory, not time, and tf32 is refused.
        precision_overrides: precisions of single operators, by globs over the names of ONNX nodes
            and over operators: `{"conv2d": "bf16", "*/lm_head/*": "fp32"}`; the last match counts.
        tuning_records: a file of the autotuner's records.
        progress: called as `(stage, done, total)`.
        extension: operators, importers, passes and schedules besides tinycomp's own.

    Raises:
        TinycompError: the model is damaged (ModelError), uses what is not supported
            (UnsupportedModel), or an argument does not fit.

    >>> import tinycomp                                             # doctest: +SKIP
    >>> module = tinycomp.compile("model.onnx", dims={"batch": 1})  # doctest: +SKIP
    >>> module.run({"x": x})["y"]                                   # doctest: +SKIP
    """
    return compile_with(
        Config.from_environment(),
        model,
        target=target,
        input_shapes=input_shapes,
        dims=dims,
        num_threads=num_threads,
        opt_level=opt_level,
        precision=precision,
        precision_overrides=precision_overrides,
        tuning_records=tuning_records,
        progress=progress,
        extension=extension,
    )


@dataclass(frozen=True)
class Options:
    """What besides the model decides about the result."""

    target: Target
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    num_threads: int = 1
    opt_level: int = 3
    precision: PrecisionPolicy = field(default_factory=PrecisionPolicy)
    tuning_records: str = ""
    memory_budget: int = field(default_factory=lambda: Config().memory_budget)
    extension: Extension = NO_EXTENSION

    def text(self) -> str:
        """The same text for the same options; the memory budget changes no result."""
        shapes, dims = sorted(self.input_shapes.items()), sorted(self.dims.items())
        return repr(
            (self.target, shapes, dims, self.num_threads, self.opt_level, str(self.precision),
             self.tuning_records, self.extension.name)
        )  # fmt: skip

    def recorded(self) -> dict[str, Any]:
        """What a manifest says about how the model was compiled."""
        overrides = {glob: str(p) for glob, p in self.precision.overrides}
        return {
            "opt_level": self.opt_level,
            "precision": str(self.precision.base),
            **({"precision_overrides": overrides} if overrides else {}),
            **({} if self.extension.is_empty else {"extension": self.extension.name}),
        }


def compile_with(
    config: Config,
    model: Model,
    *,
    target: str | Target = "llvm",
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, Any] | None = None,
    num_threads: int | None = None,
    opt_level: int = 3,
    precision: str = "fp32",
    precision_overrides: Mapping[str, str] | None = None,
    tuning_records: str | os.PathLike[str] | None = None,
    progress: Reporter | None = None,
    extension: Extension | None = None,
) -> Module:
    """`compile` with explicit settings instead of those of the environment."""
    if num_threads is None:
        num_threads = config.num_threads or default_num_threads()
    sizes, ranges = split_dims(dims)
    options = Options(
        choose_target(target),
        {name: tuple(shape) for name, shape in (input_shapes or {}).items()},
        sizes,
        num_threads,
        opt_level,
        PrecisionPolicy.of(precision, precision_overrides),
        _read_records(tuning_records),
        config.memory_budget,
        extension or NO_EXTENSION,
    )
    _check(options)
    source = Source.of(model)
    cache = Cache.from_config(config) if options.extension.is_cacheable else Cache(None)
    job = _Job(cache, options, source, progress or _silent)
    lazy = LazyModel(functools.partial(_read_model, model, source, options.extension))
    inputs, outputs = _interface(job, lazy, ranges)
    names = open_dims(inputs)
    if not names:
        return static_module(job.artifact(lazy, {}), num_threads=num_threads)
    given = {name: ranges.get(name, DimRange()) for name in names}
    manifest = _dynamic_manifest(job, inputs, outputs, given)
    module = DynamicModule(manifest, _specializer(job, lazy), num_threads=num_threads)
    module.compile_buckets()
    return module


def open_dynamic(artifact: Artifact, *, num_threads: int | None = None) -> Module:
    """The module of an artifact with open dimensions."""

    def read() -> OnnxModel:
        from .frontend.onnx import OnnxModel

        return OnnxModel.from_sections(artifact.objects["model"], artifact.constants)

    manifest, config = artifact.manifest, Config.from_environment()
    made = manifest.options
    if made.get("extension"):
        raise TinycompError(
            f"the sizes of this model are compiled when needed, with {made['extension']!r}, which "
            "an artifact does not hold",
            hint="compile the model again with its extension",
        )
    options = Options(
        manifest.target,
        {name: tuple(shape) for name, shape in made["input_shapes"].items()},
        made["dims"],
        manifest.max_threads,
        made["opt_level"],
        PrecisionPolicy.of(made["precision"], made.get("precision_overrides")),
        memory_budget=config.memory_budget,
    )
    source = Source(manifest.model_key, manifest.source, manifest.source_digest)
    job = _Job(Cache.from_config(config), options, source, _silent)
    lazy = LazyModel(read)
    return DynamicModule(
        manifest, _specializer(job, lazy), artifact.variants, num_threads=num_threads
    )


_UNCHANGED = b"the model itself"  # what the cache holds for a variant that is none


@dataclass(frozen=True)
class _Job:
    """What stays the same for all sizes of a model."""

    cache: Cache
    options: Options
    source: Source
    report: Reporter

    def artifact(
        self,
        lazy: LazyModel,
        sizes: Mapping[str, int],
        variant: str = "",
        make: Callable[[], IRModule | None] = lambda: None,
    ) -> Artifact:
        """Compiled for these sizes of the open dimensions, or taken from the cache.

        A `variant` is the model as `make` returns it; None if it is the model itself.
        """
        options = dataclasses.replace(self.options, dims={**self.options.dims, **sizes})
        key = content_key(self.source.key, options.text(), source_digest(), variant)
        if variant and self.cache.get(key) == _UNCHANGED:
            return self.artifact(lazy, sizes)
        artifact = _cached(self.cache, key)
        if artifact is None:
            if sizes:
                self.report(", ".join(f"{n}={s}" for n, s in sizes.items()), 0, 1)
            module = make()
            if variant and module is None:
                self.cache.put(key, _UNCHANGED)
                return self.artifact(lazy, sizes)
            artifact = build(module or lazy.read(), options, self.cache, self.report)
            _store(self.cache, key, artifact)
        manifest = dataclasses.replace(
            artifact.manifest, source=self.source.path, source_digest=self.source.digest
        )
        return dataclasses.replace(artifact, manifest=manifest)


def _read_model(model: Model, source: Source, extension: Extension) -> OnnxModel | IRModule:
    from .frontend.onnx import OnnxModel
    from .relay.nodes import IRModule

    if isinstance(model, IRModule | OnnxModel):
        return model
    if source.path and Source.of(model).key != source.key:
        raise ModelError(
            f"model file {model} has changed since it was opened", hint="compile the model again"
        )
    path_or_data = Path(model) if isinstance(model, os.PathLike) else model
    return OnnxModel.read(path_or_data, extension.importers())


def _interface(job: _Job, lazy: LazyModel, ranges: Mapping[str, DimRange]) -> Interface:
    """Inputs and outputs; kept in the cache, so that a model in it need not be read."""
    options = job.options
    shapes, dims = sorted(options.input_shapes.items()), sorted(options.dims.items())
    facts = repr((shapes, dims, sorted(ranges)))
    key = content_key("interface", job.source.key, facts, source_digest())
    stored = job.cache.get(key)
    if stored is not None:
        return interface_from_json(stored)
    found = interface_of(lazy.read(), options.input_shapes, options.dims, list(ranges))
    job.cache.put(key, interface_to_json(found))
    return found


def _dynamic_manifest(
    job: _Job,
    inputs: Sequence[ValueSpec],
    outputs: Sequence[ValueSpec],
    dims: Mapping[str, DimRange],
) -> Manifest:
    import llvmlite

    options = job.options
    return Manifest(
        options.target,
        tuple(inputs),
        tuple(outputs),
        kernels=(),
        arena_bytes=0,
        unshared_bytes=0,
        max_threads=options.num_threads,
        options={
            **options.recorded(),
            "input_shapes": {n: list(s) for n, s in options.input_shapes.items()},
            "dims": dict(options.dims),
        },
        source=job.source.path,
        source_digest=job.source.digest,
        generator=source_digest(),
        llvmlite=llvmlite.__version__,
        dims=dims,
        model_key=job.source.key,
    )


def _specializer(job: _Job, lazy: LazyModel) -> ModelSpecializer:
    def specialize(model: Any, sizes: Mapping[str, int], unrolling: Unrolling) -> IRModule:
        from .ops.rnn import recurrent_importers
        from .relay.pass_infra import PassContext
        from .relay.passes.simplify_inference import SimplifyInference

        extension = job.options.extension
        importers = {**recurrent_importers(unrolling), **extension.onnx}
        options = dataclasses.replace(
            job.options,
            dims={**job.options.dims, **sizes},
            extension=dataclasses.replace(extension, onnx=importers),
        )
        ctx = PassContext(extension.op_set())
        return SimplifyInference().run(import_model(model, options), ctx)

    ops = job.options.extension.op_set()
    return ModelSpecializer(lazy, functools.partial(job.artifact, lazy), specialize, ops)


def build(model: Model, options: Options, cache: Cache, report: Reporter) -> Artifact:
    """Compile without looking for a finished artifact."""
    from .cuda_kernels import assemble_cuda, compile_cuda_kernels
    from .kernels import compile_kernels
    from .relay.pass_infra import PassContext, Sequential

    report("import", 0, 1)
    module = import_model(model, options)
    check_overrides(module, options.precision)
    report("optimize", 0, 1)
    extension = options.extension
    ctx = PassContext(extension.op_set(), options.target, options.opt_level)
    parameters = parameter_count(module)
    module = Sequential(extension.passes).run(module, ctx)
    module = optimize(module, ctx, options.target, options.precision)
    if options.target.kind == "cuda":
        return assemble_cuda(
            module,
            compile_cuda_kernels(module.main, options.target, cache, report, extension),
            options.target,
            options.recorded(),
            parameters,
        )
    kernels = compile_kernels(module.main, options, cache, report)
    report("plan memory", 0, 1)
    return assemble(module, kernels, options, parameters)


def import_model(model: Model, options: Options) -> IRModule:
    """The model as unoptimised relay."""
    from .relay.nodes import IRModule

    if isinstance(model, IRModule):
        return _fix_dims(model, options.dims)
    from .frontend.onnx import OnnxModel, from_onnx

    ops, importers = options.extension.op_set(), options.extension.importers()
    if isinstance(model, OnnxModel):
        shapes, dims, budget = options.input_shapes, options.dims, options.memory_budget
        return model.specialize(shapes, dims, budget, ops, importers)
    path_like = isinstance(model, os.PathLike)
    return from_onnx(
        Path(model) if path_like else model,  # type: ignore[arg-type]
        ops=ops,
        importers=importers,
        input_shapes=options.input_shapes,
        dims=options.dims,
        memory_budget=options.memory_budget,
    )


def check_overrides(module: IRModule, policy: PrecisionPolicy) -> None:
    """Refuse precision overrides that match no node and no operator of an imported model."""
    from .relay.nodes import Call, all_functions
    from .relay.op import Op

    nodes: set[str] = set()
    operators: set[str] = set()
    for root in module.functions.values() if policy.overrides else ():
        for function in all_functions(root):
            for binding in function.bindings:
                nodes.update(binding.span.nodes)
                if isinstance(binding.value, Call) and isinstance(binding.value.op, Op):
                    operators.add(binding.value.op.name)
    policy.check(nodes, operators)


def _fix_dims(module: IRModule, dims: Mapping[str, int]) -> IRModule:
    from .ops import default_ops
    from .relay.pass_infra import PassContext
    from .relay.passes.dynamic_to_static import DynamicToStatic

    return DynamicToStatic(dims).run(module, PassContext(default_ops()))


def optimize(
    module: IRModule, ctx: PassContext, target: Target, policy: PrecisionPolicy | None = None
) -> IRModule:
    """Fused relay: every operator is in a primitive function, one per kernel."""
    from .pipeline import default_pipeline

    return default_pipeline(ctx.opt_level, target, policy or PrecisionPolicy()).run(module, ctx)


def assemble(
    module: IRModule, kernels: Mapping[str, Any], options: Options, parameters: int
) -> Artifact:
    """Memory plan, entry function and constants around compiled kernels."""
    import llvmlite

    from .codegen.entry import emit_entry
    from .codegen.llvm import compile_kernels
    from .codegen.threadpool import emit_threadpool
    from .kernels import THREADS_MEET, kernel_infos, kernel_precisions, specs
    from .levels import kernels_text
    from .relay.constant_pool import ConstantPool
    from .relay.passes.branches import Workers
    from .relay.passes.plan_memory import plan_memory

    pool = ConstantPool()
    threads = options.num_threads
    workers = Workers(threads, THREADS_MEET)
    plan = plan_memory(module.main, lambda b: kernels[_key(b)].planned(threads), pool, workers)
    _check_memory(plan, options.memory_budget)
    target = options.target
    runtime = {
        "entry": compile_kernels([emit_entry(plan, target)], target, opt=1),
        POOL_OBJECT: compile_kernels([emit_threadpool(target)], target, opt=2),
    }
    constants = aligned_empty((pool.nbytes,), np.dtype(np.uint8))
    pool.write_into(constants)
    manifest = Manifest(
        target=target,
        inputs=specs(module.input_names, plan.inputs, "input"),
        outputs=specs(module.output_names, plan.outputs, "output"),
        kernels=kernel_infos(plan, kernels, kernel_precisions(module.main)),
        arena_bytes=plan.arena_bytes,
        unshared_bytes=plan.unshared_bytes,
        parameters=parameters,
        max_threads=options.num_threads,
        options=options.recorded(),
        generator=source_digest(),
        llvmlite=llvmlite.__version__,
    )
    objects = {k.name: k.object_code for k in kernels.values()}
    texts = {"relay": str(module), "kernels": kernels_text(module.main)}
    return Artifact(manifest, {**runtime, **objects}, constants, texts)


def _check_memory(plan: ExecutionPlan, budget: int) -> None:
    border = sum(type_.nbytes for type_ in (*plan.inputs, *plan.outputs))
    total = plan.arena_bytes + plan.constant_bytes + border
    if total > budget:
        parts = {
            "working memory": plan.arena_bytes,
            "weights": plan.constant_bytes,
            "inputs and outputs": border,
        }
        text = ", ".join(f"{n / 2**30:.1f} GiB {what}" for what, n in parts.items())
        raise MemoryBudgetError(
            f"the model needs {text}; the memory budget is {budget / 2**30:.1f} GiB",
            hint="use a smaller batch, or raise the budget: TINYCOMP_MEMORY_LIMIT=MiB",
        )


def parameter_count(module: IRModule) -> int:
    """Elements of all weights (constants of floats with more than one element)."""
    from .relay.nodes import Constant, all_functions

    constants = {
        atom
        for root in module.functions.values()
        for function in all_functions(root)
        for binding in function.bindings
        for atom in binding.args
        if isinstance(atom, Constant) and atom.data.size > 1 and atom.type.dtype.is_float
    }
    return sum(c.data.size for c in constants)


def _key(binding: Any) -> str:
    return binding.value.op.attrs["key"]


def _check(options: Options) -> None:
    if options.num_threads < 1:
        raise TinycompError(f"num_threads must be at least 1, not {options.num_threads}")
    if options.opt_level not in range(4):
        raise TinycompError(f"opt_level must be 0, 1, 2 or 3, not {options.opt_level}")
    _check_precision(options.precision, options.target)
    if options.extension.lowering and options.target.kind != "llvm":
        raise TinycompError(
            f"the extension's lowering passes are for CPUs, not for {options.target}",
            hint="leave them out for this target",
        )
    for name, shape in options.input_shapes.items():
        if any(not isinstance(d, int | np.integer) or d < 0 for d in shape):
            raise TinycompError(f"input_shapes: {list(shape)} of {name!r} is not a list of sizes")


def _check_precision(policy: PrecisionPolicy, target: Target) -> None:
    if Precision.TF32 not in policy.used:
        return
    if target.kind != "cuda":
        raise TinycompError(
            'precision "tf32" is a format of GPU tensor cores; a CPU has none, so it would only be '
            "less exact",
            hint='leave it out on this target; "bf16" and "fp16" halve the memory',
        )
    number = target.arch.removeprefix("sm_").rstrip("af")
    if number.isdigit() and int(number) < 80:
        raise TinycompError(f'precision "tf32" needs sm_80 or newer, the target is {target.arch}')


def _read_records(path: str | os.PathLike[str] | None) -> str:
    if path is None:
        return ""
    try:
        Path(path).read_text()
    except OSError as error:
        raise TinycompError(f"cannot read tuning records {path}: {error.strerror}") from error
    raise TinycompError(
        "tuning_records: this version has no autotuner, so there are no records to use"
    )


def _cached(cache: Cache, key: str) -> Artifact | None:
    if cache.folder is None:
        return None
    path = cache.path(key, ".tc")
    if not path.exists():
        return None
    try:
        artifact = Artifact.load(path)
    except ArtifactError:
        cache.discard(path)
        return None
    touch(path)
    return artifact


def _store(cache: Cache, key: str, artifact: Artifact) -> None:
    if cache.folder is None:
        return
    try:
        artifact.save(cache.path(key, ".tc"))
    except (ArtifactError, OSError):
        return  # a full disk or read-only home only costs time
    cache.evict()


def _silent(stage: str, done: int, total: int) -> None:
    pass
