"""A model with open dimensions: compiled for the sizes that it meets.

>>> import tinycomp                                                          # doctest: +SKIP
>>> module = tinycomp.compile("model.onnx", dims={"batch": [1, 8, 32]})      # doctest: +SKIP
>>> module.run({"x": x5})["y"].shape     # x5 has 5 rows, and runs as 8      # doctest: +SKIP
(5, 1000)

Code is always for fixed sizes (specialisation per set of sizes, as TensorRT's profiles with equal
minimum and maximum). `buckets` are compiled ahead of time. Sizes between them run in the next
larger bucket, padded, where `relay.padding` proves that this gives the same; its code takes hidden
inputs that say how much of each axis counts. Otherwise, and without buckets, a size is compiled
when it first comes.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np

from ..config import Config
from ..diagnostics import InputError, TinycompError
from ..dims import DimRange
from .arrays import as_array, check_names
from .artifact import Artifact, Manifest, ValueSpec
from .module import CUDA_LEVELS, LEVELS, Module, choose_threads
from .profiler import Profile
from .static import static_module

if TYPE_CHECKING:
    from ..relay.padding.bounded import Fit

MAX_BUCKETS = 64
MAX_VARIANTS = 16
"""Variants kept in memory besides the buckets; the least recently used goes first."""
MEMORY_SHARE = 0.5
"""Of the memory budget, for the weights and working memory of these variants."""

Sizes = tuple[int, ...]
_Variant = tuple[Sizes, bool]
"""Sizes, and whether smaller ones may run there too: such code may take hidden inputs."""


class Specializer(Protocol):
    """Where variants come from."""

    def artifact(self, sizes: Mapping[str, int]) -> Artifact:
        """The model compiled for these sizes."""
        ...

    def bucket(self, sizes: Mapping[str, int], below: Mapping[str, int]) -> Artifact:
        """The model compiled for these sizes, to run also smaller ones that are above `below`.

        Inputs besides those of the model are hidden ones.
        """
        ...

    def fit(
        self, sizes: Mapping[str, int], bucket: Mapping[str, int], below: Mapping[str, int]
    ) -> Fit | str:
        """How `sizes` run in a bucket, if padding the inputs is proven to be right; else why
        not."""
        ...

    def archive(self) -> tuple[bytes, np.ndarray]:
        """The model itself, for `save`: bytes and a block of weights."""
        ...


@dataclass(frozen=True, slots=True)
class _Route:
    """How inputs of certain shapes are run."""

    variant: _Variant
    module: Module
    fit: Fit | None = None  # where inputs are padded, or others are hidden

    def run(self, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        if self.fit is None:
            return self.module.run(inputs, **options)
        if options.get("out"):
            raise InputError(
                "out= does not go with inputs that are run by a bucket",
                hint="give sizes that are compiled, or take the results that are returned",
            )
        results = self.module.run(self.arguments(inputs), **options)
        crops = zip(results.items(), self.fit.crops, strict=True)
        return {name: crop(array) for (name, array), crop in crops}

    def arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the module takes, from what the model takes."""
        if self.fit is None:
            return dict(inputs)
        specs = self.module.inputs
        visible = len(specs) - len(self.fit.hidden)
        hidden = zip(specs[visible:], self.fit.hidden, strict=True)
        # Repeating the last elements pads with data that the model takes, such as valid token ids.
        return {
            **{s.name: self.module.pad(inputs[s.name], s) for s in specs[:visible]},
            **{s.name: array for s, array in hidden},
        }


