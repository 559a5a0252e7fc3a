"""The types of a model's inputs, from its declarations and the user's choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnx import ValueInfoProto

from ...diagnostics import InputError, UnsupportedModel
from ...dtype import DType
from ...types import TensorType
from .values import dtype_of

Shapes = Mapping[str, Sequence[int]]


def input_types(
    inputs: Sequence[ValueInfoProto], shapes: Shapes | None, dims: Mapping[str, int] | None
) -> list[TensorType]:
    """One static type per input.

    Args:
        shapes: whole shapes by input name. A shape also settles the symbolic dimensions in it.
        dims: values of symbolic dimensions by name.

    Raises:
        InputError: an unknown name, a wrong rank, or contradicting sizes.
        UnsupportedModel: dimensions that remain unknown; they are listed.
    """
    declared, _ = declared_inputs(inputs, shapes, dims)
    unknown = [
        f"{i.name} axis {axis}: {size}"
        for i in declared
        for axis, size in enumerate(i.shape)
        if isinstance(size, str)
    ]
    if unknown:
        raise _unknown_sizes(unknown)
    return [TensorType(i.shape, i.dtype) for i in declared]  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Declared:
    """An input or output as the model declares it: sizes, and names of open dimensions."""

    name: str
    shape: tuple[int | str, ...]
    dtype: DType


def declared_inputs(
    inputs: Sequence[ValueInfoProto],
    shapes: Shapes | None,
    dims: Mapping[str, int] | None,
    open_dims: Iterable[str] = (),
) -> tuple[list[Declared], dict[str, int]]:
    """The inputs with the given sizes filled in, and the sizes of dimensions known by name.

    Other dimensions keep their names; one without a name is called INPUT.AXIS, as in `x.0`.
    `open_dims` are names that the caller says more about: they must exist.

    Raises:
        InputError: an unknown name, a wrong rank, or contradicting sizes.
        UnsupportedModel: an input without a rank, or one that is no tensor.
    """
    shapes, known = dict(shapes or {}), dict(dims or {})
    declared = {i.name: _declared_dims(i, i.name) for i in inputs}
    _check_names("input", shapes, declared)
    names = {d for ds in declared.values() for d in ds or () if isinstance(d, str)}
    _check_names("dimension", [*known, *open_dims], names)
    for name, shape in shapes.items():
        _settle(name, shape, declared[name], known)
    result, unknown = [], []
    for info in inputs:
        dims_of = shapes.get(info.name, declared[info.name])
        dtype = dtype_of(info.type.tensor_type.elem_type, f"input {info.name!r}")
        if dims_of is None:
            unknown.append(f"{info.name}: rank unknown")
            continue
        shape = tuple(known.get(d, d) if isinstance(d, str) else d for d in dims_of)
        result.append(Declared(info.name, shape, dtype))
    if unknown:
        raise _unknown_sizes(unknown)
    return result, known


def declared_outputs(
    outputs: Sequence[ValueInfoProto], known: Mapping[str, int], names: Iterable[str]
) -> list[Declared]:
    """The outputs as the model declares them; sizes that follow from nothing declared are `?`.

    An output without a rank has the shape `("...",)`.
    """
    names = set(names)
    result = []
    for info in outputs:
        dims = _declared_dims(info, info.name)
        dtype = dtype_of(info.type.tensor_type.elem_type, f"output {info.name!r}")
        shape = tuple(
            known.get(d, d if d in names else "?") if isinstance(d, str) else d
            for d in (("...",) if dims is None else dims)
        )
        result.append(Declared(info.name, ("...",) if dims is None else shape, dtype))
    return result


def _unknown_sizes(unknown: Sequence[str]) -> UnsupportedModel:
    return UnsupportedModel(
        f"the model has inputs of unknown size ({'; '.join(unknown)})",
        hint="give sizes with --dim NAME=VALUE (dims=) "
        "or --input-shapes INPUT:[...] (input_shapes=)",
    )


def _declared_dims(info: ValueInfoProto, name: str) -> list[int | str] | None:
    """Sizes and names of the dimensions; None without a rank."""
    if info.type.WhichOneof("value") != "tensor_type":
        kind = (info.type.WhichOneof("value") or "untyped").removesuffix("_type")
        raise UnsupportedModel(f"{name!r} is not a tensor but: {kind}")
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [
        d.dim_value
        if d.HasField("dim_value") and d.dim_value >= 0
        else d.dim_param or f"{name}.{axis}"
        for axis, d in enumerate(tensor.shape.dim)
    ]


def _check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise InputError(
                f"the model has no {what} {name!r}; it has: "
                + (", ".join(map(repr, known)) or "none"),
                hint=f"did you mean {close[0]!r}?" if close else "",
            )


def _settle(
    name: str, shape: Sequence[int], declared: list[int | str] | None, known: dict[str, int]
) -> None:
    """Check a given shape against the declared one, and learn its symbolic dimensions."""
    if any(not isinstance(d, int) or d < 0 for d in shape):
        raise InputError(f"shape {list(shape)} of input {name!r} must be made of sizes >= 0")
    if declared is None:
        return
    if len(shape) != len(declared):
        raise InputError(
            f"input {name!r} has rank {len(declared)} {declared}, the given shape is {list(shape)}"
        )
    for axis, (size, dim) in enumerate(zip(shape, declared, strict=True)):
        fixed = known.setdefault(dim, size) if isinstance(dim, str) else dim
        if fixed != size:
            what = f"{dim} = {fixed}" if isinstance(dim, str) else f"fixed to {dim}"
            raise InputError(
                f"axis {axis} of input {name!r} is {what}, the given shape says {size}"
            )
