"""The runtime for GPUs, on a device made of NumPy (`testing.fake_cuda`)."""

import contextlib
import gc
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import parser

from tinycomp.compiler import compile_with
from tinycomp.config import Config
from tinycomp.diagnostics import ExecutionError, InputError, MemoryBudgetError, TinycompError
from tinycomp.precision import Precision
from tinycomp.relay.plan import Parallel
from tinycomp.runtime.compare import compare
from tinycomp.runtime.cuda.arrays import CupyArrays, stream_handle
from tinycomp.runtime.cuda.module import CudaModule
from tinycomp.runtime.cuda.program import check_arch
from tinycomp.testing.fake_cuda import FakeArrays, FakeDriver
from tinycomp.testing.graph_builder import seeded_inputs
from tinycomp.testing.models import TINY, builders

HEADER = '<ir_version: 9, opset_import: ["": 20]>'
# Two kernels, since the reduction over rows stands between them.
CHAIN = """g (float[6, 4] x, float[4] y) => (float[6, 4] z, float[4] s) <int64[1] a = {0}>
    { p = Mul(x, y) s = ReduceSum <keepdims = 0> (p, a) z = Add(x, s) }"""
LOOKUP = """g (int64[3] i) => (float[3, 2] y) <float[5, 2] t = {0,1,2,3,4,5,6,7,8,9}>
    { r = Gather(t, i) y = Exp(r) }"""
BRANCH = """g (float[3] x, bool c) => (float[3] y) {
    y = If (c) <then_branch = t () => (float[3] a) { e = Exp(x) a = Add(e, x) },
                else_branch = f () => (float[3] b) { n = Neg(x) b = Mul(n, x) }> }"""
LOOP = """g (float[3] x, int64 n) => (float[3] y) <bool yes = {1}> {
    y = Loop (n, yes, x) <body = b (int64 k, bool c, float[3] v) => (bool d, float[3] w)
        { d = Identity(c) w = Add(v, v) }> }"""


def fork(chains=3, links=4):
    """Chains of kernels that begin at x and meet again; each reduces over another axis than the
    one before, so that they stay apart."""
    lines = []
    for c in range(chains):
        lines.append(f"v{c}_0 = Mul(x, y{c})")
        for i in range(links):
            lines.append(f"m{c}_{i} = ReduceMax<keepdims = 1>(v{c}_{i}, a{i % 2})")
            lines.append(f"v{c}_{i + 1} = Sub(x, m{c}_{i})")
    lines.append(f"z = Sum({', '.join(f'v{c}_{links}' for c in range(chains))})")
    inputs = ", ".join(["float[6, 4] x", *(f"float[4] y{c}" for c in range(chains))])
    constants = "int64[1] a0 = {0}, int64[1] a1 = {1}"
    return f"g ({inputs}) => (float[6, 4] z) <{constants}> {{ {' '.join(lines)} }}"


SUM = "g (float[n, 3] x) => (float[n, 3] y) { e = Exp(x) y = Add(e, x) }"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return Config(cache_dir=tmp_path_factory.mktemp("cache"), num_threads=1)


@pytest.fixture
def device(config):
    """`device(text)` compiles a model and gives its module on a device of its own."""

    def make(text, target="cuda -arch=sm_90a", **options):
        proto = parser.parse_model(HEADER + text)
        artifact = compile_with(config, proto, target=target).artifact
        driver = FakeDriver(artifact, **options)
        return CudaModule(artifact, driver=driver, arrays=FakeArrays(driver)), driver

    return make


def data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((6, 4)).astype("f4"), rng.standard_normal(4).astype("f4")


def chain(x, y):
    s = (x * y).sum(0)
    return {"z": x + s, "s": s}


def check(got, expected, read=np.asarray):
    for name, value in expected.items():
        np.testing.assert_allclose(read(got[name]), value, rtol=1e-5, atol=1e-6)


def read(array):
    return array.get()


