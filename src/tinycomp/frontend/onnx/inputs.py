"""The types of a model's inputs, from its declarations and the user's choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from onnx import ValueInfoProto

from ...diagnostics import InputError, UnsupportedModel
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
    shapes, known = dict(shapes or {}), dict(dims or {})
    declared = {i.name: _declared_dims(i) for i in inputs}
    _check_names("input", shapes, declared)
    _check_names(
        "dimension", known, {d for ds in declared.values() for d in ds or () if isinstance(d, str)}
    )
    for name, shape in shapes.items():
        _settle(name, shape, declared[name], known)
    result, unknown = [], []
    for info in inputs:
        dims_of = shapes.get(info.name, declared[info.name])
        dtype = dtype_of(info.type.tensor_type.elem_type, f"input {info.name!r}")
        if dims_of is None:
            unknown.append(f"{info.name}: rank unknown")
            continue
        shape = [known.get(d, d) if isinstance(d, str) else d for d in dims_of]
        unknown += [f"{info.name} axis {a}: {d}" for a, d in enumerate(shape) if isinstance(d, str)]
        result.append(TensorType(tuple(shape), dtype))  # type: ignore[arg-type]
    if unknown:
        raise UnsupportedModel(
            f"the model has inputs of unknown size ({'; '.join(unknown)})",
            hint="give sizes with --dim NAME=VALUE (dims=) "
            "or --input-shapes INPUT:[...] (input_shapes=)",
        )
    return result


def _declared_dims(info: ValueInfoProto) -> list[int | str] | None:
    """Sizes and names of the dimensions; an anonymous one is named `?`; None without a rank."""
    if info.type.WhichOneof("value") != "tensor_type":
        kind = (info.type.WhichOneof("value") or "untyped").removesuffix("_type")
        raise UnsupportedModel(f"input {info.name!r} is not a tensor but: {kind}")
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [
        d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or "?"
        for d in tensor.shape.dim
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
        if dim == "?":
            continue
        fixed = known.setdefault(dim, size) if isinstance(dim, str) else dim
        if fixed != size:
            what = f"{dim} = {fixed}" if isinstance(dim, str) else f"fixed to {dim}"
            raise InputError(
                f"axis {axis} of input {name!r} is {what}, the given shape says {size}"
            )
