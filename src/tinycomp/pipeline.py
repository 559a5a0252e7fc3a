"""The order of the graph passes."""

from __future__ import annotations

import functools

from .codegen.cuda.limits import has_async_copies
from .precision import PrecisionPolicy
from .relay.pass_infra import Pass, Sequential
from .relay.passes.alter_op_layout import AlterOpLayout
from .relay.passes.byte_products import ByteProducts
from .relay.passes.canonicalize_ops import CanonicalizeOps
from .relay.passes.combine_parallel import CombineParallelDense
from .relay.passes.convert_layout import ConvertLayout
from .relay.passes.dead_code_elimination import DeadCodeElimination
from .relay.passes.eliminate_common_subexpr import EliminateCommonSubexpr
from .relay.passes.fold_constant import FoldConstant
from .relay.passes.fold_explicit_padding import FoldExplicitPadding
from .relay.passes.fold_scale_axis import FoldScaleAxis
from .relay.passes.fuse_attention import FuseAttention
from .relay.passes.fuse_ops import FuseOps
from .relay.passes.pad_channels import PadChannels
from .relay.passes.simplify_expr import SimplifyExpr
from .relay.passes.simplify_inference import SimplifyInference
from .relay.passes.split_operands import SplitOperands
from .relay.passes.to_mixed_precision import ToMixedPrecision
from .relay.passes.unflatten_products import UnflattenProducts
from .schedules.gpu.hopper.choice import choose_split
from .schedules.gpu.products.conv_layout import SHORT_FLOATS, choose_gpu_conv_tile
from .schedules.gpu.products.matmul_bytes import choose_gpu_byte_tile
from .schedules.matmul_bytes import byte_dot, choose_byte_tile
from .schedules.tiles import choose_tile
from .target import Target


def default_pipeline(
    opt_level: int, target: Target, precision: PrecisionPolicy | None = None
) -> Sequential:
    """Imported relay to fused relay.

    `precision` is realised at every level, when weights have their final values; on a GPU the
    formats then decide about layouts: 16-bit convolutions run in NHWC. Level 0 only makes every
    operator a kernel; 1 simplifies and fuses; 2 changes weights and layouts too; 3 is for what may
    round differently.
    """
    passes: list[Pass] = [SimplifyInference()]
    if opt_level >= 1:
        passes += [CanonicalizeOps(), FoldConstant(), SimplifyExpr(), UnflattenProducts()]
        passes += [SimplifyExpr(), EliminateCommonSubexpr()]
    if opt_level >= 2:
        passes += [FoldExplicitPadding(), FoldScaleAxis(), FoldConstant()]
    if opt_level >= 1 and target.kind == "cuda":
        passes += [FuseAttention(), SimplifyExpr(), EliminateCommonSubexpr()]
    if opt_level >= 2 and target.kind == "cuda":  # slices are read in place by attention
        passes += [CombineParallelDense(only_for=frozenset({"nn.attention"}))]
        if has_async_copies(target.arch):  # and with them, tensor cores for bytes
            passes += [ByteProducts(choose_gpu_byte_tile), SimplifyExpr()]
    if opt_level >= 2 and target.kind == "llvm":  # packed layouts are for the CPU's schedules
        passes += [ConvertLayout(), CanonicalizeOps(), FoldConstant(), SimplifyExpr()]
        passes += [EliminateCommonSubexpr()]
        if byte_dot(target) is not None:
            byte_tile = functools.partial(choose_byte_tile, target=target)
            passes += [ByteProducts(byte_tile), SimplifyExpr()]
        tile_of = functools.partial(choose_tile, target=target)
        passes += [AlterOpLayout(tile_of), FoldConstant(), SimplifyExpr(), EliminateCommonSubexpr()]
    if precision is not None:
        passes += [ToMixedPrecision(precision)]
    if opt_level >= 2 and target.kind == "cuda" and has_async_copies(target.arch):
        passes += [ConvertLayout(SHORT_FLOATS), CanonicalizeOps(), FoldConstant(), SimplifyExpr()]
        gpu_tile = functools.partial(choose_gpu_conv_tile, arch=target.arch)
        passes += [PadChannels(SHORT_FLOATS)]
        passes += [AlterOpLayout(gpu_tile), FoldConstant(), SimplifyExpr()]
        passes += [EliminateCommonSubexpr()]
    if opt_level >= 2 and target.kind == "cuda":
        choose = functools.partial(choose_split, target=target)
        passes += [SplitOperands(choose), FoldConstant()]
    passes += [DeadCodeElimination(), FuseOps(fuse=opt_level >= 1)]
    return Sequential(tuple(passes))
