"""The operators, one file per family. Adding a family means adding its module to `FAMILIES`.

>>> "nn.relu" in default_ops(), "Add" in onnx_importers()
(True, True)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import ModuleType

from ..relay.op import OpSet
from . import (
    activation,
    attention,
    binary,
    control,
    conv,
    conv_transpose,
    create,
    cumulative,
    einsum,
    fused_attention,
    index,
    layout,
    loss,
    matmul,
    matmul_bytes,
    norm,
    operand_parts,
    pool,
    quantize,
    quantized_layers,
    quantized_matmul,
    reduce,
    resize,
    rnn,
    sampling,
    scatter,
    selection,
    shape,
    signal,
    softmax,
    topk,
    unary,
)
from .onnx_node import OnnxImport

FAMILIES: tuple[ModuleType, ...] = (
    *(unary, binary, reduce, shape, create, index, scatter, layout, control, einsum),
    *(cumulative, topk, selection),
    *(quantize, quantized_layers, quantized_matmul, matmul_bytes),
    *(
        matmul,
        conv,
        conv_transpose,
        pool,
        softmax,
        loss,
        norm,
        activation,
        rnn,
        resize,
        sampling,
        signal,
    ),
    *(attention, fused_attention, operand_parts),
)


@cache
def default_ops() -> OpSet:
    """Every operator of tinycomp."""
    return OpSet({}).extend(*(op for family in FAMILIES for op in getattr(family, "OPS", ())))


@cache
def onnx_importers() -> Mapping[str, OnnxImport]:
    """ONNX importers by operator type; those of other domains as "domain::Type"."""
    table: dict[str, OnnxImport] = {}
    for family in FAMILIES:
        for name, importer in getattr(family, "ONNX", {}).items():
            assert name not in table, f"two importers for {name}"
            table[name] = importer
    return table
