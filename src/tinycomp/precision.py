"""The formats that products and convolutions may be computed in, and the choice of one by name.

| name | operands | stored | sums |
| --- | --- | --- | --- |
| fp32 | float32, or three bfloat16 parts of it on tensor cores, where faster | float32 | float32 |
| fp32_strict | float32, never on tensor cores | float32 | float32 |
| tf32 | float32 rounded to 10 bits of mantissa, for tensor cores | float32 | float32 |
| fp16 | float16: 10 bits, up to 65504 | float16 | float32 |
| bf16 | bfloat16: 7 bits, the range of float32 | bfloat16 | float32 |
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from .diagnostics import TinycompError
from .dtype import DType


class Precision(StrEnum):
    """What products and convolutions are computed in; its own name.

    >>> Precision.BF16.storage, Precision("tf32").tolerance, str(Precision.FP32)
    (<DType.BFLOAT16: 'bfloat16'>, 0.001, 'fp32')
    """

    FP32 = "fp32"
    FP32_STRICT = "fp32_strict"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def storage(self) -> DType:
        """The element type of operands and of the results between kernels."""
        return _STORAGE[self]

    @property
    def is_short(self) -> bool:
        """Whether values are stored in 16 bits."""
        return self.storage is not DType.FLOAT32

    @property
    def tolerance(self) -> float:
        """The difference to expect from a whole model, relative to an output's largest value."""
        return _TOLERANCE[self]


_STORAGE = {
    Precision.FP32: DType.FLOAT32,
    Precision.FP32_STRICT: DType.FLOAT32,
    Precision.TF32: DType.FLOAT32,
    Precision.FP16: DType.FLOAT16,
    Precision.BF16: DType.BFLOAT16,
}
_TOLERANCE = {
    Precision.FP32: 1e-4,
    Precision.FP32_STRICT: 1e-4,
    Precision.TF32: 1e-3,
    Precision.FP16: 1e-3,
    Precision.BF16: 1e-2,
}
_MEANT = {
    **dict.fromkeys(("float32", "f32", "float"), Precision.FP32),
    **dict.fromkeys(("tensorfloat32", "tensor_float_32"), Precision.TF32),
    **dict.fromkeys(("float16", "f16", "half"), Precision.FP16),
    "bfloat16": Precision.BF16,
}


@dataclass(frozen=True)
class PrecisionPolicy:
    """The precision of a model, and of the operators that are named to differ.

    `overrides` are pairs of a glob and a precision. A glob is compared with the names of the ONNX
    nodes and with the operator ("nn.matmul", or "matmul" without its prefix); of several that
    match, the last one counts.

    >>> policy = PrecisionPolicy.of("fp16", {"conv*": "tf32", "conv_7": "fp32"})
    >>> policy.choose(("conv_1", "relu_1"), "nn.conv2d"), policy.choose(("conv_7",), "nn.conv2d")
    (<Precision.TF32: 'tf32'>, <Precision.FP32: 'fp32'>)
    >>> policy.choose(("fc",), "nn.matmul"), str(policy)
    (<Precision.FP16: 'fp16'>, 'fp16, conv*=tf32, conv_7=fp32')
    """

    base: Precision = Precision.FP32
    overrides: tuple[tuple[str, Precision], ...] = ()

    @staticmethod
    def of(precision: str, overrides: Mapping[str, str] | None = None) -> PrecisionPolicy:
        """Read both as users give them.

        Raises:
            TinycompError: a precision that does not exist.
        """
        pairs = tuple((glob, _parse(name)) for glob, name in (overrides or {}).items())
        return PrecisionPolicy(_parse(precision), pairs)

    @property
    def used(self) -> frozenset[Precision]:
        """All precisions that some operator may get."""
        return frozenset({self.base, *(p for _, p in self.overrides)})

    def named(self, nodes: Iterable[str], operator: str) -> Precision | None:
        """What the overrides say about an operator that computes these ONNX nodes, if anything."""
        names = (*nodes, operator, operator.rpartition(".")[2])
        found = None
        for glob, precision in self.overrides:
            if any(fnmatch.fnmatchcase(name, glob) or name == glob for name in names):
                found = precision
        return found

    def choose(self, nodes: Iterable[str], operator: str) -> Precision:
        """The precision of an operator that computes these ONNX nodes."""
        return self.named(nodes, operator) or self.base

    def check(self, nodes: Iterable[str], operators: Iterable[str]) -> None:
        """Refuse an override that matches nothing in a model.

        Raises:
            TinycompError: naming the glob, with close names of the model.
        """
        nodes, operators = set(nodes), set(operators)
        names = nodes | operators | {o.rpartition(".")[2] for o in operators}
        for glob, _ in self.overrides:
            if glob not in names and not any(fnmatch.fnmatchcase(name, glob) for name in names):
                close = difflib.get_close_matches(glob, sorted(names), 3, 0.5)
                shown = close or sorted(nodes)[:3] or sorted(operators)[:3]
                raise TinycompError(
                    f"precision override {glob!r} matches no node and no operator of the model",
                    hint=("did you mean " if close else "it has for instance ")
                    + ", ".join(map(repr, shown))
                    + "? `tinycomp inspect` lists them all",
                )

    def __str__(self) -> str:
        return ", ".join([self.base, *(f"{glob}={p}" for glob, p in self.overrides)])


def _parse(text: str) -> Precision:
    if text in list(Precision):
        return Precision(text)
    names = ", ".join(Precision)
    close = _MEANT.get(text.lower()) or next(
        iter(difflib.get_close_matches(text.lower(), list(Precision), 1, 0.5)), None
    )
    raise TinycompError(
        f"precision {text!r} does not exist",
        hint=f'did you mean "{close}"? there are {names}' if close else f"there are {names}",
    )
