"""ONNX models to graph IR. The only package that touches protobuf."""

from .importer import from_onnx

__all__ = ["from_onnx"]
