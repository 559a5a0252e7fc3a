"""Running a model in ONNX Runtime, with intermediate tensors exposed if wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..diagnostics import ModelError, TinycompError

if TYPE_CHECKING:
    import numpy as np
    import onnx


def import_engine(name: str) -> Any:
    """The Python package of an engine.

    Raises:
        TinycompError: it is not installed.
    """
    import importlib

    package = {"ort": "onnxruntime"}.get(name, name)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise TinycompError(
            f"{package} is not installed", hint='pip install "tinycomp[verify]"'
        ) from error


def run_reference(
    engine: str, model: str | onnx.ModelProto, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The outputs by name of a model file or message in ONNX Runtime.

    Raises:
        TinycompError: it is not installed.
        ModelError: it refuses the model.
    """
    import os
    import tempfile

    ort = import_engine(engine)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    errors = _ort_errors(ort)
    temporary = ""
    try:
        if not isinstance(model, str):
            handle, temporary = tempfile.mkstemp(suffix=".onnx")
            with os.fdopen(handle, "wb") as file:  # a file, since a message may exceed its limits
                file.write(model.SerializeToString())
        session = ort.InferenceSession(
            temporary or model, options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))
    except errors as error:
        raise ModelError(f"{engine} refuses the model or inputs: {error}") from error
    finally:
        if temporary:
            os.unlink(temporary)


def _ort_errors(ort: Any) -> tuple[type[Exception], ...]:
    state = ort.capi.onnxruntime_pybind11_state
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented",
             "RuntimeException", "NoSuchFile")  # fmt: skip
    found = (getattr(state, name, None) for name in names)
    return (*(e for e in found if e is not None), ValueError)


def expose(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of the model with more outputs: tensors of the main graph, by name."""
    import onnx

    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    taken = {output.name for output in exposed.graph.output}
    exposed.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in taken
    )
    return exposed
