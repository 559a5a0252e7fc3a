"""A loaded module under every kind of input, many threads, forks, many loads, damaged files."""

import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import tinycomp
from tinycomp.cli.main import main
from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.diagnostics import ArtifactError, InputError
from tinycomp.runtime import artifact as artifact_module
from tinycomp.runtime.artifact import SCHEMA

CONFIG = Config(cache=False)
W = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)


def network(scale=1.0):
    """softmax(x W) with enough work that two threads share it, and the sum of n."""
    weight = numpy_helper.from_array((scale * W).astype(np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Softmax", ["xw"], ["y"], axis=-1),
        helper.make_node("ReduceSum", ["n"], ["s"], keepdims=0),
    ]
    infos = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [128, 96]),
        helper.make_tensor_value_info("n", TensorProto.INT64, [3]),
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in "ys"]
    graph = helper.make_graph(nodes, "g", infos, outputs, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


@pytest.fixture(scope="module")
def module():
    return compile_with(CONFIG, network(), num_threads=2)


@pytest.fixture(scope="module")
def saved(module, tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "m.tc"
    module.save(path)
    return path


def inputs(seed=0):
    x = np.random.default_rng(seed).standard_normal((128, 96)).astype(np.float32)
    return {"x": x, "n": np.array([1, 2, seed])}


# -- inputs ------------------------------------------------------------------------------------


def _misaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    result = raw[1:].view(array.dtype).reshape(array.shape)
    result[:] = array
    return result


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "wrap",
    [
        np.asfortranarray,
        _misaligned,
        _read_only,
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: np.ascontiguousarray(a[::-1])[::-1],
        lambda a: np.ascontiguousarray(a.T).T,
        lambda a: a.view(np.ndarray).reshape(128, 96),
        lambda a: a.tolist(),
        memoryview,
    ],
)
def test_every_layout_gives_the_same_bits(module, wrap):
    given = inputs()
    expected = module.run(given)
    x = wrap(given["x"])
    if isinstance(x, memoryview):
        x = np.asarray(x)
    got = module.run({**given, "x": x})
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((128, 96))}, "'x' has dtype float64, expected float32"),
        ({"x": np.ones((128, 96), np.float16)}, "float16"),
        ({"x": np.ones((128, 96), ">f4")}, "dtype"),
        ({"n": np.ones(3, np.int32)}, "'n' has dtype int32, expected int64"),
        ({"n": np.ones(3, np.uint64)}, "uint64"),
        ({"x": np.ones((127, 96), np.float32)}, "dimension 0 is 127, not 128"),
        ({"x": np.ones((128, 96, 1), np.float32)}, "3 dimensions, not 2"),
        ({"x": np.ones(0, np.float32)}, "1 dimensions, not 2"),
        ({"n": np.int64(3)}, "0 dimensions"),
        ({"n": 3}, "0 dimensions"),
        ({"n": [1, 2]}, "dimension 0 is 2, not 3"),
        ({"n": [1, 2, "x"]}, "'n'"),
        ({"n": [[1, 2], [3]]}, "'n'"),
        ({"n": [1.5, 2, 3]}, "'n'"),
        ({"n": [2**70, 2, 3]}, "'n'"),
        ({"n": None}, "NoneType"),
        ({"n": np.array([1, 2, None])}, "'n'"),
        ({"n": {}}, "'n' is a dict"),
        ({"x": "zeros"}, "'x' is a str"),
        ({"extra": 1}, "unknown 'extra'"),
        ({1: 1}, "unknown 1"),
    ],
)
def test_wrong_inputs_are_named(module, change, message):
    with pytest.raises(InputError, match=message) as caught:
        module.run({**inputs(), **change})
    assert len(str(caught.value).splitlines()) <= 2


def test_missing_inputs_are_named(module):
    with pytest.raises(InputError, match="missing 'x', 'n'"):
        module.run({})
    with pytest.raises(InputError, match="missing 'n'"):
        module(inputs()["x"])
    with pytest.raises(InputError, match="3 inputs were given, the model has 2"):
        module(1, 2, 3)


def _identity_model(shape, op="Neg"):
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", infos[:1], infos[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1, 1)])
def test_empty_and_scalar_tensors(shape, tmp_path):
    for op in ("Neg", "Identity"):
        compiled = compile_with(CONFIG, _identity_model(shape, op), num_threads=2)
        compiled.save(tmp_path / "m.tc")
        for each in (compiled, tinycomp.load(tmp_path / "m.tc")):
            x = np.full(shape, 2, np.float32)
            y = each(x)
            assert (y.shape, y.dtype) == (shape, np.float32)
            np.testing.assert_array_equal(y, x if op == "Identity" else -x)
            assert not np.shares_memory(x, y)


def test_results_are_not_reused(module):
    first = module.run(inputs(1))["y"]
    copy = first.copy()
    module.run(inputs(2))
    np.testing.assert_array_equal(first, copy)
    first[:] = 0
    np.testing.assert_array_equal(module.run(inputs(1))["y"], copy)


# -- threads and processes ---------------------------------------------------------------------


def _hammer(modules, threads=8, runs=200):
    """Every thread runs every module in turn; all results must be the first ones, to the bit."""
    given = [inputs(seed) for seed in range(4)]
    expected = [[m.run(g) for g in given] for m in modules]
    wrong: list[str] = []

    def work(number):
        for step in range(runs):
            m, g = (number + step) % len(modules), (number * 7 + step) % len(given)
            got = modules[m].run(given[g])
            if any((got[name] != array).any() for name, array in expected[m][g].items()):
                wrong.append(f"thread {number} step {step}")

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert not any(worker.is_alive() for worker in workers), "deadlock"
    assert not wrong, wrong[:3]


