"""Results that need no work: they are in the memory of an argument already."""

from __future__ import annotations

from ..types import TensorType
from .constant_pool import ALIGNMENT
from .nodes import Binding, Call
from .op import Op


def view_offset(binding: Binding) -> int | None:
    """The byte of its argument's memory at which the value begins; None if it is not there.

    Kernels take planned memory to be aligned, so a piece that is not has to be copied.
    """
    value = binding.value
    if not isinstance(value, Call) or not isinstance(value.op, Op) or value.op.view is None:
        return None
    source = value.args[0].type
    assert isinstance(source, TensorType)
    offset = value.op.view(value.attrs, source)
    return None if offset is None or offset % ALIGNMENT else offset


def is_whole_view(binding: Binding) -> bool:
    """Whether the value is all of its argument's memory, as that of a reshape."""
    if view_offset(binding) is None:
        return False
    source, result = binding.args[0].type, binding.var.type
    assert isinstance(source, TensorType)
    assert isinstance(result, TensorType)
    return not source.is_static or source.size == result.size
