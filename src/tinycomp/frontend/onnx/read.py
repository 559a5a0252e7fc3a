"""Reading a model file, and saying precisely what is wrong with one that cannot be read."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper

from ...diagnostics import ModelError

Model = str | Path | bytes | onnx.ModelProto


def read_model(model: Model) -> onnx.ModelProto:
    """The model as a protobuf message, with its external data loaded.

    Raises:
        ModelError: the file is missing, empty, damaged or of another kind, or refers to external
            data that is missing or outside the model's folder.
    """
    if isinstance(model, onnx.ModelProto):
        _refuse_external(model, "a ModelProto")
        return model
    if isinstance(model, bytes | bytearray | memoryview):
        proto = parse(bytes(model), "the given bytes")
        _refuse_external(proto, "bytes")
        return proto
    path = Path(model)
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not an ONNX file")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"model file {path} does not exist") from None
    except OSError as error:
        raise ModelError(f"model file {path} cannot be read: {error.strerror}") from None
    proto = parse(data, str(path))
    _load_external(proto, path)
    return proto


def parse(data: bytes, name: str) -> onnx.ModelProto:
    """`data` as a model; the ModelError says what the data is instead."""
    kind = _other_kind(data)
    if kind:
        raise ModelError(f"{name} is {kind[0]}, not an ONNX model", hint=kind[1])
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"{name} is not an ONNX model, or is truncated or damaged ({len(data)} bytes)",
            hint="compare its size or checksum with the original and download it again",
        ) from None
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(
            f"{name} is not an ONNX model: it has no "
            + ("opset" if proto.HasField("graph") else "graph"),
            hint="the file may be truncated, or be another kind of protobuf",
        )
    return proto


def _other_kind(data: bytes) -> tuple[str, str] | None:
    """What a file evidently is instead of ONNX, and what to do about it."""
    head = data[:512].lstrip()
    if not data:
        return "empty", "the download may have failed"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer", "run `git lfs pull` to fetch the real file"
    if head[:15].lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "an HTML or XML page", "the download link led to a web page; fetch the raw file"
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive (perhaps a PyTorch checkpoint)", "export or unpack the model first"
    if head[:1] == b"{":
        return "JSON text", "give the .onnx file itself"
    if head.startswith(b"TINYCOMP"):
        return "a compiled artifact", "give the .onnx file that it was compiled from"
    if data[4:8] == b"TFL3":
        return "a TensorFlow Lite model", "convert it with tf2onnx"
    return None


def _refuse_external(proto: onnx.ModelProto, what: str) -> None:
    for tensor in proto.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            raise ModelError(
                f"initializer {tensor.name!r} keeps its data in another file, which a model "
                f"given as {what} does not have",
                hint="give the path of the model file instead",
            )


def _load_external(proto: onnx.ModelProto, path: Path) -> None:
    """Fill in the tensors that live in files beside the model; onnx refuses paths outside."""
    tensors = external_data_helper._get_all_tensors(proto)
    for tensor in tensors:
        if not external_data_helper.uses_external_data(tensor):
            continue
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except (onnx.checker.ValidationError, OSError, ValueError) as error:
            raise ModelError(
                f"the external data of tensor {tensor.name!r} cannot be loaded: {error}",
                hint="keep the data file in the model's folder, under its original name",
            ) from None
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
