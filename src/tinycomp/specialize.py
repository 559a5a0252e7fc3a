"""Compiling a model with open dimensions for one set of sizes after the other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .diagnostics import TinycompError
from .dtype import DType
from .ir.expr import Var as DimVar
from .relay.constant_pool import align
from .runtime.arrays import aligned_empty
from .runtime.artifact import Artifact, ValueSpec

if TYPE_CHECKING:
    from .frontend.onnx.model import OnnxModel
    from .ops.rnn import Unrolling
    from .relay.nodes import IRModule
    from .relay.op import OpSet
    from .relay.padding.bounded import Bounded, Fit

Sizes = Mapping[str, int]
_Imported = tuple["IRModule", Mapping[str, int]]
Interface = tuple[tuple[ValueSpec, ...], tuple[ValueSpec, ...]]


@dataclass
class LazyModel:
    """A model that is read when it is first needed, by `parse`."""

    parse: Callable[[], OnnxModel | IRModule]
    _read: OnnxModel | IRModule | None = field(default=None, repr=False)

    def read(self) -> OnnxModel | IRModule:
        """The model, parsed once."""
        if self._read is None:
            self._read = self.parse()
        return self._read


def interface_of(
    model: OnnxModel | IRModule,
    input_shapes: Mapping[str, Sequence[int]],
    dims: Sizes,
    open_dims: Sequence[str],
) -> Interface:
    """Inputs and outputs of a model with the given sizes; open dimensions are names.

    Raises:
        InputError: sizes or names do not fit the model.
    """
    from .relay.nodes import IRModule

    if isinstance(model, IRModule):
        return _relay_interface(model, dims)
    inputs, outputs = model.interface(input_shapes, dims, open_dims)
    spec = lambda d: ValueSpec(d.name, d.shape, d.dtype)  # noqa: E731
    return tuple(map(spec, inputs)), tuple(map(spec, outputs))


def _relay_interface(module: IRModule, dims: Sizes) -> Interface:
    from .types import TensorType, TupleType

    def specs(names: Sequence[str], types: Sequence[Any], kind: str) -> tuple[ValueSpec, ...]:
        names = tuple(names) or tuple(f"{kind}{i}" for i in range(len(types)))
        return tuple(
            ValueSpec(n, tuple(map(size, t.shape)), DType(t.dtype))
            for n, t in zip(names, types, strict=True)
        )

    def size(dim: Any) -> int | str:
        if isinstance(dim, int):
            return dim
        return dims.get(dim.name, dim.name) if isinstance(dim, DimVar) else str(dim)

    params = [p.type for p in module.main.params]
    result = module.main.ret_type
    results = [result] if isinstance(result, TensorType) else list(result.fields)
    assert isinstance(result, TensorType | TupleType)
    return specs(module.input_names, params, "input"), specs(module.output_names, results, "output")


def interface_to_json(interface: Interface) -> bytes:
    specs = [[[s.name, list(s.shape), str(s.dtype)] for s in part] for part in interface]
    return json.dumps(specs).encode()


def interface_from_json(data: bytes) -> Interface:
    inputs, outputs = (
        tuple(ValueSpec(name, tuple(shape), DType(dtype)) for name, shape, dtype in part)
        for part in json.loads(data)
    )
    return inputs, outputs


def open_dims(inputs: Sequence[ValueSpec]) -> list[str]:
    """The names of the open dimensions, in order of appearance.

    >>> open_dims([ValueSpec("x", ("batch", 3), DType.FLOAT32)])
    ['batch']
    """
    return list(dict.fromkeys(d for spec in inputs for d in spec.shape if isinstance(d, str)))


@dataclass(frozen=True)
class ModelSpecializer:
    """What a `DynamicModule` asks for: see `runtime.dynamic.Specializer`.

    Args:
        model: to archive, and to prove that it may be padded.
        compile: an artifact for fixed sizes, through the cache; of the model itself, or of a graph
            that is made if the cache does not hold what it is called.
        specialize: graph IR for fixed sizes, imported and simplified for inference.
        ops: the operators of the model.
    """

    model: LazyModel
    compile: Callable[[Sizes, str, Callable[[], IRModule | None]], Artifact]
    specialize: Callable[[OnnxModel | IRModule, Sizes, Unrolling], IRModule]
    ops: OpSet
    _bounded: dict[str, tuple[Bounded, Mapping[str, int]]] = field(default_factory=dict)

    def artifact(self, sizes: Sizes) -> Artifact:
        return self.compile(sizes, "", lambda: None)

    def bucket(self, sizes: Sizes, below: Sizes) -> Artifact:
        """The model for `sizes`, to run those above `below` too as far as that can be proven."""

        def make() -> IRModule | None:
            bounded, _ = self._bound(sizes, below)
            return None if bounded.plan.is_empty else bounded.module()

        return self.compile(sizes, f"above {sorted(below.items())}", make)

    def fit(self, sizes: Sizes, bucket: Sizes, below: Sizes) -> Fit | str:
        """How `bucket` runs `sizes`; where it is not proven to, the reason instead."""
        bounded, steps = self._bound(bucket, below)
        try:
            small, _ = self._imported(sizes, steps)
        except TinycompError as error:
            return str(error)
        return bounded.fit(small)

    def _bound(self, bucket: Sizes, below: Sizes) -> tuple[Bounded, Mapping[str, int]]:
        """The bucket's model, and over how many steps some of its layers are unrolled."""
        from .relay.padding.bounded import bound

        key = repr((sorted(bucket.items()), sorted(below.items())))
        if key not in self._bounded:
            samples = _samples(bucket, below)
            large, lengths = self._imported(bucket, {})
            smaller = self._possible(samples, {})
            steps = {n: k for n, k in lengths.items() if any(o.get(n) != k for _, o in smaller)}
            if steps:  # then the number of operators is the same for all lengths
                large, _ = self._imported(bucket, steps)
                smaller = self._possible(samples, steps)
            self._bounded[key] = bound(large, [m for m, _ in smaller], self.ops), steps
        return self._bounded[key]

    def _imported(self, sizes: Sizes, steps: Mapping[str, int]) -> _Imported:
        """The model for these sizes, and the lengths of its recurrent layers."""
        from .ops.rnn import Unrolling

        unrolling = Unrolling(steps)
        return self.specialize(self.model.read(), sizes, unrolling), unrolling.lengths

    def _possible(self, samples: Sequence[Sizes], steps: Mapping[str, int]) -> list[_Imported]:
        """The model for those sizes that it takes."""
        found: list[_Imported] = []
        for sizes in samples:
            with contextlib.suppress(TinycompError):
                found.append(self._imported(sizes, steps))
        return found

    def archive(self) -> tuple[bytes, np.ndarray]:
        """The model as bytes and a block of weights, for an artifact.

        Raises:
            TinycompError: the model was given as relay.
        """
        from .frontend.onnx import OnnxModel

        model = self.model.read()
        if not isinstance(model, OnnxModel):
            raise TinycompError(
                "a relay module with open dimensions cannot be saved",
                hint="give its dimensions (dims=), or save module.specialize(...)",
            )
        data, weights = model.to_sections()
        block = aligned_empty((sum(align(w.nbytes) for w in weights),), np.dtype(np.uint8))
        position = 0
        for weight in weights:
            flat = weight.reshape(-1).view(np.uint8)
            block[position : position + len(flat)] = flat
            block[position + len(flat) : position + align(len(flat))] = 0
            position += align(len(flat))
        return data, block


def _samples(bucket: Sizes, below: Sizes) -> list[dict[str, int]]:
    """Smaller sizes to try a bucket with: all dimensions smaller first, then one by one.

    >>> _samples({"batch": 4, "seq": 128}, {"batch": 4, "seq": 64})
    [{'batch': 4, 'seq': 127}, {'batch': 4, 'seq': 65}]
    """
    high = {name: max(size - 1, min(size, below[name] + 1)) for name, size in bucket.items()}
    low = {name: min(max(below[name] + 1, 2), high[name]) for name in bucket}
    single = [{**bucket, name: size} for name, size in high.items()]
    found: list[dict[str, int]] = []
    for sizes in (high, low, *single):
        if sizes != bucket and sizes not in found:
            found.append(sizes)
    return found
