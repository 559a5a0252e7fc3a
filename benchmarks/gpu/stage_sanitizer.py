"""sanitizer: a few kernels of each kind, small, for compute-sanitizer around this process."""

from __future__ import annotations

from harness import Case
from stage_correctness import convolutions, models, products

FEW = ("37x50x21", "130x66x100", "conv2d/0", "conv2d/3", "model/lenet", "model/bert", "model/gru")


def cases() -> list[Case]:
    every = (*products(), *convolutions(), *models())
    return [case for case in every if any(part in case.name for part in FEW)]