@pytest.mark.parametrize("seed", range(5))
def test_branches_of_a_graph(device, seed):
    """Chains on streams of their own; the order in which their kernels run does not matter."""
    module, driver = device(fork(), seed=seed)
    (parallel,) = [s for s in module.plan.plan.steps if isinstance(s, Parallel)]
    assert len(parallel.branches) == 3
    for call in range(3):
        x, _ = data(call)
        ys = np.random.default_rng(call).standard_normal((3, 4)).astype("f4")
        expected = 0
        for y in ys:
            v = x * y
            for link in range(4):
                v = x - v.max(link % 2, keepdims=True)
            expected = expected + v
        inputs = {"x": x, **{f"y{c}": y for c, y in enumerate(ys)}}
        check(module.run(inputs), {"z": expected})
    assert driver.captures == 1
    names = {row.kernel.name for row in module.profile(inputs, repeat=1).rows}
    assert len(names) > 1


def test_arrays_on_the_host(device):
    module, driver = device(CHAIN)
    for seed in range(3):
        x, y = data(seed)
        got = module.run({"x": x, "y": y})
        assert all(type(v) is np.ndarray for v in got.values())
        check(got, chain(x, y))
    assert driver.captures == 1
    assert driver.graph_launches == 3


def test_arrays_on_the_device_stay_there(device):
    """The call does not wait; its results are there once their stream is."""
    module, driver = device(CHAIN)
    x, y = data()
    a, b = driver.array(x), driver.array(y)
    module.run({"x": a, "y": b})
    before = driver.synchronizations
    got = module.run({"x": a, "y": b})
    assert driver.synchronizations == before
    check(got, chain(x, y), read)


def test_arrays_come_in_place_the_second_time(device):
    module, driver = device(CHAIN)
    arrays = [data(seed) for seed in range(2)]
    on_device = [tuple(map(driver.array, pair)) for pair in arrays]
    for _ in range(3):
        for (a, b), (x, y) in zip(on_device, arrays, strict=True):
            check(module.run({"x": a, "y": b}), chain(x, y), read)
    assert driver.captures == 3  # of the fixed buffers, and of either pair
    driver.bytes_at(on_device[0][0].address, 4).view("f4")[0] = 100.0
    x = arrays[0][0].copy()
    x[0, 0] = 100.0
    check(module.run({"x": on_device[0][0], "y": on_device[0][1]}), chain(x, arrays[0][1]), read)


def test_host_and_device_arrays_mix(device):
    module, driver = device(CHAIN)
    results = []
    for seed in range(4):  # staging memory is written again while the call before is under way
        x, y = data(seed)
        results.append(module.run({"x": x, "y": driver.array(y)}))
    for seed, got in enumerate(results):
        check(got, chain(*data(seed)), read)


def test_arrays_that_are_not_aligned_or_dense_are_copied(device):
    module, driver = device(CHAIN)
    x, y = data()
    big = driver.array(np.repeat(x, 2, axis=1))
    driver.synchronize(0)
    strided = big[:, ::2]
    for _ in range(3):
        check(
            module.run({"x": strided, "y": driver.array(y, offset=4)}),
            chain(np.ascontiguousarray(np.repeat(x, 2, axis=1)[:, ::2]), y),
            read,
        )


class DlpackOnly:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self):
        return self.array

    def __dlpack_device__(self):
        return (2, 0)


def test_arrays_with_nothing_but_dlpack(device):
    module, driver = device(CHAIN)
    x, y = data()
    got = module.run({"x": DlpackOnly(driver.array(x)), "y": driver.array(y)})
    check(got, chain(x, y), read)


@pytest.mark.parametrize("seed", range(4))
def test_streams(device, seed):
    """Producers on other streams are waited for, and calls on several streams do not mix."""
    module, driver = device(CHAIN, seed=seed)
    driver.use()
    one, two, mine = (driver.new_stream() for _ in range(3))
    results = []
    for seed, stream in enumerate((one, two, one, two)):
        x, y = data(seed)
        a, b = driver.array(x, stream), driver.array(y, two)
        results.append((module.run({"x": a, "y": b}, stream=mine if seed == 3 else None), (x, y)))
    assert [r["z"].stream for r, _ in results] == [one, two, one, mine]
    for got, inputs in reversed(results):
        check(got, chain(*inputs), read)


