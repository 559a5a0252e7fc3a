"""Small computations of every shape that schedules meet, as functions of their sizes.

Sizes are named parameters; every function also makes sense with a size of 1 or 0.

>>> computation = COMPUTATIONS["matmul"](5, 7, 3)
>>> [t.name for t in computation.inputs], computation.outputs[0].shape
(['A', 'B'], (5, 7))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import te
from ..te.tensor import Tensor


@dataclass(frozen=True)
class Computation:
    """Tensors to compute, the placeholders they need, and which values these may take.

    Attributes:
        ranges: (lowest, highest) value of an input; by default -4 to 4, or 0 to 4 if unsigned.
        exact: float results are sums and products of small integers, the same in any order.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    ranges: Mapping[Tensor, tuple[int, int]] = field(default_factory=dict)
    exact: bool = True

    def arrays(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Random inputs: integers, also as floats, so that sums do not depend on their order."""
        return [self._array(t, rng) for t in self.inputs]

    def _array(self, tensor: Tensor, rng: np.random.Generator) -> np.ndarray:
        dtype = tensor.dtype.numpy
        usual = (0, 1) if dtype.kind == "b" else (0, 4) if dtype.kind == "u" else (-4, 4)
        low, high = self.ranges.get(tensor, usual)
        return rng.integers(low, high + 1, [d.value for d in tensor.shape]).astype(dtype)  # type: ignore[attr-defined]


def _make(inputs: Any, outputs: Any, **options: Any) -> Computation:
    listed = tuple(outputs) if isinstance(outputs, list | tuple) else (outputs,)
    return Computation(tuple(inputs), listed, **options)


def _input(name: str, *shape: Any, dtype: str = "float32") -> Tensor:
    return te.placeholder(shape, dtype, name=name)


def _k(extent: Any, name: str = "k") -> Any:
    return te.reduce_axis((0, extent), name=name)


def _out(size: int, kernel: int, stride: int = 1, dilation: int = 1, padding: int = 0) -> int:
    """The output size of a window; 0 where the window does not fit."""
    return max(0, (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)


# -- elementwise, broadcasts, changes of shape ---------------------------------------------------


def elementwise_chain(n: int, m: int) -> Computation:
    a = _input("A", n, m)
    b = te.compute((n, m), lambda i, j: a[i, j] * 2.0, name="B")
    c = te.compute((n, m), lambda i, j: b[i, j] + a[i, j], name="C")
    return _make([a], te.compute((n, m), lambda i, j: te.maximum(c[i, j], 0.0), name="D"))


def elementwise_3d(n: int, m: int, p: int) -> Computation:
    a, b = _input("A", n, m, p), _input("B", n, m, p)
    c = te.compute((n, m, p), lambda i, j, k: a[i, j, k] - b[i, j, k], name="C")
    return _make([a, b], te.compute((n, m, p), lambda *i: c(*i) * c(*i) + 1.0, name="D"))


def diamond(n: int, m: int) -> Computation:
    a = _input("A", n, m)
    b = te.compute((n, m), lambda i, j: a[i, j] + 1.0, name="B")
    c = te.compute((n, m), lambda i, j: b[i, j] * 2.0, name="C")
    d = te.compute((n, m), lambda i, j: b[i, j] - 3.0, name="D")
    return _make([a], te.compute((n, m), lambda i, j: c[i, j] * d[i, j], name="E"))


def broadcast(n: int, m: int) -> Computation:
    a, b, c = _input("A", n, m), _input("B", m), _input("C", n)
    d = te.compute((n, m), lambda i, j: a[i, j] + b[j], name="D")
    return _make([a, b, c], te.compute((n, m), lambda i, j: d[i, j] * c[i], name="E"))


def transpose(n: int, m: int) -> Computation:
    a = _input("A", n, m)
    b = te.compute((m, n), lambda i, j: a[j, i], name="B")
    return _make([a], te.compute((m, n), lambda i, j: b[i, j] + 1.0, name="C"))


def permute(n: int, m: int, p: int) -> Computation:
    a = _input("A", n, m, p)
    b = te.compute((p, n, m), lambda i, j, k: a[j, k, i] * 2.0, name="B")
    return _make([a], te.compute((m, p, n), lambda i, j, k: b[j, k, i], name="C"))


def flatten(n: int, m: int) -> Computation:
    a = _input("A", n, m)
    b = te.compute((n, m), lambda i, j: a[i, j] + 1.0, name="B")
    width = max(1, m)
    return _make([a], te.compute((n * m,), lambda i: b[i // width, i % width], name="C"))


def space_to_depth(h: int, w: int, c: int) -> Computation:
    a = _input("A", h * 2, w * 2, c)
    b = te.compute((h * 2, w * 2, c), lambda y, x, i: a[y, x, i] * 3.0, name="B")
    channels = max(1, c)
    return _make(
        [a],
        te.compute(
            (h, w, c * 4),
            lambda y, x, i: b[y * 2 + i // (2 * channels), x * 2 + i // channels % 2, i % channels],
            name="C",
        ),
    )


def upsample(h: int, w: int) -> Computation:
    a = _input("A", h, w)
    b = te.compute((h, w), lambda y, x: a[y, x] - 1.0, name="B")
    return _make([a], te.compute((h * 2, w * 3), lambda y, x: b[y // 2, x // 3], name="C"))


def reverse(n: int, m: int) -> Computation:
    a = _input("A", n, m)
    b = te.compute((n, m), lambda i, j: a[n - 1 - i, j] * 2.0, name="B")
    return _make([a], te.compute((n, m), lambda i, j: b[i, m - 1 - j] + 1.0, name="C"))


def strided_slice(n: int, m: int) -> Computation:
    a = _input("A", n * 2 + 1, m * 3 + 2)
    b = te.compute((n * 2 + 1, m * 3 + 2), lambda i, j: a[i, j] * 2.0, name="B")
    return _make([a], te.compute((n, m), lambda i, j: b[i * 2 + 1, j * 3 + 2], name="C"))


def concatenate(n: int, m: int, p: int) -> Computation:
    a, b = _input("A", n, p), _input("B", m, p)
    c = te.compute((n + m, p), lambda i, j: te.if_then_else(i < n, a[i, j], b[i - n, j]), name="C")
    return _make([a, b], te.compute((n + m, p), lambda i, j: c[i, j] * 2.0, name="D"))


def pad_constant(n: int, m: int) -> Computation:
    a = _input("A", n, m)
    p = te.compute(
        (n + 3, m + 4),
        lambda i, j: te.if_then_else(
            te.all(i >= 1, i < n + 1, j >= 2, j < m + 2), a[i - 1, j - 2], 7.0
        ),
        name="P",
    )
    return _make([a], te.compute((n + 3, m + 4), lambda i, j: p[i, j] + 1.0, name="C"))


def pad_reflect(n: int) -> Computation:
    a = _input("A", n + 2)
    mirror = lambda i: te.if_then_else(i < 0, -i, te.if_then_else(i > n + 1, 2 * n + 2 - i, i))  # noqa: E731
    b = te.compute((n + 4,), lambda i: a[mirror(i - 1)], name="B")
    return _make([a], te.compute((n + 4,), lambda i: b[i] * 2.0, name="C"))


def scalar(n: int) -> Computation:
    a, k = _input("A", n), _k(n)
    b = te.compute((), lambda: te.sum(a[k], axis=k), name="B")
    return _make([a], te.compute((), lambda: b() * 2.0 + 1.0, name="C"))


# -- reductions ----------------------------------------------------------------------------------


def sum_rows(n: int, m: int) -> Computation:
    a, k = _input("A", n, m), _k(m)
    return _make([a], te.compute((n,), lambda i: te.sum(a[i, k], axis=k), name="B"))


def sum_columns(n: int, m: int) -> Computation:
    a, k = _input("A", n, m), _k(n)
    b = te.compute((m,), lambda j: te.sum(a[k, j] * 2.0, axis=k), name="B")
    return _make([a], te.compute((m,), lambda j: b[j] - 1.0, name="C"))


def sum_middle(n: int, m: int, p: int) -> Computation:
    a, k = _input("A", n, m, p), _k(m)
    return _make([a], te.compute((n, p), lambda i, j: te.sum(a[i, k, j], axis=k), name="B"))


def sum_outer_and_inner(n: int, m: int, p: int) -> Computation:
    a, k, r = _input("A", n, m, p), _k(n), _k(p, "r")
    return _make([a], te.compute((m,), lambda i: te.sum(a[k, i, r], axis=[k, r]), name="B"))


def max_all(n: int, m: int) -> Computation:
    a, k, r = _input("A", n, m), _k(n), _k(m, "r")
    b = te.compute((n, m), lambda i, j: a[i, j] - 1.0, name="B")
    return _make([a], te.compute((), lambda: te.max(b[k, r], axis=[k, r]), name="C"))


def min_rows(n: int, m: int) -> Computation:
    a, k = _input("A", n, m), _k(m)
    b = te.compute((n,), lambda i: te.min(a[i, k], axis=k), name="B")
    return _make([a], te.compute((n, m), lambda i, j: te.minimum(a[i, j], b[i] + 1.0), name="C"))


def prod_columns(n: int, m: int) -> Computation:
    a, k = _input("A", n, m), _k(n)
    b = te.compute((m,), lambda j: te.prod(a[k, j], axis=k), name="B")
    return _make([a], b, ranges={a: (-1, 1)})


def triangular_sum(n: int, m: int) -> Computation:
    a, k = _input("A", n, m), _k(m)
    return _make([a], te.compute((n,), lambda i: te.sum(a[i, k], axis=k, where=k <= i), name="B"))


def bool_any_all(n: int, m: int) -> Computation:
    a, k, r = _input("A", n, m, dtype="bool"), _k(m), _k(m, "r")
    b = te.compute((n,), lambda i: te.any(a[i, k], axis=k), name="B")
    c = te.compute((n,), lambda i: te.all(a[i, r], axis=r), name="C")
    return _make([a], te.compute((n,), lambda i: te.not_equal(b[i], c[i]), name="D"))


def _argmax(a: Tensor, n: int, m: int) -> Any:
    combine = lambda x, y: (  # noqa: E731
        te.select(te.any(x[0] > y[0], te.all(te.equal(x[0], y[0]), x[1] < y[1])), x[0], y[0]),
        te.select(te.any(x[0] > y[0], te.all(te.equal(x[0], y[0]), x[1] < y[1])), x[1], y[1]),
    )
    start = lambda value, index: (te.min_value(value), te.max_value(index))  # noqa: E731
    k, reducer = _k(m), te.comm_reducer(combine, start, name="argmax")
    return te.compute((n,), lambda i: reducer((a[i, k], k), axis=k), name="best")


def argmax(n: int, m: int) -> Computation:
    a = _input("A", n, m)
    return _make([a], _argmax(a, n, m))


def argmax_value(n: int, m: int) -> Computation:
    a = _input("A", n, m, dtype="int32")
    value, index = _argmax(a, n, m)
    b = te.compute((n,), lambda i: te.minimum(te.cast(index[i], "int32"), 99), name="B")
    return _make([a], te.compute((n,), lambda i: value[i] * 8 + b[i], name="C"))


def mean_and_variance(n: int, m: int) -> Computation:
    a, k, r = _input("A", n, m, dtype="float64"), _k(m), _k(m, "r")
    total = te.compute((n,), lambda i: te.sum(a[i, k], axis=k), name="total")
    mean = te.compute((n,), lambda i: total[i] / float(max(1, m)), name="mean")
    square = te.compute(
        (n,), lambda i: te.sum((a[i, r] - mean[i]) * (a[i, r] - mean[i]), axis=r), name="square"
    )
    return _make([a], [mean, square], exact=False)


def softmax(n: int, m: int) -> Computation:
    a, k, r = _input("A", n, m), _k(m), _k(m, "r")
    top = te.compute((n,), lambda i: te.max(a[i, k], axis=k), name="top")
    e = te.compute((n, m), lambda i, j: te.exp(a[i, j] - top[i]), name="e")
    total = te.compute((n,), lambda i: te.sum(e[i, r], axis=r), name="total")
    return _make([a], te.compute((n, m), lambda i, j: e[i, j] / total[i], name="S"), exact=False)


def layer_norm(n: int, m: int) -> Computation:
    a, gamma, beta = _input("A", n, m), _input("gamma", m), _input("beta", m)
    k, r = _k(m), _k(m, "r")
    total = te.compute((n,), lambda i: te.sum(a[i, k], axis=k), name="total")
    centred = te.compute((n, m), lambda i, j: a[i, j] - total[i] / float(max(1, m)), name="centred")
    square = te.compute((n,), lambda i: te.sum(centred[i, r] * centred[i, r], axis=r), name="sq")
    scale = te.compute((n,), lambda i: te.rsqrt(square[i] / float(max(1, m)) + 1e-2), name="scale")
    out = te.compute((n, m), lambda i, j: centred[i, j] * scale[i] * gamma[j] + beta[j], name="L")
    return _make([a, gamma, beta], out, exact=False)


# -- linear algebra ------------------------------------------------------------------------------


def matmul(n: int, m: int, p: int) -> Computation:
    a, b, k = _input("A", n, p), _input("B", p, m), _k(p)
    c = te.compute((n, m), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="C")
    return _make([a, b], c)


def matmul_bias_relu(n: int, m: int, p: int) -> Computation:
    a, b, bias, k = _input("A", n, p), _input("B", m, p), _input("bias", m), _k(p)
    c = te.compute((n, m), lambda i, j: te.sum(a[i, k] * b[j, k], axis=k), name="C")
    d = te.compute((n, m), lambda i, j: c[i, j] + bias[j], name="D")
    return _make([a, b, bias], te.compute((n, m), lambda i, j: te.maximum(d[i, j], 0.0), name="E"))


def matmul_packed(n: int, m: int, p: int) -> Computation:
    a, b, k = _input("A", n, p), _input("B", p, m), _k(p)
    packed = te.compute(
        (-(-m // 4), p, 4),
        lambda j, q, t: te.if_then_else(j * 4 + t < m, b[q, j * 4 + t], 0.0),
        name="packed",
    )
    c = te.compute(
        (n, m), lambda i, j: te.sum(a[i, k] * packed[j // 4, k, j % 4], axis=k), name="C"
    )
    return _make([a, b], c)


def two_matmuls(n: int, m: int, p: int) -> Computation:
    a, b, c, k, r = _input("A", n, p), _input("B", p, m), _input("C", m, p), _k(p), _k(m, "r")
    d = te.compute((n, m), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="D")
    return _make(
        [a, b, c],
        te.compute((n, p), lambda i, j: te.sum(d[i, r] * c[r, j], axis=r), name="E"),
    )


def batched_matmul(g: int, n: int, m: int, p: int) -> Computation:
    a, b, k = _input("A", g, n, p), _input("B", g, p, m), _k(p)
    c = te.compute((g, n, m), lambda q, i, j: te.sum(a[q, i, k] * b[q, k, j], axis=k), name="C")
    return _make([a, b], c)


def matmul_int8(n: int, m: int, p: int) -> Computation:
    a, b, k = _input("A", n, p, dtype="uint8"), _input("B", m, p, dtype="int8"), _k(p)
    c = te.compute(
        (n, m),
        lambda i, j: te.sum(te.cast(a[i, k], "int32") * te.cast(b[j, k], "int32"), axis=k),
        name="C",
    )
    return _make([a, b], c)


def matvec(n: int, m: int) -> Computation:
    a, x, k = _input("A", n, m, dtype="float64"), _input("x", m, dtype="float64"), _k(m)
    return _make([a, x], te.compute((n,), lambda i: te.sum(a[i, k] * x[k], axis=k), name="y"))


def outer_product(n: int, m: int) -> Computation:
    x, y = _input("x", n), _input("y", m)
    a = te.compute((n, m), lambda i, j: x[i] * y[j], name="A")
    return _make([x, y], te.compute((n, m), lambda i, j: a[i, j] + x[i], name="B"))


# -- windows -------------------------------------------------------------------------------------


def _padded(a: Tensor, pads: tuple[int, ...], value: float = 0.0) -> Tensor:
    """A stage that puts `pads[d]` elements before and after dimension d."""
    sizes = [d.value for d in a.shape]  # type: ignore[attr-defined]
    shape = [n + 2 * p for n, p in zip(sizes, pads, strict=True)]

    def element(*index: Any) -> Any:
        inside = [
            c for i, n, p in zip(index, sizes, pads, strict=True) if p for c in (i >= p, i < n + p)
        ]
        read = a(*(i - p for i, p in zip(index, pads, strict=True)))
        return te.if_then_else(te.all(*inside), read, value) if inside else read

    return te.compute(shape, element, name="P")


def conv1d(c: int, o: int, w: int, kernel: int, stride: int, dilation: int, padding: int):
    a, f = _input("A", c, w), _input("F", o, c, kernel)
    p, k, r = _padded(a, (0, padding)), _k(c), _k(kernel, "r")
    out = te.compute(
        (o, _out(w, kernel, stride, dilation, padding)),
        lambda i, x: te.sum(p[k, x * stride + r * dilation] * f[i, k, r], axis=[k, r]),
        name="C",
    )
    return _make([a, f], out)


def conv2d(c: int, o: int, h: int, w: int, kernel: int, stride: int, dilation: int, padding: int):
    a, f = _input("A", c, h, w), _input("F", o, c, kernel, kernel)
    p = _padded(a, (0, padding, padding))
    k, ry, rx = _k(c), _k(kernel, "ry"), _k(kernel, "rx")
    sizes = [_out(n, kernel, stride, dilation, padding) for n in (h, w)]
    conv = te.compute(
        (o, *sizes),
        lambda i, y, x: te.sum(
            p[k, y * stride + ry * dilation, x * stride + rx * dilation] * f[i, k, ry, rx],
            axis=[k, ry, rx],
        ),
        name="C",
    )
    return _make([a, f], te.compute((o, *sizes), lambda *i: te.maximum(conv(*i), 0.0), name="D"))


def conv2d_nhwc(c: int, o: int, h: int, w: int, kernel: int, stride: int, padding: int):
    a, f = _input("A", h, w, c), _input("F", kernel, kernel, c, o)
    k, ry, rx = _k(c), _k(kernel, "ry"), _k(kernel, "rx")

    def element(y: Any, x: Any, i: Any) -> Any:
        v, u = y * stride + ry - padding, x * stride + rx - padding
        value = a[v, u, k] * f[ry, rx, k, i]
        if padding:
            value = te.if_then_else(te.all(v >= 0, v < h, u >= 0, u < w), value, 0.0)
        return te.sum(value, axis=[ry, rx, k])

    sizes = [_out(n, kernel, stride, 1, padding) for n in (h, w)]
    return _make([a, f], te.compute((*sizes, o), element, name="C"))


def conv2d_groups(g: int, c: int, o: int, h: int, kernel: int, padding: int) -> Computation:
    a, f = _input("A", g * c, h, h), _input("F", g * o, c, kernel, kernel)
    p, per = _padded(a, (0, padding, padding)), max(1, o)
    k, ry, rx, n = _k(c), _k(kernel, "ry"), _k(kernel, "rx"), _out(h, kernel, 1, 1, padding)
    out = te.compute(
        (g * o, n, n),
        lambda i, y, x: te.sum(
            p[i // per * c + k, y + ry, x + rx] * f[i, k, ry, rx], axis=[k, ry, rx]
        ),
        name="C",
    )
    return _make([a, f], out)


def depthwise(c: int, h: int, w: int, kernel: int, stride: int, padding: int) -> Computation:
    a, f = _input("A", h, w, c), _input("F", kernel, kernel, c)
    p, ry, rx = _padded(a, (padding, padding, 0)), _k(kernel, "ry"), _k(kernel, "rx")
    sizes = [_out(n, kernel, stride, 1, padding) for n in (h, w)]
    out = te.compute(
        (*sizes, c),
        lambda y, x, i: te.sum(
            p[y * stride + ry, x * stride + rx, i] * f[ry, rx, i], axis=[ry, rx]
        ),
        name="C",
    )
    return _make([a, f], out)


def conv3d(c: int, o: int, d: int, h: int, kernel: int, stride: int, padding: int) -> Computation:
    a, f = _input("A", c, d, h, h), _input("F", o, c, kernel, kernel, kernel)
    p = _padded(a, (0, padding, padding, padding))
    k, rz, ry, rx = _k(c), _k(kernel, "rz"), _k(kernel, "ry"), _k(kernel, "rx")
    sizes = [_out(n, kernel, stride, 1, padding) for n in (d, h, h)]
    out = te.compute(
        (o, *sizes),
        lambda i, z, y, x: te.sum(
            p[k, z * stride + rz, y * stride + ry, x * stride + rx] * f[i, k, rz, ry, rx],
            axis=[k, rz, ry, rx],
        ),
        name="C",
    )
    return _make([a, f], out)


def max_pool(c: int, h: int, w: int, kernel: int, stride: int, padding: int) -> Computation:
    a = _input("A", c, h, w)
    p = _padded(a, (0, padding, padding), -1e9)
    ry, rx = _k(kernel, "ry"), _k(kernel, "rx")
    sizes = [_out(n, kernel, stride, 1, padding) for n in (h, w)]
    out = te.compute(
        (c, *sizes),
        lambda i, y, x: te.max(p[i, y * stride + ry, x * stride + rx], axis=[ry, rx]),
        name="C",
    )
    return _make([a], out)


def average_pool(h: int, w: int, kernel: int, stride: int) -> Computation:
    a, ry, rx = _input("A", h, w), _k(kernel, "ry"), _k(kernel, "rx")
    sizes = [_out(n, kernel, stride) for n in (h, w)]
    total = te.compute(
        sizes, lambda y, x: te.sum(a[y * stride + ry, x * stride + rx], axis=[ry, rx]), name="total"
    )
    area = 1.0 / max(1, kernel * kernel)
    return _make([a], te.compute(sizes, lambda y, x: total[y, x] * area, name="C"), exact=False)


def stencil_chain(n: int) -> Computation:
    a = _input("A", n + 6)
    b = te.compute((n + 4,), lambda i: a[i] + a[i + 1] + a[i + 2], name="B")
    c = te.compute((n + 2,), lambda i: b[i] - b[i + 2], name="C")
    return _make([a], te.compute((n,), lambda i: c[i] + c[i + 1] * 2.0 + c[i + 2], name="D"))


def blur(h: int, w: int) -> Computation:
    a = _input("A", h + 2, w + 2)
    b = te.compute((h + 2, w), lambda y, x: a[y, x] + a[y, x + 1] + a[y, x + 2], name="B")
    return _make(
        [a], te.compute((h, w), lambda y, x: b[y, x] + b[y + 1, x] + b[y + 2, x], name="C")
    )


# -- recurrences, indices from data, several outputs, other dtypes -------------------------------


def cumulative_sum(n: int, m: int) -> Computation:
    a, state = _input("A", n + 1, m), _input("state", n + 1, m)
    init = te.compute((1, m), lambda t, i: a[0, i], name="init")
    update = te.compute((n + 1, m), lambda t, i: state[t - 1, i] + a[t, i], name="update")
    total = te.scan(init, update, state, [a], name="total")
    return _make([a], te.compute((n + 1, m), lambda t, i: total[t, i] * 2.0, name="out"))


def recurrent(n: int, m: int) -> Computation:
    x, w, state = _input("X", n + 1, m), _input("W", m, m), _input("state", n + 1, m)
    k = _k(m)
    init = te.compute((1, m), lambda t, i: x[0, i], name="init")
    mixed = te.compute(
        (n + 1, m), lambda t, i: te.sum(state[t - 1, k] * w[k, i], axis=k), name="mixed"
    )
    update = te.compute(
        (n + 1, m),
        lambda t, i: te.maximum(te.minimum(mixed[t, i] + x[t, i], 3.0), -3.0),
        name="update",
    )
    return _make([x, w], te.scan(init, update, state, [x, w], name="hidden"))


def fibonacci(n: int, m: int) -> Computation:
    start = _input("start", 2, m, dtype="int64")
    a, b = (_input(x, n + 1, m, dtype="int64") for x in "ab")
    first_a = te.compute((1, m), lambda t, i: start[0, i], name="first_a")
    first_b = te.compute((1, m), lambda t, i: start[1, i], name="first_b")
    next_a = te.compute((n + 1, m), lambda t, i: b[t - 1, i], name="next_a")
    next_b = te.compute((n + 1, m), lambda t, i: a[t - 1, i] + b[t - 1, i], name="next_b")
    return _make([start], te.scan([first_a, first_b], [next_a, next_b], [a, b], name="fib"))


def gather(rows: int, n: int, m: int) -> Computation:
    rows += 1
    a, index = _input("A", rows, m), _input("index", n, dtype="int64")
    b = te.compute((rows, m), lambda i, j: a[i, j] * 2.0, name="B")
    c = te.compute((n, m), lambda i, j: b[te.call("checked_index", index[i], rows), j], name="C")
    return _make([a, index], c, ranges={index: (-rows, rows - 1)})


def embedding_sum(rows: int, n: int, m: int) -> Computation:
    rows += 1
    a, index, k = _input("A", rows, m), _input("index", n, dtype="int32"), _k(n)

    def element(j: Any) -> Any:
        row = te.call("checked_index", te.cast(index[k], "int64"), rows)
        return te.sum(a[row, j], axis=k)

    b = te.compute((m,), element, name="B")
    return _make([a, index], b, ranges={index: (0, rows - 1)})


def two_outputs(n: int, m: int) -> Computation:
    a = _input("A", n, m)
    total, product = te.compute((n, m), lambda i, j: (a[i, j] + 1.0, a[i, j] * 2.0), name="T")
    c = te.compute((n, m), lambda i, j: total[i, j] * product[i, j], name="C")
    return _make([a], [product, c])


def two_outputs_inside(n: int, m: int) -> Computation:
    a = _input("A", n, m)
    x, y = te.compute((n, m), lambda i, j: (a[i, j] + 1.0, a[i, j] * 2.0), name="T")
    return _make([a], te.compute((n, m), lambda i, j: x[i, j] - y[i, j], name="C"))


def int_arithmetic(n: int, m: int) -> Computation:
    a, b = _input("A", n, m, dtype="int32"), _input("B", n, m, dtype="int32")
    c = te.compute((n, m), lambda i, j: te.floordiv(a[i, j], b[i, j]), name="C")
    d = te.compute((n, m), lambda i, j: te.floormod(a[i, j], b[i, j]), name="D")
    return _make([a, b], te.compute((n, m), lambda i, j: c[i, j] * b[i, j] + d[i, j], name="E"))


def int64_indices(n: int, m: int) -> Computation:
    a = te.compute((n, m), lambda i, j: i * 3 - j, name="A")
    x = _input("X", n, m, dtype="int64")
    return _make([x], te.compute((n, m), lambda i, j: a[i, j] + x[i, j], name="B"))


def compare_and_select(n: int, m: int) -> Computation:
    a, b = _input("A", n, m, dtype="float64"), _input("B", n, m, dtype="float64")
    c = te.compute((n, m), lambda i, j: a[i, j] < b[i, j], name="C")
    return _make(
        [a, b], te.compute((n, m), lambda i, j: te.select(c[i, j], a[i, j], b[i, j] * 2.0))
    )


def half_precision(n: int, m: int) -> Computation:
    a = _input("A", n, m, dtype="float16")
    b = te.compute((n, m), lambda i, j: te.cast(a[i, j], "float32") * 2.0, name="B")
    return _make([a], te.compute((n, m), lambda i, j: te.cast(b[i, j] + 1.0, "float16"), name="C"))


COMPUTATIONS: Mapping[str, Callable[..., Computation]] = {
    function.__name__: function
    for function in (
        elementwise_chain, elementwise_3d, diamond, broadcast, transpose, permute, flatten,
        space_to_depth, upsample, reverse, strided_slice, concatenate, pad_constant, pad_reflect,
        scalar, sum_rows, sum_columns, sum_middle, sum_outer_and_inner, max_all, min_rows,
        prod_columns, triangular_sum, bool_any_all, argmax, argmax_value, mean_and_variance,
        softmax, layer_norm, matmul, matmul_bias_relu, matmul_packed, two_matmuls, batched_matmul,
        matmul_int8, matvec, outer_product, conv1d, conv2d, conv2d_nhwc, conv2d_groups, depthwise,
        conv3d, max_pool, average_pool, stencil_chain, blur, cumulative_sum, recurrent, fibonacci,
        gather, embedding_sum, two_outputs, two_outputs_inside, int_arithmetic, int64_indices,
        compare_and_select, half_precision,
    )
}  # fmt: skip
