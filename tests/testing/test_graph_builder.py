import numpy as np
import onnx
import onnx.reference

from tinycomp.testing.graph_builder import GraphBuilder, seeded_inputs


def run(model, inputs):
    return onnx.reference.ReferenceEvaluator(model).run(None, inputs)


def test_shapes_are_known_as_the_graph_grows():
    b = GraphBuilder("g")
    x = b.input("x", (2, 3, 9, 9))
    y = b.conv(x, 8, 3, stride=2)
    assert b.shape(y) == (2, 8, 5, 5)
    assert b.shape(b.conv_transpose(y, 4, 4, 2, 1)) == (2, 4, 10, 10)
    assert b.shape(b.reshape(y, (2, -1, 4))) == (2, 50, 4)
    left, right = b.multi("Split", y, outputs=2, axis=1, num_outputs=2)
    assert b.shape(b.concat([left, right, y])) == (2, 16, 5, 5)
    assert b.shape(b.slice(y, 1, 3, axis=2)) == (2, 8, 2, 5)


def test_model_computes_what_was_written():
    b = GraphBuilder("g")
    x = b.input("x", (2, 3))
    twice = b.add(x, x)
    shifted = b.add(twice, np.array(1, np.float32))
    model = b.model(out=b.relu(shifted), middle=twice)
    onnx.checker.check_model(model, full_check=True)
    value = np.float32([[1, -2, 3], [0, 0.5, -0.25]])
    out, middle = run(model, {"x": value})
    np.testing.assert_array_equal(middle, 2 * value)
    np.testing.assert_array_equal(out, np.maximum(2 * value + 1, 0))


def test_weights_follow_from_the_seed():
    def model(seed):
        b = GraphBuilder("g", seed)
        return b.model(y=b.linear(b.input("x", (1, 4)), 4)).SerializeToString()

    assert model(0) == model(0) != model(1)


def test_inputs_keep_within_the_noted_limits():
    b = GraphBuilder("g")
    ids, x = b.ids("ids", (200,), 7), b.input("x", (50, 2))
    model = b.model(rows=b.embedding(ids, 7, 3), y=b.relu(x))
    inputs = seeded_inputs(model, 3)
    assert inputs["ids"].dtype == np.int64
    assert set(inputs["ids"]) == set(range(7))
    assert inputs["x"].dtype == np.float32
    assert not np.array_equal(inputs["x"], seeded_inputs(model, 4)["x"])


def test_layers_keep_the_scale_of_their_input():
    b = GraphBuilder("g")
    x = b.input("x", (1, 64, 16, 16))
    y = b.relu(b.conv(x, 64, 3))
    model = b.model(
        conv=y, up=b.conv_transpose(y, 64, 4, 2, 1), norm=b.batch_norm(y), dense=b.linear(x, 32)
    )
    for value in run(model, seeded_inputs(model)):
        assert 0.4 < np.sqrt(np.mean(value**2)) < 2.5
