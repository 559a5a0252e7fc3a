"""Machine code as nvdisasm prints it: parsed, counted, judged."""

import pytest

from tinycomp.codegen.cuda import nvrtc
from tinycomp.codegen.cuda.sass import disassemble, find_nvdisasm, findings, parse_sass
from tinycomp.diagnostics import TinycompError

TEXT = """
.text.f:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   ACQBULK ;
.L_x_1:
        /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0030*/              @!P0 I2F.U32.RP R5, R6 ;
        /*0040*/                   IMAD.WIDE R2, R3, 0x4, R2 ;
        /*0050*/                   FFMA R8, R4, R5, R8 ;
        /*0060*/               @P0 BRA `(.L_x_1) ;
        /*0070*/                   STL [R1], R8 ;
        /*0080*/                   STG.E.U16 desc[UR4][R2.64], R5 ;
        /*0090*/                   EXIT ;
.L_x_2:
        /*00a0*/                   BRA `(.L_x_2);
.text.g:
        /*0000*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0010*/                   ACQBULK ;
"""


def test_what_is_printed_is_counted():
    f, g = parse_sass(TEXT).values()
    assert f.counts()["LDG"] == f.counts()["FFMA"] == 1
    assert f.widths("LDG") == {16: 1}
    assert f.widths("STG") == {2: 1}
    assert f.loops == (range(2, 7),)
    assert f.instructions[3].guarded
    assert f.counts(f.loops[0]) == {"LDG": 1, "I2F": 1, "IMAD": 1, "FFMA": 1, "BRA": 1}
    assert not f.early_reads()
    assert [i.name for i in g.early_reads()] == ["LDG.E.U16"]


def test_what_is_worth_a_look():
    f, g = parse_sass(TEXT).values()
    local, division = findings(f)
    assert local.startswith("1 STL")
    assert division == "the loop at 0x20 divides integers"
    assert not findings(g)


def test_without_a_disassembler(monkeypatch):
    find_nvdisasm.cache_clear()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr("tinycomp.codegen.cuda.sass.FOLDERS", ())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TinycompError, match=r"nvdisasm.*not found\n.*CUDA toolkit"):
        disassemble(b"")
    find_nvdisasm.cache_clear()


def test_code_of_the_compiler():
    if not find_nvdisasm():
        pytest.skip("nvdisasm is not installed")
    try:
        nvrtc.library()
    except TinycompError:
        pytest.skip("NVRTC is not installed")
    source = 'extern "C" __global__ void f(float4* x) { x[0] = x[1]; }'
    (code,) = disassemble(nvrtc.compile_cuda(source, "sm_90a").code).values()
    assert code.widths("LDG") == code.widths("STG") == {16: 1}
