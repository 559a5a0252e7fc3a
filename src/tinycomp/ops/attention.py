"""ONNX Attention and RotaryEmbedding, composed of matrix products, softmax and elementwise work."""

from __future__ import annotations

import math

import numpy as np

from ..dtype import DType
from ..relay.nodes import Atom
from ..relay.op import Op
from ..types import Dim, TensorType
from .activation import Emit
from .onnx_node import OnnxImport, OnnxNode


def _shape(x: Atom) -> tuple[Dim, ...]:
    assert isinstance(x.type, TensorType)
    return x.type.shape


def _split_heads(node: OnnxNode, emit: Emit, x: Atom, heads: int) -> Atom:
    """[B, S, heads * D] to [B, heads, S, D]; an array of rank 4 is so already."""
    shape = _shape(x)
    if len(shape) == 4:
        return x
    node.expect(len(shape) == 3, f"{x.type} must have rank 3 or 4")
    batch, length, width = shape
    divides = heads > 0 and (not isinstance(width, int) or width % heads == 0)
    node.expect(divides, f"{heads} heads do not divide {x.type}")
    x = emit("reshape", x, newshape=(batch, length, heads, width // heads))
    return emit("transpose", x, axes=(0, 2, 1, 3))


def _merge_heads(emit: Emit, x: Atom) -> Atom:
    """[B, heads, S, D] to [B, S, heads * D]."""
    batch, heads, length, depth = _shape(x)
    x = emit("transpose", x, axes=(0, 2, 1, 3))
    return emit("reshape", x, newshape=(batch, length, heads * depth))


def _causal_mask(node: OnnxNode, queries: Dim, keys: Dim, past: Dim) -> np.ndarray | None:
    """Which key j each query i sees: j <= i + past, and the window around i + past."""
    left, right = node.attr("left_window_size", -1), node.attr("right_window_size", -1)
    if node.attr("is_causal", 0):
        right = 0
    if left < 0 and right < 0:
        return None
    if not (isinstance(queries, int) and isinstance(keys, int) and isinstance(past, int)):
        raise node.unsupported("a causal mask over symbolic lengths", "fix the input shapes")
    position, key = np.arange(queries)[:, None] + past, np.arange(keys)[None, :]
    mask = np.ones((queries, keys), bool)
    mask &= key <= position + right if right >= 0 else True
    return mask & (key >= position - left) if left >= 0 else mask


def _masked_softmax(node: OnnxNode, emit: Emit, scores: Atom, past: Dim) -> Atom:
    """Softmax over the keys of `scores` [B, H, Sq, Sk]; rows that see no key become zero."""
    mask = node.input(3) if node.has(3) else None
    boolean = mask is not None and node.type(3).dtype is DType.BOOL
    if mask is not None:
        node.expect(len(_shape(mask)) > 0, f"attn_mask {mask.type} is a scalar")
        if _shape(mask)[-1] not in (1, _shape(scores)[-1]):
            raise node.unsupported("an attn_mask shorter than the keys")
        if boolean:
            scores = emit.where(mask, scores, -math.inf, scores)
        else:
            scores = emit("add", scores, mask)
    causal = _causal_mask(node, _shape(scores)[2], _shape(scores)[3], past)
    if causal is not None:
        scores = emit.where(node.builder.const(causal), scores, -math.inf, scores)
    weights = emit("nn.softmax", scores, axis=3)
    # a row without keys is 0 / 0; all its elements are masked, so they are zeroed exactly
    if boolean:
        weights = emit.where(mask, weights, 0.0, weights)  # type: ignore[arg-type]
    if causal is not None and (boolean or not causal.any(axis=-1).all()):
        weights = emit.where(node.builder.const(causal), weights, 0.0, weights)
    return weights


def _with_past(node: OnnxNode, emit: Emit, x: Atom, index: int) -> Atom:
    """Keys or values of earlier steps (input `index`) in front of `x` [B, H, S, D]."""
    return emit("concatenate", node.input(index), x, axis=2) if node.has(index) else x


def _import_attention(node: OnnxNode) -> list[Atom]:
    if node.has(6):
        raise node.unsupported("the input nonpad_kv_seqlen")
    emit = Emit(node)
    flat = node.type(0).rank == 3
    q = _split_heads(node, emit, node.input(0), node.attr("q_num_heads", 0))
    k = _split_heads(node, emit, node.input(1), node.attr("kv_num_heads", 0))
    v = _split_heads(node, emit, node.input(2), node.attr("kv_num_heads", 0))
    past = node.rank(4, 4).shape[2] if node.has(4) else 0
    k, v = _with_past(node, emit, k, 4), _with_past(node, emit, v, 5)
    batch, heads, queries, depth = _shape(q)
    kv_heads, keys, v_depth = _shape(k)[1], _shape(k)[2], _shape(v)[3]
    if not (isinstance(heads, int) and isinstance(kv_heads, int)):
        raise node.unsupported("a symbolic number of heads", "fix the input shapes")
    if kv_heads == 0 or heads % kv_heads:
        raise node.unsupported(f"{heads} query heads with {kv_heads} key heads")
    if not isinstance(depth, int):
        raise node.unsupported("a symbolic head size", "fix the input shapes")
    node.expect(depth > 0, "the heads are empty")
    # heads that share keys are rows of one product
    rows = heads // kv_heads * queries
    scale = node.attr("scale") or 1.0 / math.sqrt(depth)
    q = emit("multiply", q, float(scale))
    q = emit("reshape", q, newshape=(batch, kv_heads, rows, depth))
    scores = emit("nn.matmul", q, emit("transpose", k, axes=(0, 1, 3, 2)))
    scores = emit("reshape", scores, newshape=(batch, heads, queries, keys))
    raw, softcap = scores, float(node.attr("softcap", 0.0))
    if softcap:
        scores = emit("multiply", emit("tanh", emit("divide", scores, softcap)), softcap)
    weights = _masked_softmax(node, emit, scores, past)
    weights = emit("reshape", weights, newshape=(batch, kv_heads, rows, keys))
    y = emit("nn.matmul", weights, v)
    y = emit("reshape", y, newshape=(batch, heads, queries, v_depth))
    y = _merge_heads(emit, y) if flat else y
    if node.num_outputs > 3 and node.attr("qk_matmul_output_mode", 0):
        raise node.unsupported("qk_matmul_output_mode other than 0")
    return [y, k, v, raw][: node.num_outputs]


def _slice_last(emit: Emit, x: Atom, begin: int, end: int, stride: int = 1) -> Atom:
    """`x[..., begin:end:stride]`, by `take`, so that the other axes may be symbolic."""
    positions = emit.builder.const(np.arange(begin, end, stride))
    shape = _shape(x)
    if not all(isinstance(d, int) for d in shape):
        return emit.builder.call("take", x, positions, axis=len(shape) - 1)
    lead = len(shape) - 1
    return emit(
        "strided_slice", x,
        begin=(0,) * lead + (begin,), end=(*shape[:lead], end), strides=(1,) * lead + (stride,),
    )  # fmt: skip


def _rotate(node: OnnxNode, x: Atom, cos: Atom, sin: Atom, positions: Atom | None) -> Atom:
    """Pairs of elements turned by the angles whose cosine and sine are given per position."""
    emit, flat = Emit(node), node.type(0).rank == 3
    x = _split_heads(node, emit, x, node.attr("num_heads", 0))
    depth = _shape(x)[-1]
    if not isinstance(depth, int):
        raise node.unsupported("a symbolic head size", "fix the input shapes")
    width = node.attr("rotary_embedding_dim", 0) or depth
    node.expect(0 <= width <= depth and width % 2 == 0, f"{width} of {depth} elements cannot turn")
    angles = []
    for table in (cos, sin):
        if positions is not None:
            table = emit.builder.call("take", table, positions, axis=0)
        node.expect(len(_shape(table)) == 3, f"the cosines or sines {table.type} must have rank 3")
        batch, length, half = _shape(table)
        angles.append(emit("reshape", table, newshape=(batch, 1, length, half)))
    cosine, sine = angles
    pairs, half = bool(node.attr("interleaved", 0)), width // 2
    if pairs:
        a, b = _slice_last(emit, x, 0, width, 2), _slice_last(emit, x, 1, width, 2)
    else:
        a, b = _slice_last(emit, x, 0, half), _slice_last(emit, x, half, width)
    real = emit("subtract", emit("multiply", cosine, a), emit("multiply", sine, b))
    imaginary = emit("add", emit("multiply", sine, a), emit("multiply", cosine, b))
    shape = _shape(a)
    if pairs:
        columns = [emit("reshape", p, newshape=(*shape, 1)) for p in (real, imaginary)]
        joined = emit("concatenate", *columns, axis=4)
        turned = emit("reshape", joined, newshape=(*shape[:-1], width))
    else:
        turned = emit("concatenate", real, imaginary, axis=3)
    if width < depth:
        turned = emit("concatenate", turned, _slice_last(emit, x, width, depth), axis=3)
    return _merge_heads(emit, turned) if flat else turned


def _import_rotary(node: OnnxNode) -> Atom:
    positions = node.input(3) if node.has(3) else None
    return _rotate(node, node.input(0), node.input(1), node.input(2), positions)


OPS: tuple[Op, ...] = ()
ONNX: dict[str, OnnxImport] = {
    "Attention": _import_attention,
    "RotaryEmbedding": _import_rotary,
}
