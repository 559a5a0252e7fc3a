"""Loads and stores of tensor elements: scalars, vectors, gathers, with and without predicates."""

from __future__ import annotations

from ..dtype import DType
from .arithmetic import from_bfloat16, to_bfloat16
from .builder import FunctionBuilder, Value, literal, vector

STORED = {
    DType.BOOL: "i8", DType.INT8: "i8", DType.INT16: "i16", DType.INT32: "i32",
    DType.INT64: "i64", DType.UINT8: "i8", DType.UINT16: "i16", DType.UINT32: "i32",
    DType.UINT64: "i64", DType.FLOAT16: "half", DType.BFLOAT16: "i16",
    DType.FLOAT32: "float", DType.FLOAT64: "double",
}  # fmt: skip
"""LLVM type in which an element is stored; bfloat16 is handled as bits."""


def decode(b: FunctionBuilder, raw: Value, dtype: DType) -> Value:
    """A stored element as the type it is computed in."""
    if dtype is DType.BOOL:
        return b.compare("icmp ne", raw, literal(0, "i8", raw.lanes))
    if dtype is DType.FLOAT16:
        return b.convert("fpext", raw, "float")
    return from_bfloat16(b, raw) if dtype is DType.BFLOAT16 else raw


def encode(b: FunctionBuilder, value: Value, dtype: DType) -> Value:
    """A computed element as it is stored; 16-bit floats are rounded to nearest even."""
    if dtype is DType.BOOL:
        return b.convert("zext", value, "i8")
    if dtype is DType.FLOAT16:
        return b.convert("fptrunc", value, "half")
    return to_bfloat16(b, value) if dtype is DType.BFLOAT16 else value


def load(
    b: FunctionBuilder, base: Value, dtype: DType, index: Value, lanes: int, mask: Value | None
) -> Value:
    """Element `index` (and the `lanes - 1` after it); masked lanes are not read and give 0."""
    pointer = b.gep(base, STORED[dtype], index)
    align, element = dtype.itemsize, STORED[dtype]
    if mask is None:
        raw = b.load(vector(element, lanes), pointer, align)
        return decode(b, Value(raw.text, element, lanes), dtype)
    if lanes == 1:
        return decode(b, _guarded_load(b, pointer, element, align, mask), dtype)
    mask = b.splat(mask, lanes)
    type_, zero = vector(element, lanes), literal(0, element, lanes)
    name = f"llvm.masked.load.v{lanes}{_short(element)}.p0"
    b.module.declare(name, type_, ["ptr", f"<{lanes} x i1>", type_])
    text = f"call {type_} @{name}(ptr align {align} {pointer.text}, {mask}, {zero})"
    return decode(b, b.emit(text, element, lanes), dtype)


def _guarded_load(
    b: FunctionBuilder, pointer: Value, element: str, align: int, mask: Value
) -> Value:
    before, then, done = b.block, b.fresh("load"), b.fresh("loaded")
    b.cond_br(mask, then, done)
    b.start(then)
    raw = b.load(element, pointer, align)
    b.br(done)
    b.start(done)
    return b.phi(element, 1, [(raw, then), (literal(0, element), before)])


def gather(
    b: FunctionBuilder, base: Value, dtype: DType, index: Value, mask: Value | None
) -> Value:
    """The elements at a vector of indices."""
    lanes, element = index.lanes, STORED[dtype]
    if mask is None:
        parts = [
            b.load(element, b.gep(base, element, b.extract(index, lane)), dtype.itemsize)
            for lane in range(lanes)
        ]
        return decode(b, b.join(parts), dtype)
    pointers, mask = b.gep(base, element, index), b.splat(mask, lanes)
    type_ = vector(element, lanes)
    name = f"llvm.masked.gather.v{lanes}{_short(element)}.v{lanes}p0"
    b.module.declare(name, type_, [f"<{lanes} x ptr>", f"<{lanes} x i1>", type_])
    operands = f"{_aligned(pointers, dtype)}, {mask}, {literal(0, element, lanes)}"
    return decode(b, b.emit(f"call {type_} @{name}({operands})", element, lanes), dtype)


def store(
    b: FunctionBuilder, base: Value, dtype: DType, index: Value, value: Value, mask: Value | None
) -> None:
    """Write `value` at element `index` and the following; masked lanes are not written."""
    raw, align = encode(b, value, dtype), dtype.itemsize
    pointer = b.gep(base, STORED[dtype], index)
    if mask is None:
        b.store(raw, pointer, align)
    elif raw.lanes == 1:
        then, done = b.fresh("store"), b.fresh("stored")
        b.cond_br(mask, then, done)
        b.start(then)
        b.store(raw, pointer, align)
        b.br(done)
        b.start(done)
    else:
        mask = b.splat(mask, raw.lanes)
        suffix = f"v{raw.lanes}{_short(raw.element)}"
        name = f"llvm.masked.store.{suffix}.p0"
        b.module.declare(name, "void", [raw.type, "ptr", mask.type])
        b.line(f"call void @{name}({raw}, ptr align {align} {pointer.text}, {mask})")


def scatter(
    b: FunctionBuilder, base: Value, dtype: DType, index: Value, value: Value, mask: Value | None
) -> None:
    """Write lanes at a vector of indices, in lane order."""
    raw, lanes = encode(b, value, dtype), index.lanes
    mask = b.splat(mask or literal(1, "i1"), lanes)
    pointers = b.gep(base, STORED[dtype], index)
    name = f"llvm.masked.scatter.v{lanes}{_short(raw.element)}.v{lanes}p0"
    b.module.declare(name, "void", [raw.type, f"<{lanes} x ptr>", mask.type])
    b.line(f"call void @{name}({raw}, {_aligned(pointers, dtype)}, {mask})")


def _aligned(pointers: Value, dtype: DType) -> str:
    return f"{pointers.type} align {dtype.itemsize} {pointers.text}"


def _short(element: str) -> str:
    return {"float": "f32", "double": "f64", "half": "f16"}.get(element, element)