def test_results_into_given_arrays(device):
    module, driver = device(CHAIN)
    x, y = data()
    z, s = np.empty_like(x), driver.array(np.zeros(4, "f4"))
    for seed in range(3):
        x, y = data(seed)
        got = module.run({"x": driver.array(x), "y": driver.array(y)}, out={"z": z, "s": s})
        assert got["z"] is z
        assert got["s"] is s
        check({"z": z}, {"z": chain(x, y)["z"]})
        check({"s": s}, {"s": chain(x, y)["s"]}, read)


def test_a_result_over_an_input(device):
    """An output that shares memory with an input is written when the input is no longer read."""
    module, driver = device(CHAIN)
    x, y = data()
    a, b = driver.array(x), driver.array(y)
    for _ in range(3):
        expected = chain(x, y)
        module.run({"x": a, "y": b}, out={"z": a})
        check({"z": a}, {"z": expected["z"]}, read)
        x = expected["z"]
    for _ in range(2):
        expected, row = chain(x, y), a[0, :]
        got = module.run({"x": a, "y": b}, out={"s": row})  # written before the last read of x
        check(got, expected, read)
        x[0] = expected["s"]


def test_an_index_out_of_range(device):
    module, driver = device(LOOKUP)
    table = np.exp(np.arange(10, dtype="f4").reshape(5, 2))
    good, bad = np.array([4, 0, -1]), np.array([0, 5, 0])
    for _ in range(2):
        np.testing.assert_allclose(module.run({"i": good})["y"], table[good], rtol=1e-5)
        for value in (bad, driver.array(bad)):
            with pytest.raises(ExecutionError, match=r"out of range\n  at node: Gather#0"):
                module.run({"i": value})
    np.testing.assert_allclose(module.run({"i": good})["y"], table[good], rtol=1e-5)


@pytest.mark.parametrize("taken", [True, False])
def test_branches(device, taken):
    module, driver = device(BRANCH)
    x = np.float32([-1, 0, 2])
    expected = np.exp(x) + x if taken else -x * x
    for _ in range(3):
        got = module.run({"x": x, "c": np.array(taken)})
        np.testing.assert_allclose(got["y"], expected, rtol=1e-5)
        on_device = {"x": driver.array(x), "c": driver.array(np.array(taken))}
        np.testing.assert_allclose(module.run(on_device)["y"].get(), expected, rtol=1e-5)


def test_loops(device):
    module, _ = device(LOOP)
    x = np.float32([1, 2, 3])
    for count in (0, 1, 4, 2):
        got = module.run({"x": x, "n": np.array(count)})["y"]
        np.testing.assert_array_equal(got, x * 2**count)


def test_programmatic_launches(device):
    module, driver = device(CHAIN, target="cuda -arch=sm_90a -pdl")
    x, y = data()
    check(module.run({"x": x, "y": y}), chain(x, y))
    assert driver.programmatic == driver.launches >= 2
    kernels = module.ir("cuda").split("__global__")[1:]
    assert len(kernels) >= 2
    for kernel in kernels:
        wait = kernel.index("griddepcontrol.wait")
        assert "[" not in kernel[:wait]  # nothing is read before
    assert "griddepcontrol" not in device(CHAIN)[0].ir("cuda")
    assert str(module.manifest.target) == "cuda -arch=sm_90a -pdl"
    with pytest.raises(TinycompError, match="needs sm_90, not sm_80"):
        device(CHAIN, target="cuda -arch=sm_80 -pdl")


def test_several_modules_on_one_device(config):
    artifacts = [
        compile_with(config, parser.parse_model(HEADER + t), target="cuda -arch=sm_90a").artifact
        for t in (CHAIN, LOOKUP)
    ]
    driver = FakeDriver(*artifacts)
    one, two = (CudaModule(a, driver=driver, arrays=FakeArrays(driver)) for a in artifacts)
    x, y = data()
    index = np.array([1, 2, 3])
    for _ in range(2):
        check(one.run({"x": x, "y": y}), chain(x, y))
        expected = np.exp(np.arange(10, dtype="f4").reshape(5, 2))[index]
        np.testing.assert_allclose(two.run({"i": index})["y"], expected, rtol=1e-5)


