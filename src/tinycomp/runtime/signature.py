"""What the arguments of a kernel call mean: buffers, and the sizes that their shapes give.

Both kinds of function that `build` makes check their arguments here; they differ in the arrays
that they take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diagnostics import InputError
from ..dtype import DType
from ..ir.expr import Var
from ..tir.nodes import Buffer
from ..tir.sizes import bind_sizes, evaluate, shape_at
from .arrays import as_array


@dataclass(frozen=True)
class Signature:
    """The arguments of a function.

    Attributes:
        name: of the function, in messages.
        arguments: for each argument of a call its parameter, or the symbolic size that it gives.
        params: the buffers of the function in the order of its code; outputs last.
        num_outputs: how many of them are written.
        sizes: the symbolic sizes of the function.
    """

    name: str
    arguments: tuple[Buffer | Var, ...]
    params: tuple[Buffer, ...]
    num_outputs: int
    sizes: tuple[Var, ...] = ()

    @property
    def outputs(self) -> tuple[Buffer, ...]:
        return self.params[len(self.params) - self.num_outputs :]

    def bind(
        self, values: Sequence[Any], as_array: Callable[[Any, Buffer], Any]
    ) -> tuple[dict[Var, int], list[Any]]:
        """The symbolic sizes, and the arrays in the order of `params`.

        Args:
            as_array: makes an array of an argument, or says why it cannot.

        Raises:
            InputError: the number of arguments, a dtype, a shape or a layout does not fit.
        """
        if len(values) != len(self.arguments):
            names = ", ".join(a.name for a in self.arguments)
            raise InputError(
                f"{self.name} takes {len(self.arguments)} arguments ({names}), got {len(values)}"
            )
        sizes: dict[Var, int] = {}
        arrays: dict[Buffer, Any] = {}
        for argument, value in zip(self.arguments, values, strict=True):
            if isinstance(argument, Var):
                _bind_size(argument, int(value), sizes, argument.name)
            else:
                arrays[argument] = array = as_array(value, argument)
                _check_array(argument, array)
                for dim, size in zip(argument.shape, array.shape, strict=True):
                    if isinstance(dim, Var):
                        _bind_size(dim, size, sizes, argument.name)
        if self.sizes:
            sizes = self._all_sizes(arrays, sizes)
        for buffer, array in arrays.items():
            _check_shape(buffer, array, sizes)
        return sizes, [arrays[b] for b in self.params]

    def _all_sizes(self, arrays: Mapping[Buffer, Any], sizes: dict[Var, int]) -> dict[Var, int]:
        """The sizes with those that follow from dimensions like n * 16."""
        dims = (d for b, a in arrays.items() for d in zip(b.shape, a.shape, strict=True))
        sizes = bind_sizes(dims, sizes)
        for size in self.sizes:
            if size not in sizes:
                raise InputError(
                    f"the size {size.name} of {self.name} is not known from the arguments",
                    hint="pass the variable itself as an argument",
                )
            if sizes[size] < 0:
                raise InputError(f"the size {size.name} of {self.name} is {sizes[size]}")
        return sizes


def host_array(value: Any, buffer: Buffer, is_output: bool) -> np.ndarray:
    """The NumPy array of an argument, without copying; numbers stand for inputs of one element.

    Raises:
        InputError: it is no array, or an output that cannot be written.
    """
    if isinstance(value, bool | int | float | np.generic) and not is_output:
        value = np.full([1] * len(buffer.shape), value, buffer.dtype.numpy)
    array = as_array(value, buffer.name)
    if array is not value and isinstance(value, list | tuple):
        raise InputError(f"{buffer.name!r} is a {type(value).__name__}, not an array")
    if is_output and not array.flags.writeable:
        raise InputError(f"{buffer.name!r} is an output, but the array is read-only")
    return array


def bind_host(
    signature: Signature, values: Sequence[Any]
) -> tuple[dict[Var, int], list[np.ndarray]]:
    """`Signature.bind` for NumPy arrays, whose outputs share no memory with other arguments."""
    outputs = signature.outputs
    sizes, arrays = signature.bind(
        values, lambda value, buffer: host_array(value, buffer, buffer in outputs)
    )
    _check_aliasing(signature, arrays)
    return sizes, arrays


def _check_aliasing(signature: Signature, arrays: Sequence[np.ndarray]) -> None:
    """Refuse an output that shares memory with another argument."""
    named = list(zip(signature.params, arrays, strict=True))
    for output, written in named[len(named) - signature.num_outputs :]:
        for other, array in named:
            if other is not output and np.may_share_memory(array, written):
                raise InputError(
                    f"the output {output.name!r} shares memory with {other.name!r}",
                    hint="pass arrays of their own",
                )


def _check_array(buffer: Buffer, array: Any) -> None:
    if DType.of(np.dtype(array.dtype)) is not buffer.dtype:
        raise InputError(
            f"{buffer.name!r} has dtype {array.dtype}, expected {buffer.dtype}",
            hint=f'convert it: x.astype("{buffer.dtype}")',
        )
    if array.ndim != len(buffer.shape):
        raise InputError(
            f"{buffer.name!r} has shape {list(array.shape)}, expected {len(buffer.shape)} "
            "dimensions"
        )
    if not (array.flags.c_contiguous and getattr(array.flags, "aligned", True)):
        raise InputError(
            f"{buffer.name!r} is not dense and row-major (strides {array.strides})",
            hint="pass np.ascontiguousarray(x)",
        )


def _bind_size(size: Var, value: int, sizes: dict[Var, int], where: str) -> None:
    if sizes.setdefault(size, value) != value:
        raise InputError(
            f"{where!r} makes {size.name} = {value}, but an earlier argument made it {sizes[size]}"
        )


def _check_shape(buffer: Buffer, array: np.ndarray, sizes: dict[Var, int]) -> None:
    for dim, size in zip(buffer.shape, array.shape, strict=True):
        if evaluate(dim, sizes) != size:
            expected = list(shape_at(buffer, sizes))
            raise InputError(f"{buffer.name!r} has shape {list(array.shape)}, expected {expected}")
