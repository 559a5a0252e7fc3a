"""Graphs to relay: inputs, order, captures, control flow, errors."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from tinycomp.diagnostics import InputError, ModelError, TypeMismatch, UnsupportedModel
from tinycomp.frontend.onnx import from_onnx
from tinycomp.relay.interpreter import evaluate
from tinycomp.relay.nodes import If, While


def model(body, opset=20):
    return parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> {body}')


def run(module, *inputs):
    return evaluate(module, [np.asarray(i) for i in inputs])


def f32(*values):
    return np.array(values, np.float32)


def test_inputs_initializers_outputs_and_spans():
    module = from_onnx(
        model("g (float[2] x, float[2] w) => (float[2] y, float[2] z) <float[2] w = {1, 2}>"
              "{[first] y = Add(x, w) z = Mul(y, x)}")
    )  # fmt: skip
    assert module.input_names == ("x",)
    assert module.output_names == ("y", "z")
    assert [b.span.nodes for b in module.main.bindings][:2] == [("first",), ("Mul#1",)]
    y, z = run(module, f32(3, 4))
    assert y.tolist() == [4, 6]
    assert z.tolist() == [12, 24]


def test_dimensions_by_name_and_by_shape():
    proto = model("g (float[N, 4] x, float[N, M] y) => (float[N, 4] z) {z = Relu(x)}")
    with pytest.raises(UnsupportedModel, match="x axis 0: N; y axis 0: N; y axis 1: M"):
        from_onnx(proto)
    module = from_onnx(proto, dims={"M": 3}, input_shapes={"x": (2, 4)})
    assert [p.type.shape for p in module.main.params] == [(2, 4), (2, 3)]
    with pytest.raises(InputError, match="did you mean 'x'"):
        from_onnx(proto, input_shapes={"xx": (2, 4)})
    with pytest.raises(InputError, match="no dimension 'K'"):
        from_onnx(proto, dims={"K": 1})
    with pytest.raises(InputError, match="rank"):
        from_onnx(proto, input_shapes={"x": (2,)})
    with pytest.raises(InputError, match="fixed to 4"):
        from_onnx(proto, input_shapes={"x": (2, 5)})
    with pytest.raises(InputError, match="N = 3"):
        from_onnx(proto, dims={"N": 3}, input_shapes={"x": (2, 4)})


def test_shape_arithmetic_leaves_nothing_behind():
    body = """g (float[2, 3, 4] x) => (float[A, B] y) <int64[1] one = {1}, int64[1] minus = {-1}>
        {s = Shape <start = 0, end = 1> (x) t = Concat <axis = 0> (s, minus) y = Reshape(x, t)}"""
    module = from_onnx(model(body))
    assert [b.value.op.name for b in module.main.bindings] == ["reshape"]
    assert module.main.ret_type.shape == (2, 12)


def test_nodes_out_of_order_are_sorted():
    module = from_onnx(model("g (float[2] x) => (float[2] y) {y = Neg(t) t = Relu(x)}"))
    assert run(module, f32(-1, 2))[0].tolist() == [0, -2]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("{y = Add(x, nowhere)}", "'nowhere'"),
        ("{y = Relu(x) y = Neg(x)}", "'y' is produced twice"),
        ("{a = Add(x, b) b = Relu(a) y = Neg(b)}", "cycle"),
        ("{t = Relu(x)}", "'y', a graph output"),
    ],
)
def test_inconsistent_graphs_name_the_tensor(body, text):
    with pytest.raises(ModelError, match=text):
        from_onnx(model(f"g (float[2] x) => (float[2] y) {body}"))


def test_all_unsupported_operators_at_once():
    body = """g (float[2] x, bool c) => (float[2] y) {
        a = com.acme.Foo(x) b = com.acme.Foo(a)
        y = If (c) <then_branch = t () => (float[2] p) {p = com.acme.Bar(b)},
                    else_branch = e () => (float[2] q) {q = Relu(b)}>}"""
    proto = parser.parse_model(f'<ir_version: 9, opset_import: ["": 20, "com.acme": 1]> {body}')
    with pytest.raises(UnsupportedModel) as caught:
        from_onnx(proto)
    assert "com.acme::Foo (2x: Foo#0, Foo#1)" in str(caught.value)
    assert "com.acme::Bar (1x" in str(caught.value)
    assert caught.value.exit_code == 2


def test_type_errors_name_the_node():
    body = "g (float[2, 3] x, float[4] w) => (float[N] y) {[sum] y = Add(x, w)}"
    with pytest.raises(TypeMismatch, match=r"do not broadcast[\s\S]*at node: sum"):
        from_onnx(model(body))


def test_strings_and_sparse_weights_are_unsupported():
    with pytest.raises(UnsupportedModel, match="'x' has element type string"):
        from_onnx(model("g (string[2] x) => (string[2] y) {y = Identity(x)}"))


def test_local_functions_are_inlined():
    text = """<ir_version: 9, opset_import: ["": 20, "local": 1]>
        g (float[2] x) => (float[2] y) {y = local.twice(x)}
        <domain: "local", opset_import: ["": 20]> twice (a) => (b) {b = Add(a, a)}"""
    assert run(from_onnx(parser.parse_model(text)), f32(1, 2))[0].tolist() == [2, 4]


def test_old_opsets_are_converted_and_the_model_is_not_changed():
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    nodes = [
        helper.make_node("Squeeze", ["x"], ["s"], axes=[0]),
        helper.make_node("ReduceSum", ["w"], ["r"], axes=[1], keepdims=0),
        helper.make_node("Add", ["s", "r"], ["y"]),
    ]
    weight = numpy_helper.from_array(np.ones((2, 400), np.float32), "w")
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    before = proto.SerializeToString()
    assert run(from_onnx(proto), f32([1, 2]))[0].tolist() == [401, 402]
    assert proto.SerializeToString() == before


IF = """g (bool c, float[2] x, float[2] unused) => (float[2] y) <float[2] w = {{10, 20}}> {{
    {setup} h = Relu(x)
    y = If (k) <then_branch = t () => (float[2] p) {{p = Add(h, w)}},
                else_branch = e () => (float[2] q) {{r = Neg(x) q = Add(r, h)}}>}}"""


def test_if_captures_outer_values():
    module = from_onnx(model(IF.format(setup="k = Identity(c)")))
    (branch,) = [b.value for b in module.main.bindings if isinstance(b.value, If)]
    assert len(branch.operands) == 2
    assert run(module, True, f32(1, -2), f32(0, 0))[0].tolist() == [11, 20]
    assert run(module, False, f32(1, -2), f32(0, 0))[0].tolist() == [0, 2]


def test_if_of_a_constant_is_inlined():
    setup = "k = Constant <value = bool {1}> ()"
    module = from_onnx(model(IF.format(setup=setup)))
    assert not any(isinstance(b.value, If) for b in module.main.bindings)
    assert run(module, False, f32(1, -2), f32(0, 0))[0].tolist() == [11, 20]


def test_branches_of_different_shapes_are_unsupported():
    body = """g (bool c, float[2] x) => (float[N] y) {
        y = If (c) <then_branch = t () => (float[2] p) {p = Relu(x)},
                    else_branch = e () => (float[4] q) {q = Concat <axis = 0> (x, x)}>}"""
    with pytest.raises(UnsupportedModel, match="branches"):
        from_onnx(model(body))


LOOP = """g (int64 m, float[2] x) => (float[2] y) {{
    {setup}
    y = Loop (n, , x) <body = b (int64 i, bool go, float[2] s) => (bool more, float[2] t)
        {{t = Add(s, x) more = Identity(go)}}>}}"""


def test_loop_of_known_length_is_unrolled():
    module = from_onnx(model(LOOP.format(setup="n = Constant <value_int = 3> ()")))
    assert [b.value.op.name for b in module.main.bindings] == ["add"] * 3
    assert run(module, np.int64(0), f32(1, 2))[0].tolist() == [4, 8]


def test_loop_of_unknown_length_is_a_while():
    module = from_onnx(model(LOOP.format(setup="n = Identity(m)")))
    assert any(isinstance(b.value, While) for b in module.main.bindings)
    for count in (0, 1, 5):
        result = run(module, np.int64(count), f32(1, 2))[0]
        assert result.tolist() == [1 + count, 2 + 2 * count]


def test_nested_subgraphs_capture_through_every_level():
    body = """g (bool c, bool d, float[1] x) => (float[1] y) {
        y = If (c) <
          then_branch = t () => (float[1] p) {p = If (d) <
              then_branch = tt () => (float[1] a) {a = Neg(x)},
              else_branch = te () => (float[1] b) {b = Add(x, x)}>},
          else_branch = e () => (float[1] q) {q = Identity(x)}>}"""
    module = from_onnx(model(body))
    values = [run(module, c, d, f32(3))[0].item() for c in (True, False) for d in (True, False)]
    assert values == [-3, 6, 3, 3]


def test_long_chains_import_without_recursion():
    n = 3000
    nodes = [helper.make_node("Add", [f"t{i}", "t0"], [f"t{i + 1}"]) for i in range(n)]
    info = [helper.make_tensor_value_info(t, TensorProto.FLOAT, [1]) for t in ("t0", f"t{n}")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    assert run(from_onnx(proto), f32(1))[0].item() == n + 1


def _nested(depth):
    """`depth` If nodes inside each other, the innermost branches computing Relu and Neg of x."""
    b = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    node = helper.make_node("Relu", ["x"], ["y0"])
    for level in range(depth):
        out = helper.make_tensor_value_info(f"y{level}", TensorProto.FLOAT, [1])
        other = helper.make_tensor_value_info(f"n{level}", TensorProto.FLOAT, [1])
        negated = helper.make_graph(
            [helper.make_node("Neg", ["x"], [f"n{level}"])], "e", [], [other]
        )
        branches = {
            "then_branch": helper.make_graph([node], "t", [], [out]),
            "else_branch": negated,
        }
        name = "y" if level == depth - 1 else f"y{level + 1}"
        node = helper.make_node("If", ["c"], [name], **branches)
    graph = helper.make_graph([node], "g", [b, x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 28)])


def test_deep_nesting_works_up_to_protobufs_limit():
    module = from_onnx(_nested(31))  # protobuf itself refuses messages 100 deep
    assert run(module, True, f32(2))[0].item() == 2
    assert run(module, False, f32(2))[0].item() == -2


def test_an_old_form_that_cannot_be_converted_is_refused():
    body = """g (float[1, 2] x, float[1, 2, 2] z) => (float[2] y)
        {s = Squeeze <axes = [0]> (x) y = Identity(s) u = Upsample <mode = "nearest"> (z, y)}"""
    with pytest.raises(UnsupportedModel):
        from_onnx(model(body, opset=9))
