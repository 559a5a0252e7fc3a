"""Errors and provenance.

Two kinds of failure, never mixed: a `TinycompError` is addressed to the user (what is wrong, at
which ONNX node, what to do); an `InternalError` is our bug and asks for a report.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Where a value comes from: the names of the ONNX nodes it was computed by.

    Rewrites union the spans of what they replace, so the names reach errors, generated code and
    profiles.
    """

    nodes: tuple[str, ...] = ()

    def __or__(self, other: Span) -> Span:
        if not other.nodes or other == self:
            return self
        return Span(tuple(dict.fromkeys(self.nodes + other.nodes)))

    def __str__(self) -> str:
        shown = ", ".join(self.nodes[:4])
        return shown + (f", ... {len(self.nodes) - 4} more" if len(self.nodes) > 4 else "")


NO_SPAN = Span()


class TinycompError(Exception):
    """An error addressed to the user. Its text is one headline, the node, and one hint.

    Args:
        message: what is wrong, in one sentence.
        span: the ONNX nodes concerned.
        hint: what to do about it.
        excerpt: up to 17 lines of IR around the place, already rendered.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, span: Span = NO_SPAN, hint: str = "", excerpt: str = ""
    ) -> None:
        super().__init__(message)
        self.message, self.span, self.hint, self.excerpt = message, span, hint, excerpt

    def __str__(self) -> str:
        lines = [self.message]
        if self.span.nodes:
            lines.append(f"  at node: {self.span}")
        if self.excerpt:
            lines += [f"  | {line}" for line in self.excerpt.splitlines()]
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class ModelError(TinycompError):
    """The model file is damaged, inconsistent or not an ONNX file."""


class TypeMismatch(TinycompError):
    """An operator was given types that it does not accept."""


class UnsupportedModel(TinycompError):
    """The model is valid but uses something that tinycomp cannot compile yet."""

    exit_code = 2


class MemoryBudgetError(TinycompError):
    """The model needs more memory than this machine, or the user's limit, has."""


class InputError(TinycompError):
    """A call's inputs do not fit the model: missing, extra, wrong dtype or shape."""


class ArtifactError(TinycompError):
    """An artifact is damaged, foreign, or made for another machine."""


class ScheduleError(TinycompError):
    """A schedule primitive refuses: the call, the axis and the reason are in the message."""


class VerifyError(TinycompError):
    """IR text or IR built by hand breaks a rule of its level."""


class MismatchError(TinycompError):
    """Outputs differ from the reference beyond the tolerance."""

    exit_code = 3


class ExecutionError(TinycompError):
    """A compiled model found bad data while running, such as an index out of range."""


class InternalError(Exception):
    """A bug of tinycomp, not of the user's input."""

    exit_code = 4

    def __str__(self) -> str:
        return f"internal error, please report it: {super().__str__()}"