def test_many_threads_on_one_module(module):
    _hammer([module])


def test_many_threads_on_several_modules(module, saved):
    others = [compile_with(CONFIG, network(2.0), num_threads=n) for n in (1, 2)]
    _hammer([module, tinycomp.load(saved), tinycomp.load(saved, num_threads=1), *others])


def _in_child(action):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_forks_while_other_threads_run(saved):
    loaded = tinycomp.load(saved)
    expected = loaded.run(inputs())["y"]

    def check():
        for _ in range(5):
            np.testing.assert_array_equal(loaded.run(inputs())["y"], expected)
        fresh = tinycomp.load(saved)
        np.testing.assert_array_equal(fresh.run(inputs())["y"], expected)

    stop = threading.Event()

    def busy():
        while not stop.is_set():
            loaded.run(inputs())

    workers = [threading.Thread(target=busy) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        codes = [_in_child(check) for _ in range(8)]
        codes.append(_in_child(lambda: os._exit(_in_child(check))))  # a grandchild
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert codes == [0] * 9
    check()


_CYCLES = """
import gc, resource, sys
import numpy as np
import tinycomp

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

x = {"x": np.ones((128, 96), np.float32), "n": np.array([1, 2, 3])}
for cycle in range(240):
    tinycomp.load(sys.argv[1]).run(x)
    gc.collect() if cycle % 20 == 0 else None
    if cycle == 40:
        before = resident()
print((resident() - before) / 200)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs procfs")
def test_loading_again_and_again_does_not_leak(saved):
    command = [sys.executable, "-c", _CYCLES, str(saved)]
    grown = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 8192, f"{grown:.0f} bytes for each load"


# -- damaged and foreign files -----------------------------------------------------------------


def _sections(data):
    size = int.from_bytes(data[8:12], "little")
    header = json.loads(data[44 : 44 + size])
    start = -(-(44 + size) // 64) * 64
    return {
        name: (start + entry["offset"], entry["size"])
        for name, entry in header["sections"].items()
        if entry["size"]
    }


def test_damage_in_every_section_is_noticed(saved, tmp_path):
    good = saved.read_bytes()
    sections = _sections(good)
    assert {"constants", "text:relay", "object:entry", "object:threadpool"} <= sections.keys()
    bad_path = tmp_path / "bad.tc"
    for name, (begin, size) in sections.items():
        for position in (begin, begin + size // 2, begin + size - 1):
            bad = bytearray(good)
            bad[position] ^= 1
            bad_path.write_bytes(bytes(bad))
            with pytest.raises(ArtifactError, match="damaged") as caught:
                tinycomp.load(bad_path)
            assert name in str(caught.value)
        bad_path.write_bytes(good[: begin + size - 1])
        with pytest.raises(ArtifactError):
            tinycomp.load(bad_path)


def test_random_damage_never_crashes(saved, tmp_path):
    good, generator = saved.read_bytes(), np.random.default_rng(0)
    path = tmp_path / "bad.tc"
    for _ in range(150):
        bad = bytearray(good)
        for position in generator.integers(0, len(good), generator.integers(1, 6)):
            bad[position] = generator.integers(256)
        if generator.random() < 0.3:
            bad = bad[: generator.integers(len(bad))]
        path.write_bytes(bytes(bad))
        try:
            loaded = tinycomp.load(path)
        except ArtifactError:
            continue
        loaded.run(inputs())  # the damage was in the padding, or changed nothing


def _with_header(good, change):
    """The file with another header whose hash is right."""
    size = int.from_bytes(good[8:12], "little")
    header = json.loads(good[44 : 44 + size])
    body = good[-(-(44 + size) // 64) * 64 :]
    text = json.dumps(change(header)).encode()
    head = good[:8] + len(text).to_bytes(4, "little")
    head += artifact_module.hashlib.sha256(text).digest() + text
    return head + bytes(-len(head) % 64) + body


def _with_negative_offsets(header):
    sections = {k: {**v, "offset": -64} for k, v in header["sections"].items()}
    return {**header, "sections": sections}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: {**h, "schema": SCHEMA + 1}, f"format {SCHEMA + 1}"),
        (lambda h: {"schema": SCHEMA}, "incomplete"),
        (lambda h: [h], "format None"),
        (lambda h: {**h, "sections": {}}, "incomplete"),
        (lambda h: {**h, "manifest": {}}, "incomplete"),
        (lambda h: {**h, "manifest": {**h["manifest"], "surprise": 1}}, "incomplete"),
        (_with_negative_offsets, "truncated"),
    ],
)  # fmt: skip
def test_headers_of_other_writers(saved, tmp_path, change, message):
    path = tmp_path / "other.tc"
    path.write_bytes(_with_header(saved.read_bytes(), change))
    with pytest.raises(ArtifactError, match=message):
        tinycomp.load(path)


def test_the_command_line_says_what_is_wrong(saved, tmp_path, capsys):
    path = tmp_path / "bad.tc"
    path.write_bytes(saved.read_bytes()[:-100])
    for command in (["run"], ["inspect"], ["profile"], ["bench"]):
        assert main([*command, str(path)]) == 1
        shown = capsys.readouterr()
        assert shown.err.startswith("error: ")
        assert "truncated" in shown.err
        assert "Traceback" not in shown.err
    gc.collect()