class DynamicModule(Module):
    """A model whose inputs may have any size in declared ranges.

    Args:
        manifest: inputs and outputs with names for open dimensions; `dims` says what is allowed.
        specializer: compiles for sizes.
        variants: what is compiled already, by the sizes of `manifest.dims` in order.
        num_threads: threads that one call may use.

    Attributes:
        max_variants, max_bytes: how many variants are kept besides buckets, and with how much
            memory; each has weights of its own, since their layout depends on the sizes.
        not_padded: sizes that did not run in a larger bucket, and why.
    """

    def __init__(
        self,
        manifest: Manifest,
        specializer: Specializer,
        variants: Mapping[Sizes, Artifact] | None = None,
        *,
        num_threads: int | None = None,
    ) -> None:
        self._dynamic_manifest = manifest
        self._specializer = specializer
        self.num_threads = choose_threads(num_threads, manifest.max_threads)
        self.max_variants = MAX_VARIANTS
        self.max_bytes = int(Config.from_environment().memory_budget * MEMORY_SHARE)
        self.not_padded: dict[Sizes, str] = {}
        self._names = tuple(manifest.dims)
        self._artifacts = {(s, self._is_bucket(s)): a for s, a in (variants or {}).items()}
        self._variants: OrderedDict[_Variant, Module] = OrderedDict()
        self._routes: dict[tuple[Any, ...], _Route] = {}
        self._lock = threading.Lock()  # of the tables
        self._compiling = threading.Lock()  # so that two callers do not compile the same sizes

    @property
    def manifest(self) -> Manifest:
        return self._dynamic_manifest

    @property
    def levels(self) -> tuple[str, ...]:
        return CUDA_LEVELS if self.manifest.target.kind == "cuda" else LEVELS

    @property
    def variants(self) -> tuple[dict[str, int], ...]:
        """The sets of sizes that are compiled, the least recently used first."""
        with self._lock:
            found = dict.fromkeys(sizes for sizes, _ in [*self._artifacts, *self._variants])
        return tuple(map(self._named, found))

    @property
    def artifact(self) -> Artifact:
        """The model, and all variants compiled so far."""
        model, weights = self._specializer.archive()
        with self._lock:
            found = {**self._artifacts, **{v: m.artifact for v, m in self._variants.items()}}
        variants = {v[0]: a for v, a in found.items() if v[1] == self._is_bucket(v[0])}
        return Artifact(self.manifest, {"model": model}, weights, variants=variants)

    def compile_buckets(self) -> None:
        """Compile every combination of buckets, if all open dimensions have them.

        Raises:
            TinycompError: there are too many.
        """
        buckets = [r.buckets for r in self.dims.values()]
        if math.prod(map(len, buckets)) > MAX_BUCKETS:
            raise TinycompError(
                f"the buckets of {', '.join(self._names)} make "
                f"{math.prod(map(len, buckets))} combinations, more than {MAX_BUCKETS}",
                hint="give fewer buckets, or a range for one of the dimensions",
            )
        for sizes in itertools.product(*buckets):
            self._variant((sizes, True))

    def save(self, path: str | Path) -> None:
        """Write one file that holds the model and all variants compiled so far."""
        self.artifact.save(path)

    def specialize(self, dims: Mapping[str, int] | None = None, /, **sizes: int) -> Module:
        """The module for fixed sizes, compiled now if it is not yet.

        Raises:
            InputError: a size is missing, unknown or out of range.
        """
        checked = self._check_sizes({**(dims or {}), **sizes})
        with self._lock:
            bucket = self._variants.get((checked, True))
        if bucket is not None and not self._hidden(bucket):
            return bucket
        return self._variant((checked, False))

    def run(self, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """The outputs by name for inputs by name, of any sizes in range.

        `options` are those of the variants' `run`: `stream` and `out` on a GPU. Sizes that are new
        are compiled first, which takes seconds.

        Raises:
            InputError: an input is missing, unknown, of another dtype or rank; or its sizes
                contradict each other or are out of range.
        """
        return self._route(inputs).run(inputs, options)

    def profile(self, inputs: Mapping[str, Any], *, repeat: int = 10) -> Profile:
        """Time of each kernel of the variant that runs the inputs' sizes."""
        route = self._route(inputs)
        return route.module.profile(route.arguments(inputs), repeat=repeat)

    def ir(self, level: str) -> str:
        """The only variant at one level; with several, ask `module.specialize(...)`."""
        with self._lock:
            found = [*{**self._artifacts, **self._variants}]
        if len(found) == 1:
            return self._variant(found[0]).ir(level)
        self._refuse_ir(self.variants)

    def _refuse_ir(self, variants: Sequence[Mapping[str, int]]) -> NoReturn:
        names = ", ".join(self._names)
        state = f"{len(variants)} variants are" if variants else "nothing is"
        raise TinycompError(
            f"the dimensions {names} are open, and {state} compiled",
            hint=f"choose sizes: --dim {self._names[0]}=8, or "
            f"module.specialize({self._names[0]}=8)",
        )

    def _route(self, inputs: Mapping[str, Any]) -> _Route:
        try:
            key = tuple(inputs[spec.name].shape for spec in self.inputs)
        except (KeyError, AttributeError):
            check_names(inputs, self.inputs)
            key = tuple(as_array(inputs[s.name], s.name).shape for s in self.inputs)
        if len(inputs) != len(key):
            check_names(inputs, self.inputs)
        with self._lock:
            route = self._routes.get(key)
            if route is not None and route.variant in self._variants:
                self._variants.move_to_end(route.variant)
                return route
        route = self._choose(self._sizes_of(key))
        with self._lock:
            self._routes[key] = route
        return route

    def _choose(self, sizes: Sizes) -> _Route:
        """The variant for these sizes if there is one, else a bucket, else a new variant."""
        exact = sizes, False
        with self._lock:
            known = exact in self._variants or exact in self._artifacts
        bucket = None if known else self._bucket(sizes)
        if bucket is not None:
            variant = bucket, True
            module = self._variant(variant)
            if sizes == bucket and not self._hidden(module):
                return _Route(variant, module)
            named = [self._named(s) for s in (sizes, bucket, self._below(bucket))]
            fit = self._specializer.fit(*named)
            if not isinstance(fit, str):
                return _Route(variant, module, fit)
            self.not_padded[sizes] = fit
        return _Route(exact, self._variant(exact))

    def _bucket(self, sizes: Sizes) -> Sizes | None:
        """The bucket for these sizes; None if there is none, or a size is 0 and nothing to
        repeat."""
        ranges = self.dims.values()
        if 0 in sizes or not any(r.has_buckets for r in ranges):
            return None
        return tuple(r.bucket(size) or size for size, r in zip(sizes, ranges, strict=True))

    def _below(self, bucket: Sizes) -> Sizes:
        """For each dimension the size up to which a smaller bucket is used."""
        ranges = self.dims.values()
        return tuple(r.below(size) for size, r in zip(bucket, ranges, strict=True))

    def _named(self, sizes: Sizes) -> dict[str, int]:
        return dict(zip(self._names, sizes, strict=True))

    def _sizes_of(self, shapes: Sequence[Sequence[int]]) -> Sizes:
        return self._check_sizes(bind_dims(self.inputs, shapes))

    def _check_sizes(self, sizes: Mapping[str, int]) -> Sizes:
        wrong = sizes.keys() ^ set(self._names)
        if wrong:
            raise InputError(
                f"sizes are needed of exactly the dimensions {', '.join(self._names)}, "
                f"not of {', '.join(sizes) or 'none'}"
            )
        for name, size in sizes.items():
            self.dims[name].check(name, size)
        return tuple(sizes[name] for name in self._names)

    def _hidden(self, module: Module) -> bool:
        """Whether a variant takes more than the model's inputs."""
        return len(module.inputs) > len(self.inputs)

    def _variant(self, variant: _Variant) -> Module:
        with self._lock:
            found = self._variants.get(variant)
            if found is not None:
                self._variants.move_to_end(variant)
                return found
        with self._compiling:
            with self._lock:
                found = self._variants.get(variant)
                known = self._artifacts.get(variant)
            if found is not None:
                return found
            artifact = known or self._compiled(variant)
            module = static_module(artifact, num_threads=self.num_threads)
            with self._lock:
                self._variants[variant] = module
                self._evict()
            return module

    def _compiled(self, variant: _Variant) -> Artifact:
        sizes, is_bucket = variant
        try:
            if is_bucket:
                below = self._named(self._below(sizes))
                return self._specializer.bucket(self._named(sizes), below)
            return self._specializer.artifact(self._named(sizes))
        except TinycompError as error:
            text = ", ".join(f"{n}={s}" for n, s in self._named(sizes).items())
            error.hint = f"{error.hint}; this is for {text}: the model may need other sizes (--dim)"
            error.hint = error.hint.removeprefix("; ")
            raise

    def _evict(self) -> None:
        """Forget the least recently used variants that are no buckets; the lock is held."""
        ranges = self.dims.values()
        movable = [
            (sizes, is_bucket)
            for sizes, is_bucket in self._variants
            if not (is_bucket and all(r.buckets for r in ranges))
        ]
        held = sum(_bytes_of(self._variants[v]) for v in movable)
        while len(movable) > self.max_variants or (len(movable) > 1 and held > self.max_bytes):
            variant = movable.pop(0)
            held -= _bytes_of(self._variants.pop(variant))
            self._artifacts.pop(variant, None)
            self._routes = {k: r for k, r in self._routes.items() if r.variant != variant}

    def _is_bucket(self, sizes: Sizes) -> bool:
        return self._bucket(sizes) == sizes


def _bytes_of(module: Module) -> int:
    return module.artifact.constants.nbytes + module.manifest.arena_bytes


def bind_dims(specs: Sequence[ValueSpec], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """The sizes of open dimensions that input shapes imply.

    Raises:
        InputError: a rank or fixed size differs, or one dimension has two sizes.
    """
    sizes: dict[str, int] = {}
    origin: dict[str, str] = {}
    for spec, shape in zip(specs, shapes, strict=True):
        if len(shape) != len(spec.shape):
            raise InputError(
                f"input {spec.name!r} has shape {list(shape)}, expected {list(spec.shape)}: "
                f"it has {len(shape)} dimensions, not {len(spec.shape)}"
            )
        for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
            here = f"dimension {axis} of input {spec.name!r}"
            expected = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
            if size != expected:
                there = f" ({dim} in {origin[dim]})" if isinstance(dim, str) else ""
                raise InputError(f"{here} is {size}, not {expected}{there}")
            if isinstance(dim, str):
                origin.setdefault(dim, here)
    return sizes


def sample_specs(specs: Sequence[ValueSpec], dims: Mapping[str, DimRange]) -> list[ValueSpec]:
    """Specs with a size for each open dimension: the smallest bucket, or the smallest size > 0.

    >>> from tinycomp.dtype import DType
    >>> spec = ValueSpec("x", ("batch", 3), DType.FLOAT32)
    >>> str(sample_specs([spec], {"batch": DimRange.of([4, 8])})[0])
    'x: float32[4, 3]'
    """
    size = {n: r.buckets[0] if r.buckets else max(1, r.min) for n, r in dims.items()}
    return [
        replace(s, shape=tuple(size[d] if isinstance(d, str) else d for d in s.shape))
        for s in specs
    ]
