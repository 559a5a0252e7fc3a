import pytest

from tinycomp import te
from tinycomp.diagnostics import VerifyError

A = te.placeholder((8, 4), name="A")
K = te.reduce_axis((0, 8), name="k")
I = te.placeholder((8,), "int64", name="I")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda i: A[i + 1, 0], "index 0 takes the values 1 to 8, the extent is 8"),
        (lambda i: A[i, i], "index 1 takes the values 0 to 7, the extent is 4"),
        (lambda i: A[7 - i * 2, 0], "the values -7 to 7"),
        (lambda i: A[0, -1], "the values -1 to -1"),
        (lambda i: te.sum(A[i + K, 0], axis=K), "the values 0 to 14"),
        (lambda i: te.if_then_else(A[i * 2, 0] > 0.0, 1.0, 0.0), "the values 0 to 14"),
    ],
)
def test_reads_outside_are_refused(body, message):
    out = te.compute((8,), body, name="B")
    with pytest.raises(VerifyError, match=message):
        te.create_schedule(out)


@pytest.mark.parametrize(
    "body",
    [
        lambda i: A[i, i % 4],
        lambda i: A[i, i // 2],
        lambda i: te.if_then_else(i > 0, A[i - 1, 0], 0.0),
        lambda i: te.sum(A[i + K, 0], axis=K, where=i + K < 8),
        lambda i: A[I[i], 0],
        lambda i: A[te.minimum(i + 1, 7), 0],
        lambda i: A[(i + 1) % 8, 0],
    ],
)
def test_what_is_inside_or_guarded_is_accepted(body):
    te.create_schedule(te.compute((8,), body, name="B"))


def test_nothing_is_read_where_nothing_is_computed():
    te.create_schedule(te.compute((0,), lambda i: A[i + 100, 0], name="B"))