def test_callers_on_several_threads(device):
    module, driver = device(CHAIN)
    failures = []

    def call(seed):
        try:
            for turn in range(3):
                x, y = data(10 * seed + turn)
                check(module.run({"x": x, "y": y}), chain(x, y))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert 1 <= driver.captures <= 4


def test_memory_is_given_back(device):
    module, driver = device(CHAIN)
    x, y = data()
    module.run({"x": x, "y": y})
    assert driver.device_memory
    assert driver.host_memory
    del module
    gc.collect()
    assert not driver.device_memory
    assert not driver.host_memory


def test_too_little_memory(device):
    module, _ = device(CHAIN, total=300)
    x, y = data()
    with pytest.raises(MemoryBudgetError, match=r"of whose 0.0 MiB only 0.0 MiB are free"):
        module.run({"x": x, "y": y})


def test_memory_that_is_gone_meanwhile(device):
    module, driver = device(CHAIN)
    x, y = data()
    a, b = driver.array(x), driver.array(y)
    module.run({"x": a, "y": b})
    driver.total = driver.total - driver.memory()[0]
    with pytest.raises(MemoryBudgetError, match="out of memory"):
        module.run({"x": a, "y": b})
    driver.total = 1 << 30
    check(module.run({"x": a, "y": b}), chain(x, y), read)


def test_inputs_that_do_not_fit(device):
    module, driver = device(CHAIN)
    x, y = data()
    good = {"x": driver.array(x), "y": driver.array(y)}
    for name, value, message in (
        ("x", driver.array(x.astype("f8")), "element type <f8, expected float32"),
        ("x", driver.array(x[:5]), r"shape \[5, 4\], expected \[6, 4\]"),
        ("y", y.astype("f8"), "float64"),
    ):
        with pytest.raises(InputError, match=message):
            module.run({**good, name: value})
    with pytest.raises(InputError, match="no output 'q'"):
        module.run(good, out={"q": x})
    with pytest.raises(InputError, match="is no dense"):
        module.run(good, out={"z": x[:, :2]})
    with pytest.raises(InputError, match="stream is a str"):
        module.run(good, stream="main")
    check(module.run(good), chain(x, y), read)


def test_profile_and_timing(device):
    module, driver = device(CHAIN)
    x, y = data()
    profile = module.profile({"x": x, "y": y}, repeat=3)
    assert len(profile.rows) == len(module.manifest.kernels)
    assert all(row.milliseconds > 0 for row in profile.rows)
    assert profile.peaks.gflops == pytest.approx(132 * 128 * 2 * 1.98)
    events = len(driver._events)
    for flush in (False, True):
        time = module.time_evaluator(number=2, repeat=3, flush_cache=flush)
        result = time({"x": driver.array(x), "y": driver.array(y)})
        assert len(result.results) == 3
        assert result.median > 0
    assert len(driver._events) == events
    check(module.run({"x": x, "y": y}), chain(x, y))


def test_buckets_on_a_device(config):
    dynamic = compile_with(
        config, parser.parse_model(HEADER + SUM), target="cuda -arch=sm_90a", dims={"n": [2, 4]}
    )
    artifacts = [dynamic.specialize(n=n).artifact for n in (2, 4)]
    driver = FakeDriver(*artifacts)
    for n in (2, 4):
        dynamic.specialize(n=n)._driver = driver
        dynamic.specialize(n=n)._arrays = FakeArrays(driver)
    for n in (1, 2, 3, 4):
        x = np.random.default_rng(n).standard_normal((n, 3)).astype("f4")
        expected = np.exp(x) + x
        np.testing.assert_allclose(dynamic.run({"x": x})["y"], expected, rtol=1e-5)
        got = dynamic.run({"x": driver.array(x)})["y"]
        assert got.shape == (n, 3)
        np.testing.assert_allclose(got.get(), expected, rtol=1e-5)


