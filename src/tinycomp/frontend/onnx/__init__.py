"""ONNX models to graph IR. The only package that touches protobuf."""

from .importer import from_onnx
from .model import OnnxModel

__all__ = ["OnnxModel", "from_onnx"]
