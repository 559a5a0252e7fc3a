import dataclasses

import numpy as np
import pytest

from tinycomp.diagnostics import ArtifactError
from tinycomp.dtype import DType
from tinycomp.runtime.arrays import aligned_empty
from tinycomp.runtime.artifact import (
    MAGIC,
    Artifact,
    KernelInfo,
    Manifest,
    ValueSpec,
    is_artifact,
    required_features,
)
from tinycomp.target import Target


@pytest.fixture
def artifact():
    constants = aligned_empty((1000,), np.dtype(np.uint8))
    constants[:] = np.arange(1000) % 251
    manifest = Manifest(
        target=Target.host(),
        inputs=(ValueSpec("x/0", ("batch", 3), DType.FLOAT32),),
        outputs=(ValueSpec("ü", (1,), DType.INT64),),
        kernels=(KernelInfo("k0", "nn.conv2d+nn.relu", ("Conv_0", "Relu_1"), 10, 20),),
        arena_bytes=64,
        unshared_bytes=128,
        options={"opt_level": 3},
        llvmlite="0.50.0",
    )
    return Artifact(manifest, {"model": b"\x7fELF" + bytes(99)}, constants, {"tir": "for i: ...\n"})


def test_round_trip(artifact, tmp_path):
    path = tmp_path / "m.tc"
    artifact.save(path)
    loaded = Artifact.load(path)
    assert loaded.manifest == artifact.manifest
    assert loaded.objects == artifact.objects
    assert loaded.texts == artifact.texts
    np.testing.assert_array_equal(loaded.constants, artifact.constants)
    assert loaded.constants.ctypes.data % 64 == 0
    assert not loaded.constants.flags.writeable
    assert is_artifact(path)
    assert not is_artifact(tmp_path)


def test_saving_twice_gives_the_same_bytes(artifact, tmp_path):
    artifact.save(tmp_path / "a")
    Artifact.load(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_flipped_byte_is_noticed(artifact, tmp_path):
    path = tmp_path / "m.tc"
    artifact.save(path)
    good = path.read_bytes()
    size = int.from_bytes(good[8:12], "little")
    covered = [*range(44 + size)] + [
        i for i in range(44 + size, len(good)) if good[i]
    ]  # padding between sections is zero and means nothing
    for position in covered[::17] + covered[:50]:
        bad = bytearray(good)
        bad[position] ^= 0x10
        path.write_bytes(bytes(bad))
        with pytest.raises(ArtifactError):
            Artifact.load(path)


@pytest.mark.parametrize("keep", [0, 4, 11, 40, 60, 400, -1])
def test_truncated_files_are_refused(artifact, tmp_path, keep):
    path = tmp_path / "m.tc"
    artifact.save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError):
        Artifact.load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"<html>" * 100)
    with pytest.raises(ArtifactError, match="not a tinycomp artifact"):
        Artifact.load(path)
    path.write_bytes(MAGIC + b"\xff\xff\xff\xff" + bytes(1000))
    with pytest.raises(ArtifactError, match="damaged"):
        Artifact.load(path)
    with pytest.raises(ArtifactError, match="cannot read"):
        Artifact.load(tmp_path / "absent.tc")


def _for_target(artifact, target):
    manifest = dataclasses.replace(artifact.manifest, target=target)
    return dataclasses.replace(artifact, manifest=manifest)


def test_artifacts_of_another_machine_are_refused(artifact, tmp_path):
    path = tmp_path / "m.tc"
    _for_target(artifact, Target.parse("llvm -mcpu=neoverse-n1")).save(path)
    with pytest.raises(ArtifactError, match="aarch64"):
        Artifact.load(path)
    host = Target.host()
    wider = dataclasses.replace(host, features=host.features + ",+avx99")
    _for_target(artifact, wider).save(path)
    with pytest.raises(ArtifactError, match="avx99"):
        Artifact.load(path)


def test_features_of_a_named_cpu():
    assert "avx512f" in required_features(Target.parse("llvm -mcpu=x86-64-v4"))
    assert "avx512f" not in required_features(Target.parse("llvm -mcpu=x86-64-v3"))


def test_another_schema_is_refused(artifact, tmp_path, monkeypatch):
    path = tmp_path / "m.tc"
    monkeypatch.setattr("tinycomp.runtime.artifact.SCHEMA", 99)
    artifact.save(path)
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="format 99"):
        Artifact.load(path)
