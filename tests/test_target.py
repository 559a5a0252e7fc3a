"""Targets by name: what is accepted, and that wrong names are refused before LLVM sees them."""

import pytest

from tinycomp import te
from tinycomp.diagnostics import TinycompError
from tinycomp.driver import build
from tinycomp.target import Target


def test_the_host_by_its_names():
    host = Target.host()
    assert Target.parse("llvm") == Target.parse("cpu") == host
    assert Target.parse("llvm -mcpu=native") == host
    assert Target.parse(f"llvm -mcpu={host.cpu} -mtriple={host.triple}") == host


@pytest.mark.parametrize(
    ("text", "arch", "bits", "registers"),
    [
        ("llvm -mcpu=x86-64-v3", "x86_64", 256, 16),
        ("llvm -mcpu=znver5", "x86_64", 512, 32),
        ("llvm -mcpu=x86-64", "x86_64", 128, 16),
        ("llvm -mcpu=neoverse-n1", "aarch64", 128, 32),
        ("llvm -mtriple=aarch64-linux-gnu", "aarch64", 128, 32),
    ],
)
def test_cross_targets_know_their_vectors(text, arch, bits, registers):
    target = Target.parse(text)
    assert target.triple.startswith(arch)
    assert (target.vector_bits, target.vector_registers) == (bits, registers)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("llvm -mcpu=znver9", "unknown CPU 'znver9'", "znver5"),
        ("llvm -mattr=+avx512ff", "unknown feature 'avx512ff'", "avx512f"),
        ("llvm -mtriple=riscv64-linux", "cannot generate code for 'riscv64'", "x86_64"),
        ("llvm -march=x", "unknown option '-march=x'", "-mcpu="),
        ("opencl", "unknown target 'opencl'", "cuda"),
    ],
)
def test_wrong_names_are_refused(text, message, hint):
    if "avx" in text and not Target.host().triple.startswith("x86_64"):
        pytest.skip("a feature of x86-64")
    with pytest.raises(TinycompError, match=message) as error:
        Target.parse(text)
    assert hint in error.value.hint


@pytest.mark.parametrize("cpu", ["x86-64-v2", "haswell", "neoverse-v1"])
def test_code_for_other_machines(cpu):
    a = te.placeholder((64,), name="a")
    b = te.compute((64,), lambda i: a[i] * 2.0, name="b")
    s = te.create_schedule(b.op)
    s[b].vectorize(s[b].split("i", 8)[1])
    module = build(s, [a, b], f"llvm -mcpu={cpu}")
    text = module.get_source("asm")
    words = ("fadd", "fmul") if cpu.startswith("neoverse") else ("addps", "mulps")
    assert any(word in text for word in words)
