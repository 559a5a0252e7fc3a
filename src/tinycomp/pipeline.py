"""The order of the graph passes."""

from __future__ import annotations

from .relay.pass_infra import Pass, Sequential
from .relay.passes.dead_code_elimination import DeadCodeElimination
from .relay.passes.eliminate_common_subexpr import EliminateCommonSubexpr
from .relay.passes.fold_constant import FoldConstant
from .relay.passes.fuse_ops import FuseOps


def default_pipeline(opt_level: int) -> Sequential:
    """Imported relay to fused relay. Level 0 only wraps each operator in a kernel of its own."""
    passes: list[Pass] = [FoldConstant(), EliminateCommonSubexpr(), DeadCodeElimination()]
    return Sequential((*(passes if opt_level else []), FuseOps(fuse=opt_level >= 1)))