def test_one_graph_serves_all_sizes_of_a_bucket(config):
    """Attention over a padded axis: the extent is data, so the recorded graph stays the same."""
    text = """g (float[2, n, 8] x, float[8, 8] w) => (float[2, n, 8] y, float[2, 8] z)
        <int64[1] axis = {1}> {
        q = MatMul(x, w) t = Transpose <perm = [0, 2, 1]> (x) s = MatMul(q, t) p = Softmax(s)
        y = MatMul(p, q) z = ReduceMean <keepdims = 0> (y, axis) }"""
    dynamic = compile_with(
        config, parser.parse_model(HEADER + text), target="cuda -arch=sm_90a", dims={"n": [4, 20]}
    )
    module = dynamic._variant(((20,), True))
    driver = FakeDriver(module.artifact)
    module._driver, module._arrays = driver, FakeArrays(driver)
    w = np.random.default_rng(0).standard_normal((8, 8)).astype("f4")
    for n in (20, 17, 5):
        x = np.random.default_rng(n).standard_normal((2, n, 8)).astype("f4")
        q = x @ w
        scores = np.exp(q @ x.transpose(0, 2, 1))
        y = scores / scores.sum(-1, keepdims=True) @ q
        got = dynamic.run({"x": x, "w": w})
        np.testing.assert_allclose(got["y"], y, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got["z"], y.mean(1), rtol=1e-4, atol=1e-5)
    assert dynamic.not_padded == {}
    assert (driver.captures, driver.graph_launches) == (1, 3)


def test_arrays_without_elements(device):
    module, driver = device("g (float[0, 3] x) => (float[0, 3] y) { y = Exp(x) }")
    x = np.zeros((0, 3), "f4")
    assert module.run({"x": x})["y"].shape == (0, 3)
    assert module.run({"x": driver.array(x)})["y"].shape == (0, 3)


# 64 rows and more are tile programs on sm_90a, whose launches pass tensor maps.
WIDE = {
    "bert": {"sequence": 64, "vocab": 40, "width": 64, "heads": 2, "layers": 1},
    "gpt2": {"sequence": 64, "vocab": 64, "width": 64, "heads": 2, "layers": 1},
    "unet": {"image": 16, "width": 16, "depth": 1},
}


@pytest.mark.parametrize(
    ("name", "sizes", "precision", "arch", "present"),
    [
        ("bert", TINY["bert"], "fp32", "sm_80", "sm_86"),
        ("vit", TINY["vit"], "tf32", "sm_90a", "sm_90a"),
        ("gru_model", TINY["gru_model"], "fp16", "sm_90a", "sm_90a"),
        ("bert", WIDE["bert"], "bf16", "sm_90a", "sm_90a"),
        ("gpt2", WIDE["gpt2"], "fp16", "sm_90a", "sm_90a"),
        ("unet", WIDE["unet"], "bf16", "sm_90a", "sm_90a"),
    ],
)
def test_whole_models(config, name, sizes, precision, arch, present):
    model = builders()[name](**sizes)
    inputs = seeded_inputs(model, 0)
    target = f"cuda -arch={arch}"
    artifact = compile_with(config, model, target=target, precision=precision).artifact
    driver = FakeDriver(artifact, arch=present)
    module = CudaModule(artifact, driver=driver, arrays=FakeArrays(driver))
    with_maps = any(one.maps for launches in module.plan.launches.values() for one in launches)
    assert with_maps == (sizes in WIDE.values())
    expected = compile_with(config, model).run(inputs)
    limit = 3 * max(1e-5, Precision(precision).tolerance)
    for _ in range(2):  # the second time is the graph again
        assert max(c.difference for c in compare(module.run(inputs), expected)) < limit


