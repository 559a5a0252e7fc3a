"""What a user adds to the compiler for one compilation: operators, passes, schedules, lowering.

Nothing registers itself. An `Extension` is a value, passed to `tinycomp.compile`:

>>> from tinycomp.ops import default_ops
>>> extension = Extension(key="my passes, version 1")
>>> extension.op_set() is default_ops()
True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .diagnostics import TinycompError

if TYPE_CHECKING:  # a model that is in the cache is loaded without the compiler
    from .ops.onnx_node import OnnxImport
    from .relay.op import Op, OpSet
    from .relay.pass_infra import Pass
    from .schedules.common import Kernel
    from .target import Target
    from .tir.nodes import PrimFunc

    ScheduleHook = Callable[[Kernel], bool]
    LoweringPass = Callable[[PrimFunc, Target], PrimFunc]


@dataclass(frozen=True, eq=False)
class Extension:
    """Tables that a compilation looks into beside, and before, tinycomp's own.

    Attributes:
        ops: operators that tinycomp does not have.
        onnx: importers by ONNX operator type, those of other domains as "domain::Type".
        passes: graph passes that run on the imported model, before tinycomp's own.
        schedules: by operator name, functions of a `schedules.common.Kernel` for kernels that
            contain the operator: they schedule it and return True, or return False. Where several
            operators of a kernel have one, the first that returns True counts.
        lowering: functions of the plain loops of each kernel for CPUs and of the target, after
            tinycomp's own lowering and before code generation; they return the loops to compile.
        key: names the content and version of all this, for the caches on disk: equal keys must
            mean equal extensions. Without a key nothing is cached.
    """

    ops: tuple[Op, ...] = ()
    onnx: Mapping[str, OnnxImport] = field(default_factory=dict)
    passes: tuple[Pass, ...] = ()
    schedules: Mapping[str, ScheduleHook] = field(default_factory=dict)
    lowering: tuple[LoweringPass, ...] = ()
    key: str = ""

    def op_set(self) -> OpSet:
        """tinycomp's operators and these.

        Raises:
            TinycompError: an operator of this name exists.
        """
        from .ops import default_ops

        try:
            return default_ops().extend(*self.ops) if self.ops else default_ops()
        except ValueError as error:
            raise TinycompError(
                f"the extension cannot be used: {error}", hint="give the operator another name"
            ) from None

    def importers(self) -> Mapping[str, OnnxImport]:
        """tinycomp's ONNX importers and these, which come first."""
        from .ops import onnx_importers

        return {**onnx_importers(), **self.onnx}

    @property
    def is_empty(self) -> bool:
        return not (self.ops or self.onnx or self.passes or self.schedules or self.lowering)

    @property
    def is_cacheable(self) -> bool:
        """Whether what is compiled with it may be found again by a key."""
        return self.is_empty or bool(self.key)

    @property
    def name(self) -> str:
        """For the manifest: the key, "(no key)", or nothing if this adds nothing."""
        return "" if self.is_empty else self.key or "(no key)"


NO_EXTENSION = Extension()
