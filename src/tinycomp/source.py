"""Where a model comes from, and what names its content."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .diagnostics import ModelError, TinycompError
from .runtime import bulk
from .runtime.cache import content_key

if TYPE_CHECKING:
    import onnx

    from .frontend.onnx import OnnxModel
    from .relay.nodes import IRModule

    Model = str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel | IRModule


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from: a content key, and for files the path and hash."""

    key: str
    path: str = ""
    digest: str = ""

    @staticmethod
    def of(model: Model) -> Source:
        """Hash a model without importing it.

        Raises:
            ModelError: the file cannot be read.
        """
        if isinstance(model, str | os.PathLike):
            path = Path(model)
            try:
                data = _map(path)
            except OSError as error:
                reason = error.strerror or str(error)
                raise ModelError(f"model file {path} cannot be read: {reason}") from error
            digest = bulk.digest(data).hex()
            key = content_key(digest, *_external(path, data)) if _has_external(data) else digest
            return Source(key, str(path.resolve()), digest)
        if isinstance(model, bytes | bytearray | memoryview):
            return Source(bulk.digest(model).hex())
        if hasattr(model, "SerializeToString"):
            data = model.SerializeToString(deterministic=True)  # type: ignore[union-attr]
            return Source(bulk.digest(data).hex())
        from .relay.nodes import IRModule
        from .relay.text import constant_table

        if not isinstance(model, IRModule):
            raise TinycompError(
                f"cannot compile a {type(model).__name__}",
                hint="give a path, bytes, an onnx.ModelProto or a relay IRModule",
            )
        return Source(content_key(str(model), *sorted(constant_table(model))))


def _map(path: Path) -> memoryview:
    """The bytes of a file, without copying them."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


# Fields of ONNX messages (onnx.proto): the graph of a model, the initializers of a graph, and what
# a tensor says about data in another file.
_GRAPH, _INITIALIZER, _EXTERNAL_DATA = 7, 5, 13


def _has_external(data: memoryview) -> bool:
    """Whether some tensor may keep its data in another file, found without parsing the weights.

    What is no sequence of protobuf fields may; the importer will say what is wrong with it.
    """
    try:
        for field, part in _fields(data):
            if field != _GRAPH:
                if b"location" in bytes(part):
                    return True
                continue
            for inner, piece in _fields(part):
                if inner == _INITIALIZER:
                    if any(f == _EXTERNAL_DATA for f, _ in _fields(piece)):
                        return True
                elif b"location" in bytes(piece):
                    return True
    except (IndexError, ValueError):
        return True
    return False


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a protobuf message with their bytes; numbers have none.

    Raises:
        IndexError, ValueError: the data is no message.
    """
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    while position < len(data):
        tag = varint()
        kind, begin = tag & 7, position
        if kind == 2:
            size = varint()
            begin, position = position, position + size
        elif kind == 0:
            varint()
            begin = position
        elif kind in (1, 5):
            begin = position = position + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"wire type {kind}")
        if position > len(data):
            raise IndexError("a field goes beyond the end")
        yield tag >> 3, data[begin:position]


def _external(path: Path, data: memoryview) -> list[bytes]:
    """Hashes of the files beside a model that keep its tensors.

    What is wrong with them is for the importer to say.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import external_data_helper

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(bytes(data))
    except DecodeError:
        return []
    names = {
        entry.value
        for tensor in external_data_helper._get_all_tensors(proto)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    folder = path.resolve().parent
    digests = []
    for name in sorted(names):
        file = (folder / name).resolve()
        if file.is_relative_to(folder) and file.is_file():
            digests.append(bulk.digest(_map(file)))
    return digests
