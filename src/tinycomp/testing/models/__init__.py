"""Models made of ONNX helper calls and seeded weights, to test and measure with.

>>> model = builders()["lenet"]()
>>> [output.name for output in model.graph.output]
['probabilities']
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def builders() -> dict[str, Callable[..., onnx.ModelProto]]:
    """Model builders by name; sizes are keyword arguments with realistic, modest defaults."""
    from . import cnn, recurrent, transformers, vision

    return {
        builder.__name__: builder
        for builder in (
            cnn.lenet, cnn.alexnet, cnn.vgg, cnn.googlenet, cnn.resnet, cnn.densenet,
            cnn.mobilenet_v1, cnn.mobilenet_v2,
            vision.unet, vision.ssd_detector, vision.dcgan,
            recurrent.lstm_model, recurrent.gru_model, recurrent.seq2seq_attention,
            transformers.transformer, transformers.bert, transformers.gpt2, transformers.vit,
        )
    }  # fmt: skip


TINY: dict[str, dict[str, object]] = {
    "lenet": {},
    "alexnet": {"image": 67, "width": 0.125, "hidden": 48, "classes": 10},
    "vgg": {"depth": 11, "image": 32, "width": 0.125, "hidden": 32, "classes": 10},
    "googlenet": {"image": 64, "width": 0.125, "classes": 10},
    "resnet": {"depth": 18, "image": 32, "width": 8, "classes": 10},
    "densenet": {"image": 32, "blocks": (2, 3), "growth": 4, "classes": 10},
    "mobilenet_v1": {"image": 32, "width": 0.25, "classes": 10},
    "mobilenet_v2": {"image": 32, "width": 0.25, "classes": 10},
    "unet": {"image": 32, "width": 4, "depth": 2},
    "ssd_detector": {"image": 64, "width": 8, "classes": 4},
    "dcgan": {"latent": 12, "width": 4, "image": 16},
    "lstm_model": {"steps": 5, "vocab": 40, "width": 12, "hidden": 10, "classes": 6},
    "gru_model": {"steps": 5, "features": 7, "hidden": 10, "classes": 6},
    "seq2seq_attention": {"source": 5, "target": 4, "vocab": 40, "hidden": 12},
    "transformer": {
        "source": 6, "target": 5, "vocab": 40, "width": 16, "heads": 2, "layers": 1,
    },
    "bert": {"sequence": 6, "vocab": 40, "width": 16, "heads": 2, "layers": 1},
    "gpt2": {"sequence": 6, "vocab": 40, "width": 16, "heads": 2, "layers": 1},
    "vit": {"image": 16, "patch": 4, "width": 16, "heads": 2, "layers": 1, "classes": 10},
}  # fmt: skip
"""Keyword arguments that make each builder's model small enough for a quick test."""
