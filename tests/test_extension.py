"""What is passed to `compile` beside tinycomp's own tables: found, checked, cached by its key."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from onnx import TensorProto, helper

import tinycomp
from tinycomp import te
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.diagnostics import TinycompError, UnsupportedModel, VerifyError
from tinycomp.extension import NO_EXTENSION, Extension
from tinycomp.ir.expr import Var
from tinycomp.ops import default_ops
from tinycomp.relay.op import Op, OpPattern
from tinycomp.relay.pass_infra import FunctionPass
from tinycomp.relay.pattern import Rule, is_op, rewrite, wildcard
from tinycomp.tir.nodes import For


def _cube(name="cube"):
    return Op(
        name,
        OpPattern.ELEMWISE,
        infer=lambda attrs, types: types[0],
        compute=lambda attrs, ts, out: [
            te.compute(ts[0].shape, lambda *i: ts[0](*i) * ts[0](*i) * ts[0](*i), name="cube")
        ],
        reference=lambda attrs, arrays: arrays[0] ** 3,
    )


def _import_cube(node):
    return node.builder.call("cube", node.input(0))


def _model(rows: int | str = 4):
    nodes = [
        helper.make_node("Cube", ["x"], ["c"], "cube", domain="lab"),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [rows, 8]) for n in "xy")
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("lab", 1)]
    return helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=opsets, ir_version=10
    )


CUBE = Extension(ops=(_cube(),), onnx={"lab::Cube": _import_cube})
DATA = np.linspace(-2, 2, 32, dtype=np.float32).reshape(4, 8)
EXPECTED = np.maximum(DATA**3, 0)


def _check(module, data=DATA, expected=EXPECTED):
    np.testing.assert_allclose(module.run({"x": data})["y"], expected, rtol=1e-6)


@pytest.mark.parametrize("opt_level", [0, 3])
def test_an_operator_of_ones_own(opt_level):
    with pytest.raises(UnsupportedModel, match="lab::Cube"):
        tinycomp.compile(_model())
    _check(tinycomp.compile(_model(), extension=CUBE, opt_level=opt_level))


def test_nothing_is_registered():
    tinycomp.compile(_model(), extension=CUBE)
    assert "cube" not in default_ops()
    with pytest.raises(UnsupportedModel, match="lab::Cube"):
        tinycomp.compile(_model())


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(TinycompError, match="add is already in the set") as caught:
        tinycomp.compile(_model(), extension=replace(CUBE, ops=(_cube("add"),)))
    assert caught.value.hint


def test_open_dimensions(tmp_path):
    module = tinycomp.compile(_model("rows"), extension=CUBE)
    _check(module)
    _check(module, DATA[:3], EXPECTED[:3])
    module.save(tmp_path / "m.tc")
    with pytest.raises(TinycompError, match="which an artifact does not hold"):
        tinycomp.load(tmp_path / "m.tc")


def test_an_artifact_runs_without_its_extension_but_shows_kernels_only_with_it(tmp_path):
    tinycomp.compile(_model(), extension=CUBE).save(tmp_path / "m.tc")
    module = tinycomp.load(tmp_path / "m.tc")
    _check(module)
    assert "cube" in module.ir("relay")
    for level in ("te", "tir", "llvm", "asm"):
        assert "cube" in module.ir(level, CUBE)
    with pytest.raises(TinycompError, match="cannot be shown with 'no extension'"):
        module.ir("tir")
    with pytest.raises(TinycompError, match="compiled with 'no extension'"):
        tinycomp.compile(_relu()).ir("tir", CUBE)


def _relu():
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 8]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "relu")], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@dataclass(frozen=True)
class _ReluToTanh(FunctionPass):
    def run_function(self, function, ctx):
        x = wildcard()
        rule = Rule("t", is_op("nn.relu")(x), lambda graph, m: graph.builder.call("tanh", m[x]))
        return rewrite([rule], function, ctx.ops)


@pytest.mark.parametrize("cached", [False, True])
def test_the_key_decides_about_the_caches(tmp_path, cached):
    config = Config(cache_dir=tmp_path, cache=True)
    runs = []

    def note(func, target):
        runs.append(func.name)
        return func

    extension = Extension(
        passes=(_ReluToTanh(),), lowering=(note,), key="version 1" if cached else ""
    )
    for _ in range(2):
        module = compile_with(config, _relu(), extension=extension)
        _check(module, expected=np.tanh(DATA))
    assert len(runs) == (1 if cached else 2)
    assert any(tmp_path.rglob("*.tc")) == cached
    _check(compile_with(config, _relu()), expected=np.maximum(DATA, 0))
    other = replace(extension, passes=(), key="version 2")
    _check(compile_with(config, _relu(), extension=other), expected=np.maximum(DATA, 0))


def test_schedule_hooks():
    seen = []

    def declines(kernel):
        kernel.stage(kernel.stages[0]).parallel(kernel.stages[0].axis[0])  # is forgotten
        seen.append("declines")
        return False

    def unrolls(kernel):
        seen.append("unrolls")
        first, last = kernel.stages
        kernel.stage(first).compute_inline()
        kernel.stage(last).unroll(kernel.stage(last).axes[-1])
        return True

    extension = replace(CUBE, schedules={"cube": declines, "nn.relu": unrolls, "add": declines})
    module = tinycomp.compile(_model(), extension=extension)
    _check(module)
    assert seen == ["declines", "unrolls"]
    text = module.ir("tir", extension)
    assert "parallel" not in text
    assert "ramp" not in text
    module = tinycomp.compile(_model(), extension=replace(CUBE, schedules={"cube": declines}))
    _check(module)


def test_a_lowering_pass_is_verified_and_for_cpus():
    wrong = Extension(lowering=(lambda func, target: replace(func, body=_unbound(func)),))
    with pytest.raises(VerifyError, match="not bound"):
        tinycomp.compile(_relu(), extension=wrong)
    with pytest.raises(TinycompError, match="are for CPUs"):
        tinycomp.compile(_relu(), target="cuda -arch=sm_90a", extension=wrong)


def _unbound(func):
    return For(Var("n"), Var("missing"), Var("missing"), func.body)


def test_a_hook_schedules_for_a_gpu():
    def bound(kernel):
        assert kernel.target.kind == "cuda"
        first, last = kernel.stages
        kernel.stage(first).compute_inline()
        stage = kernel.stage(last)
        stage.bind(stage.fuse(*stage.axes), "threadIdx.x")
        return True

    pytest.importorskip("tinycomp.codegen.cuda.nvrtc")
    extension = replace(CUBE, schedules={"cube": bound})
    try:
        module = tinycomp.compile(_model(), target="cuda -arch=sm_90a", extension=extension)
    except TinycompError as error:
        if "NVRTC" not in str(error):
            raise
        pytest.skip("NVRTC is not installed")
    assert "threadIdx.x" in module.ir("cuda")


def test_an_empty_extension_is_none():
    assert NO_EXTENSION.is_empty
    assert Extension(key="k").name == ""
    assert Extension(passes=(_ReluToTanh(),)).name == "(no key)"