@pytest.mark.parametrize(
    ("arch", "present", "fits"),
    [
        ("sm_90a", "sm_90a", True),
        ("sm_80", "sm_86", True),
        ("sm_86", "sm_80", False),
        ("sm_80", "sm_90a", False),
        ("sm_90", "sm_90a", True),
        ("sm_90a", "sm_100a", False),
        ("sm_100", "sm_103a", True),
    ],
)
def test_which_code_runs_on_which_device(arch, present, fits):
    if fits:
        check_arch(arch, present)
    else:
        with pytest.raises(TinycompError, match=f"compiled for {arch}, but the GPU is {present}"):
            check_arch(arch, present)


def test_streams_of_other_libraries():
    class Torch:
        cuda_stream = 7

    class Cupy:
        ptr = 8

    class Core:
        def __cuda_stream__(self):
            return (0, 9)

    assert [stream_handle(s) for s in (Torch(), Cupy(), Core(), 5, 0, 1)] == [7, 8, 9, 5, 0, 0]


class OnGpu:
    """An array with nothing but DLPack, on a GPU of this number."""

    def __init__(self, number):
        self.number = number

    def __dlpack_device__(self):
        return (2, self.number)

    def __dlpack__(self, **_):
        raise BufferError("strides are not supported")


def test_arrays_of_another_gpu(device):
    module, _ = device(CHAIN)
    with pytest.raises(InputError, match=r"input 'x' is on GPU 1.*\n.*CUDA_VISIBLE_DEVICES"):
        module.run({"x": OnGpu(1), "y": np.zeros(4, "f4")})


def test_arrays_that_cupy_cannot_read(monkeypatch):
    def from_dlpack(value):
        return value.__dlpack__()

    def external_stream(handle):
        return contextlib.nullcontext()

    cupy = SimpleNamespace(
        from_dlpack=from_dlpack,
        ascontiguousarray=np.asarray,
        cuda=SimpleNamespace(ExternalStream=external_stream),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    with pytest.raises(InputError, match=r"OnGpu cannot be read through DLPack: strides.*\n.*CuPy"):
        CupyArrays().contiguous(OnGpu(0), 0)


def test_machine_code_that_the_driver_does_not_know(device):
    """As code of a newer NVRTC than the driver is for."""
    module, driver = device(CHAIN)
    driver._known.clear()
    with pytest.raises(ExecutionError, match=r"CUDA_ERROR_INVALID_IMAGE.*\n.*newer driver"):
        module.run(dict(zip("xy", data(), strict=True)))


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [
        ((1, 70_000, 1), (32, 1, 1), 0),
        ((1, 1, 1), (1024, 2, 1), 0),
        ((1, 1, 1), (32, 1, 1), 50_000),
    ],
)
def test_launches_over_the_limits(device, grid, block, shared):
    module, driver = device(CHAIN)
    driver.use()
    name, (launch, *_) = next(iter(module.plan.launches.items()))
    function = driver.function(driver.load_module(module.artifact.objects[name]), launch.name)
    with pytest.raises(ExecutionError, match=r"INVALID_VALUE.*\n.*limits of this GPU"):
        driver.launch(function, grid, block, shared, 0, [])
    with pytest.raises(ExecutionError, match="cuFuncSetAttribute"):
        driver.allow_shared(function, 300_000)


def test_without_a_driver_or_cupy(config):
    module = compile_with(config, parser.parse_model(HEADER + CHAIN), target="cuda -arch=sm_90a")
    x, y = data()
    with pytest.raises(TinycompError, match="no GPU or CUDA driver is found"):
        module.run({"x": x, "y": y})
    with pytest.raises(TinycompError, match="need CuPy, which is not installed"):
        CupyArrays().empty((1,), "f4", 0)


def test_the_device_checks_captures():
    driver = FakeDriver()
    driver.use()
    main, side = driver.new_stream(), driver.new_stream()
    event, memory = driver.new_event(), driver.allocate(64)

    def fork():
        with driver.capture(main):
            driver.record(event, main)
            driver.wait(side, event)
            driver.clear(memory, 64, side)

    with pytest.raises(TinycompError, match="UNJOINED"):
        fork()
    with pytest.raises(TinycompError, match="CAPTURED_EVENT"):
        driver.wait(main, event)
