"""Images at computed places, `image.grid_sample` and `image.roi_align`, and sums of overlapping
windows, `image.col2im`.

How a place becomes elements and weights is written once, for NumPy and for tensor expressions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import te
from ..ir.expr import Expr, all_of, as_int, cast, const, select
from ..relay.nodes import Atom
from ..relay.op import Attrs, Op, OpPattern, Sample
from ..te.tensor import Tensor, compute, reduce_axis
from ..types import TensorType, Type
from .common import FLOATS, INTS, require_dtype, sample_array, tensors
from .index import checked, np_checked
from .layout import reshape, transpose
from .onnx_node import OnnxImport, OnnxNode
from .resize import NUMPY, TE, cubic_weights
from .shape import ravel
from .window import accumulation_dtype, expect, stored, widen


@dataclass(frozen=True)
class GridSampleAttrs(Attrs):
    """How to read between elements (nearest, linear, cubic) and beyond the borders (zeros, border,
    reflection); `align_corners`: -1 and 1 are the centres of the outermost elements."""

    mode: str = "linear"
    padding_mode: str = "zeros"
    align_corners: bool = False


@dataclass(frozen=True)
class RoiAlignAttrs(Attrs):
    """`ratio` x `ratio` samples in each of the `size` bins; their mean or (`use_max`) maximum."""

    size: tuple[int, int]
    ratio: int
    scale: float = 1.0
    half_pixel: bool = True
    use_max: bool = False


@dataclass(frozen=True)
class Col2ImAttrs(Attrs):
    """`pads` are those before all axes, then those behind them."""

    image: tuple[int, ...]
    block: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]


# -- grid_sample ----------------------------------------------------------------------------------

Taps = list[tuple[Any, Any, Any]]  # index, weight (None: the only tap), whether it is inside


def _infer_grid_sample(attrs: GridSampleAttrs, types: Sequence[Type]) -> TensorType:
    x, grid = tensors("image.grid_sample", types, 2)
    require_dtype("image.grid_sample", 0, x, FLOATS)
    require_dtype("image.grid_sample", 1, grid, FLOATS)
    nd = x.rank - 2
    fits = nd > 0 and grid.rank == nd + 2 and grid.shape[-1] == nd and grid.shape[0] == x.shape[0]
    expect(fits, f"image.grid_sample: the grid {grid} does not fit {x}")
    expect(x.is_static and 0 not in x.shape[2:], f"image.grid_sample: {x} must be known")
    return TensorType((*x.shape[:2], *grid.shape[1:-1]), x.dtype)


def _reflected(f: SimpleNamespace, x: Any, n: int, align_corners: bool) -> Any:
    """A coordinate mirrored at the borders until it is between them."""
    low, high = (0.0, n - 1.0) if align_corners else (-0.5, n - 0.5)
    span = max(high - low, 1.0)
    beyond = f.maximum(f.maximum(low - x, x - high), 0.0)
    turns = f.floor(beyond / span)
    rest = beyond - turns * span
    even = f.floor(turns / 2.0) * 2.0 >= turns
    from_low, from_high = low + rest, high - rest
    below = f.where(even, from_low, from_high)
    above = f.where(even, from_high, from_low)
    return f.where(x < low, below, f.where(x > high, above, x))


def _grid_taps(f: SimpleNamespace, attrs: GridSampleAttrs, g: Any, n: int) -> Taps:
    """Which elements along an axis of extent `n` make the value at the normalised place `g`."""
    x = (g + 1.0) / 2.0 * (n - 1.0) if attrs.align_corners else ((g + 1.0) * n - 1.0) / 2.0
    if attrs.mode == "nearest":
        x = f.round(x)
    if attrs.padding_mode == "border":
        x = f.minimum(f.maximum(x, 0.0), n - 1.0)
    elif attrs.padding_mode == "reflection":
        x = _reflected(f, x, n, attrs.align_corners)

    def tap(place: Any, weight: Any) -> tuple[Any, Any, Any]:
        inside = (place >= 0.0) & (place <= n - 1.0)
        if attrs.padding_mode == "reflection":
            place = _reflected(f, place, n, attrs.align_corners)
        index = f.to_int(f.minimum(f.maximum(place, 0.0), n - 1.0))
        bounded = f.minimum(f.maximum(index, 0), n - 1)  # of NaN, too
        return bounded, weight, inside if attrs.padding_mode == "zeros" else None

    if attrs.mode == "nearest":
        return [tap(x, None)]
    base = f.floor(x)
    t = x - base
    if attrs.mode == "linear":
        return [tap(base, 1.0 - t), tap(base + 1.0, t)]
    return [tap(base + d, w) for d, w in zip((-1.0, 0.0, 1.0, 2.0), cubic_weights(t, -0.75),
                                             strict=True)]  # fmt: skip


def _interpolated(taps: Sequence[Taps], read: Any, both: Any, choose: Any) -> Any:
    """The weighted sum over all combinations of the taps of each axis."""
    total = None
    for chosen in itertools.product(*taps):
        value = read([index for index, _, _ in chosen])
        conditions = [c for _, _, c in chosen if c is not None]
        if conditions:
            value = choose(both(conditions), value)
        for _, weight, _ in chosen:
            value = value if weight is None else value * weight
        total = value if total is None else total + value
    return total


_TE = SimpleNamespace(**vars(TE), round=lambda x: te.call("round", x))
_NUMPY = SimpleNamespace(**vars(NUMPY), round=np.rint)


def _compute_grid_sample(
    attrs: GridSampleAttrs, args: Sequence[Tensor], out: TensorType
) -> list[Tensor]:
    x, grid = args
    nd, acc = x.ndim - 2, accumulation_dtype(x.dtype)
    place_dtype = accumulation_dtype(grid.dtype)

    def body(*index: Any) -> Any:
        n, c, *o = index
        taps = []
        for d in range(nd):
            place = cast(grid(n, *o, nd - 1 - d), place_dtype)
            found = _grid_taps(_TE, attrs, place, as_int(x.shape[2 + d]))
            taps.append(
                [(i, None if w is None else cast(w, acc), inside) for i, w, inside in found]
            )

        def read(at: Sequence[Expr]) -> Expr:
            return cast(x(n, c, *at), acc)

        zero = const(0, acc)
        value = _interpolated(taps, read, all_of, lambda inside, v: select(inside, v, zero))
        return cast(value, x.dtype)

    return [compute(out.shape, body, name="grid_sample")]


def _np_grid_sample(attrs: GridSampleAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    x, grid = widen(arrays[0]), widen(arrays[1])
    nd = x.ndim - 2
    with np.errstate(invalid="ignore"):
        taps = [_grid_taps(_NUMPY, attrs, grid[..., nd - 1 - d], x.shape[2 + d]) for d in range(nd)]
    batch = np.arange(len(x)).reshape(-1, *[1] * nd)
    spread: list[Taps] = [
        [(i, None if w is None else w[..., None], None if c is None else c[..., None])
         for i, w, c in axis]
        for axis in taps
    ]  # fmt: skip
    value = _interpolated(
        spread,
        lambda at: x[(batch, slice(None), *at)],  # channels last
        lambda conditions: np.logical_and.reduce(conditions),
        lambda inside, v: np.where(inside, v, np.zeros((), v.dtype)),
    )
    return np.ascontiguousarray(np.moveaxis(value, -1, 1)).astype(arrays[0].dtype)


def _grid_samples() -> Iterable[Sample]:
    x, grid = sample_array((2, 3, 4, 5)), sample_array((2, 3, 2, 2), low=-1.6, high=1.6, seed=1)
    for n, mode in enumerate(("nearest", "linear", "cubic")):
        for padding in ("zeros", "border", "reflection"):
            yield Sample((x, grid), GridSampleAttrs(mode, padding, n == 1), atol=1e-4)
    odd = np.array([np.nan, np.inf, -np.inf, 1e30, -1.0, 1.0], np.float32).reshape(1, 3, 1, 2)
    yield Sample((x[:1], odd), GridSampleAttrs("nearest", "border"))
    volume = sample_array((1, 2, 3, 2, 4))
    places = sample_array((1, 2, 1, 2, 3), low=-1.2, high=1.2)
    yield Sample((volume, places), GridSampleAttrs(), atol=1e-4)


# -- roi_align ------------------------------------------------------------------------------------


def _infer_roi_align(attrs: RoiAlignAttrs, types: Sequence[Type]) -> TensorType:
    x, rois, batch = tensors("image.roi_align", types, 3)
    require_dtype("image.roi_align", 0, x, FLOATS)
    require_dtype("image.roi_align", 2, batch, INTS)
    fits = x.rank == 4 and rois.rank == 2 and rois.shape[1] == 4 and batch.shape == rois.shape[:1]
    expect(fits, f"image.roi_align: {rois} and {batch} do not fit {x}")
    return TensorType((rois.shape[0], x.shape[1], *attrs.size), x.dtype)


def _roi_place(f: SimpleNamespace, attrs: RoiAlignAttrs, k: int, ends: Any, p: Any, s: Any) -> Any:
    """The coordinate of sample `s` of bin `p` along axis `k` of a region with these two ends."""
    offset = 0.5 if attrs.half_pixel else 0.0
    start, end = (e * float(attrs.scale) - offset for e in ends)
    size = end - start if attrs.half_pixel else f.maximum(end - start, 1.0)
    bin_size = size / float(attrs.size[k])
    return start + p * bin_size + (s + 0.5) * bin_size / float(attrs.ratio)


def _roi_taps(f: SimpleNamespace, place: Any, n: int) -> tuple[Any, Taps]:
    """Whether a place is within reach of the image, and its two neighbours."""
    inside = (place >= -1.0) & (place <= float(n))
    x = f.minimum(f.maximum(place, 0.0), n - 1.0)
    low = f.minimum(f.maximum(f.to_int(f.floor(x)), 0), n - 1)
    t = x - f.floor(x)
    return inside, [(low, 1.0 - t, None), (f.minimum(low + 1, n - 1), t, None)]


def _compute_roi_align(
    attrs: RoiAlignAttrs, args: Sequence[Tensor], out: TensorType
) -> list[Tensor]:
    x, rois, batch = args
    acc = accumulation_dtype(x.dtype)

    def body(r: Any, c: Any, ph: Any, pw: Any) -> Any:
        axes = [reduce_axis((0, attrs.ratio), name=name) for name in ("iy", "ix")]
        found = []
        for k, (p, s) in enumerate(zip((ph, pw), axes, strict=True)):
            ends = [cast(rois(r, e), acc) for e in (1 - k, 3 - k)]
            place = _roi_place(TE, attrs, k, ends, cast(p, acc), cast(s.var, acc))
            found.append(_roi_taps(TE, place, as_int(x.shape[2 + k])))
        image = checked(batch(r), x.shape[0])
        values = [
            cast(x(image, c, i, j), acc) * wy * wx
            for (i, wy, _), (j, wx, _) in itertools.product(found[0][1], found[1][1])
        ]
        inside = found[0][0] & found[1][0]
        combined = values[0]
        for value in values[1:]:
            combined = TE.maximum(combined, value) if attrs.use_max else combined + value
        combined = select(inside, combined, const(0, acc))
        return (te.max if attrs.use_max else te.sum)(combined, axis=axes)

    total = compute(out.shape, body, name="roi_align")
    if not attrs.use_max:
        count, sums = const(float(attrs.ratio**2), acc), total
        total = compute(out.shape, lambda *i: sums(*i) / count, name="roi_mean")
    return [stored(total, out.dtype)]


def _np_roi_align(attrs: RoiAlignAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    x, rois, batch = widen(arrays[0]), widen(arrays[1]), arrays[2]
    image = np_checked(batch, x.shape[0], "image.roi_align")
    ratio = np.arange(attrs.ratio, dtype=x.dtype)
    found = []
    for k, size in enumerate(attrs.size):
        ends = [rois[:, e, None, None] for e in (1 - k, 3 - k)]
        bins = np.arange(size, dtype=x.dtype)[:, None]
        place = _roi_place(NUMPY, attrs, k, ends, bins, ratio)  # [region, bin, sample]
        found.append(_roi_taps(NUMPY, place, x.shape[2 + k]))

    def rows(a: Any) -> Any:
        return a[:, :, :, None, None, None]

    def columns(a: Any) -> Any:
        return a[:, None, None, :, :, None]

    values = [
        x[image[:, None, None, None, None], :, rows(i)[..., 0], columns(j)[..., 0]]
        * rows(wy) * columns(wx)
        for (i, wy, _), (j, wx, _) in itertools.product(found[0][1], found[1][1])
    ]  # fmt: skip
    combine = np.maximum if attrs.use_max else np.add
    combined = values[0]
    for value in values[1:]:
        combined = combine(combined, value)
    combined = np.where(rows(found[0][0]) & columns(found[1][0]), combined, 0)
    axes = (2, 4)
    result = combined.max(axes) if attrs.use_max else combined.mean(axes)
    return np.ascontiguousarray(np.moveaxis(result, -1, 1)).astype(arrays[0].dtype)


def _roi_samples() -> Iterable[Sample]:
    x = sample_array((2, 3, 7, 6))
    rois = np.array([[0, 0, 4, 5], [1.3, 2.1, 9, 8], [-3, 1, 2, 1.5]], np.float32)
    batch = np.array([0, 1, 1])
    for use_max, half_pixel in ((False, True), (False, False), (True, True)):
        attrs = RoiAlignAttrs((2, 3), 2, 0.75, half_pixel, use_max)
        yield Sample((x, rois, batch), attrs, atol=1e-5)


# -- col2im ---------------------------------------------------------------------------------------


def _blocks(attrs: Col2ImAttrs) -> tuple[int, ...]:
    """How many positions the window has along each axis."""
    nd = len(attrs.image)
    return tuple(
        (n + attrs.pads[d] + attrs.pads[nd + d] - attrs.dilations[d] * (attrs.block[d] - 1) - 1)
        // attrs.strides[d] + 1
        for d, n in enumerate(attrs.image)
    )  # fmt: skip


def _infer_col2im(attrs: Col2ImAttrs, types: Sequence[Type]) -> TensorType:
    (x,) = tensors("image.col2im", types, 1)
    counts, size = _blocks(attrs), math.prod(attrs.block)
    fits = x.rank == 3 and min(counts) > 0 and x.shape[2] == math.prod(counts)
    rows = x.shape[1] if fits else 0
    expect(
        fits and isinstance(rows, int) and rows % size == 0,
        f"image.col2im: {x} does not hold {size} elements for each of {counts} positions",
    )
    return TensorType((x.shape[0], rows // size, *attrs.image), x.dtype)


def _compute_col2im(attrs: Col2ImAttrs, args: Sequence[Tensor], out: TensorType) -> list[Tensor]:
    (x,) = args
    counts, size, acc = _blocks(attrs), math.prod(attrs.block), accumulation_dtype(x.dtype)

    def body(n: Expr, c: Expr, *place: Expr) -> Expr:
        axes = [reduce_axis((0, k), name=f"k{d}") for d, k in enumerate(attrs.block)]
        found, conditions = [], []
        for d, (p, k) in enumerate(zip(place, axes, strict=True)):
            from_start = p + attrs.pads[d] - k.var * attrs.dilations[d]
            block = from_start // attrs.strides[d]
            conditions += [(from_start % attrs.strides[d]).equal(0), block >= 0, block < counts[d]]
            found.append(TE.minimum(TE.maximum(block, 0), counts[d] - 1))
        row = c * size + ravel([k.var for k in axes], attrs.block)
        value = cast(x(n, row, ravel(found, counts)), acc)
        return te.sum(value, axis=axes, where=all_of(conditions))

    return [stored(compute(out.shape, body, name="col2im"), out.dtype)]


def _np_col2im(attrs: Col2ImAttrs, arrays: Sequence[np.ndarray]) -> np.ndarray:
    x = widen(arrays[0])
    nd, counts = len(attrs.image), _blocks(attrs)
    channels = x.shape[1] // math.prod(attrs.block)
    blocks = x.reshape(x.shape[0], channels, *attrs.block, *counts)
    padded = [n + attrs.pads[d] + attrs.pads[nd + d] for d, n in enumerate(attrs.image)]
    total = np.zeros((x.shape[0], channels, *padded), x.dtype)
    for offset in itertools.product(*map(range, attrs.block)):
        steps = zip(offset, attrs.dilations, attrs.strides, counts, strict=True)
        where = tuple(slice(k * d, k * d + (m - 1) * s + 1, s) for k, d, s, m in steps)
        total[(slice(None), slice(None), *where)] += blocks[(slice(None), slice(None), *offset)]
    inner = tuple(slice(b, b + n) for b, n in zip(attrs.pads, attrs.image, strict=False))
    return np.ascontiguousarray(total[(slice(None), slice(None), *inner)]).astype(arrays[0].dtype)


def _col2im_samples() -> Iterable[Sample]:
    attrs = Col2ImAttrs((5, 6), (2, 3), (2, 1), (1, 0, 0, 1), (1, 2))
    yield Sample((sample_array((2, 12, math.prod(_blocks(attrs)))),), attrs)
    line = Col2ImAttrs((7,), (3,), (1,), (1, 1), (1,))
    yield Sample((sample_array((1, 6, 7)),), line)


OPS: tuple[Op, ...] = (
    Op(
        "image.grid_sample", OpPattern.INJECTIVE, _infer_grid_sample, _compute_grid_sample,
        _np_grid_sample, GridSampleAttrs, _grid_samples,
        doc="(image [N, C, ...], grid [N, ..., k]): the image at places from -1 to 1 (GridSample).",
    ),
    Op(
        "image.roi_align", OpPattern.OPAQUE, _infer_roi_align, _compute_roi_align, _np_roi_align,
        RoiAlignAttrs, _roi_samples,
        doc="(image, regions [r, 4], their images): bins of regions, interpolated (RoiAlign).",
    ),
    Op(
        "image.col2im", OpPattern.OPAQUE, _infer_col2im, _compute_col2im, _np_col2im, Col2ImAttrs,
        _col2im_samples,
        doc="Columns of window elements summed up where windows overlap (Col2Im).",
    ),
)  # fmt: skip


# -- ONNX -----------------------------------------------------------------------------------------


def _import_grid_sample(node: OnnxNode) -> Atom:
    names = {"bilinear": "linear", "bicubic": "cubic"}
    mode = node.choice("mode", "linear", ("nearest", "linear", "cubic", *names))
    padding = node.choice("padding_mode", "zeros", ("zeros", "border", "reflection"))
    return node.builder.call(
        "image.grid_sample", node.input(0), node.input(1), mode=names.get(mode, mode),
        padding_mode=padding, align_corners=bool(node.attr("align_corners", 0)),
    )  # fmt: skip


def _import_roi_align(node: OnnxNode) -> Atom:
    ratio = node.attr("sampling_ratio", 0)
    if ratio <= 0:
        raise node.unsupported("sampling_ratio=0, by which regions have samples by their size,")
    transformation = node.choice(
        "coordinate_transformation_mode", "half_pixel", ("half_pixel", "output_half_pixel")
    )
    return node.builder.call(
        "image.roi_align", *(node.input(i) for i in range(3)),
        size=(node.attr("output_height", 1), node.attr("output_width", 1)), ratio=ratio,
        scale=float(node.attr("spatial_scale", 1.0)), half_pixel=transformation == "half_pixel",
        use_max=node.choice("mode", "avg", ("avg", "max")) == "max",
    )  # fmt: skip


def _import_affine_grid(node: OnnxNode) -> Atom:
    """Places of an image's elements under an affine map: a product with constant coordinates."""
    theta, sizes = node.rank(0, 3), node.vector(1)
    batch, nd, spatial = theta.shape[0], len(sizes) - 2, sizes[2:]
    node.expect(nd in (2, 3) and theta.shape[1:] == (nd, nd + 1), f"{theta} for the size {sizes}")
    aligned = bool(node.attr("align_corners", 0))
    lines = [np.linspace(-1, 1, n) if aligned else (2 * np.arange(n) + 1) / n - 1 for n in spatial]
    grid = np.meshgrid(*lines, indexing="ij")[::-1]  # x before y before z
    places = np.stack([*grid, np.ones(spatial)], -1).reshape(-1, nd + 1)
    constant = node.builder.const(places.astype(theta.dtype.numpy))
    product = node.builder.call("nn.matmul", constant, transpose(node, node.input(0), (0, 2, 1)))
    return reshape(node, product, (batch, *spatial, nd))


def _import_col2im(node: OnnxNode) -> Atom:
    image, block = tuple(node.vector(1)), tuple(node.vector(2))
    nd = len(image)
    node.expect(len(block) == nd > 0, f"the block {block} does not fit the image {image}")
    given = {
        "strides": tuple(node.attr("strides") or (1,) * nd),
        "pads": tuple(node.attr("pads") or (0,) * (2 * nd)),
        "dilations": tuple(node.attr("dilations") or (1,) * nd),
    }
    for name, values in given.items():
        wanted = 2 * nd if name == "pads" else nd
        low = 0 if name == "pads" else 1
        fits = len(values) == wanted and min(values) >= low
        node.expect(fits, f"{name} {values} do not fit {nd} axes")
    node.expect(min(*image, *block) > 0, f"the image {image} or the block {block} is empty")
    return node.builder.call("image.col2im", node.input(0), image=image, block=block, **given)


ONNX: dict[str, OnnxImport] = {
    "GridSample": _import_grid_sample,
    "RoiAlign": _import_roi_align,
    "AffineGrid": _import_affine_grid,
    "Col2Im": _import_col2im,
}
