"""Matrix products on the tensor cores of warps, as a test or a user would schedule them."""

from tinycomp import te
from tinycomp.dtype import DType
from tinycomp.tir.schedule import create_schedule
from tinycomp.tir.tensor_intrinsics.warp import load_matrix, mma, mma_of, store_fragment


def warp_product(
    dtype,
    block=(64, 64),
    warp=(32, 32),
    grid=(1, 1),
    depth=None,
    steps=2,
    a_transposed=False,
    b_transposed=False,
    lanes=32,
):
    """A schedule of c = a b^T: tiles of `block` in shared memory, of `warp` in registers.

    Args:
        depth: of a shared tile along k; by default two instructions.
        steps: tiles along k.
        lanes: threads along threadIdx.x.
    """
    record = mma_of(DType(dtype))
    acc = record.accumulator
    depth = depth or 2 * record.depth
    m, n, k = block[0] * grid[0], block[1] * grid[1], depth * steps
    a = te.placeholder((k, m) if a_transposed else (m, k), dtype, name="A")
    b = te.placeholder((k, n) if b_transposed else (n, k), dtype, name="B")
    p = te.reduce_axis((0, k), name="k")

    def element(i, j):
        left = a[p, i] if a_transposed else a[i, p]
        right = b[p, j] if b_transposed else b[j, p]
        return te.sum(left.astype(acc) * right.astype(acc), axis=p)

    c = te.compute((m, n), element, name="C")
    out = te.compute((m, n), lambda i, j: c[i, j] + c[i, j], name="D")
    s = create_schedule(out, [a, b])
    s.set_scope(c, "warp")
    parts = {"C": c, "out": out}
    for name, tensor in (("a", a), ("b", b)):
        parts[f"{name}_shared"] = s.cache_read(tensor, "shared", ["C"])
        parts[name] = s.cache_read(parts[f"{name}_shared"], "warp", ["C"])
    parts["c_shared"] = s.cache_read(c, "shared", ["D"])
    warps = (block[0] // warp[0]) * (block[1] // warp[1])
    stage = s[out]
    bi, bj, i, j = stage.tile("i", "j", *block)
    stage.bind(bi, "blockIdx.y")
    stage.bind(bj, "blockIdx.x")
    s[parts["c_shared"]].compute_at(stage, bj)
    s[c].compute_at(stage, bj)
    threads(stage, stage.fuse(i, j), warps, lanes)
    compute = s[c]
    i, j, k = compute.axes[-3:]
    wi, mi, ti = compute.split(i, factors=[None, warp[0] // 16, 16])
    wj, nj, tj = compute.split(j, factors=[None, warp[1] // 8, 8])
    step, kk, tk = compute.split(k, factors=[None, depth // record.depth, record.depth])
    compute.reorder(step, wi, wj, kk, mi, nj, ti, tj, tk)
    compute.bind(compute.fuse(wi, wj), "threadIdx.y")
    for axis in (kk, mi, nj):
        compute.unroll(axis)
    for name, transposed in (("a", a_transposed), ("b", b_transposed)):
        fragment(s[parts[name]], compute, kk, name, dtype, transposed)
    compute.tensorize(ti, mma(dtype, acc, a_transposed, b_transposed))
    for name in ("a_shared", "b_shared"):
        copy = s[parts[name]]
        copy.compute_at(compute, step)
        threads(copy, copy.fuse(*copy.axes[-2:]), warps, lanes, 16 // DType(dtype).itemsize)
    copy = s[parts["c_shared"]]
    i, j = copy.axes[-2:]
    wi, mi, ti = copy.split(i, factors=[None, warp[0] // 16, 16])
    wj, nj, tj = copy.split(j, factors=[None, warp[1] // 8, 8])
    copy.reorder(wi, wj, mi, nj, ti, tj)
    copy.bind(copy.fuse(wi, wj), "threadIdx.y")
    copy.tensorize(ti, store_fragment(acc))
    return s


def threads(stage, axis, warps, lanes, width=1):
    """An axis over all threads, `width` neighbouring elements each."""
    _, y, x, lane = stage.split(axis, factors=[None, warps, lanes, width])
    stage.bind(y, "threadIdx.y")
    stage.bind(x, "threadIdx.x")
    if width > 1:
        stage.vectorize(lane)


def fragment(stage, compute, at, role, dtype, transposed):
    """A stage that loads fragments of an operand."""
    stage.compute_at(compute, at)
    rows, columns = stage.axes[-2:]
    if transposed:
        outer, inner = stage.split(columns, factor=16)
        stage.reorder(outer, rows, inner)
        first = rows
    else:
        outer, first = stage.split(rows, factor=16)
    stage.unroll(outer)
    stage.tensorize(first, load_matrix(role, dtype, transposed))
