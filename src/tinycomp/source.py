"""Where a model comes from, and what names its content."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .diagnostics import ModelError, TinycompError
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
    sha256: str = ""

    @staticmethod
    def of(model: Model) -> Source:
        """Hash a model without importing it.

        Raises:
            ModelError: the file cannot be read.
        """
        if isinstance(model, str | os.PathLike):
            path = Path(model)
            try:
                data = path.read_bytes()
            except OSError as error:
                reason = error.strerror or str(error)
                raise ModelError(f"model file {path} cannot be read: {reason}") from error
            digest = hashlib.sha256(data).hexdigest()
            key = digest if b"location" not in data else content_key(data, *_external(path, data))
            return Source(key, str(path.resolve()), digest)
        if isinstance(model, bytes | bytearray | memoryview):
            return Source(hashlib.sha256(model).hexdigest())
        if hasattr(model, "SerializeToString"):
            data = model.SerializeToString(deterministic=True)  # type: ignore[union-attr]
            return Source(hashlib.sha256(data).hexdigest())
        from .relay.nodes import IRModule
        from .relay.text import constant_table

        if not isinstance(model, IRModule):
            raise TinycompError(
                f"cannot compile a {type(model).__name__}",
                hint="give a path, bytes, an onnx.ModelProto or a relay IRModule",
            )
        return Source(content_key(str(model), *sorted(constant_table(model))))


def _external(path: Path, data: bytes) -> list[bytes]:
    """Hashes of the files beside a model that keep its tensors.

    What is wrong with them is for the importer to say.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import external_data_helper

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
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
            with file.open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").digest())
    return digests
