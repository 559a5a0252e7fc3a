"""A schedule step: one call of a primitive, as a frozen value.

Steps name stages and axes by text, so that they print as Python, travel as JSON, and replay on
another shape of the same computation.

>>> from tinycomp.tir.primitives.split import Split
>>> step = Split("B", "i", factor=8)
>>> step.call()
's["B"].split("i", factor=8)'
>>> step.to_dict()
{'step': 'split', 'stage': 'B', 'axis': 'i', 'factor': 8}
"""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from ...diagnostics import ScheduleError

if TYPE_CHECKING:
    from ..schedule import Schedule


@dataclass(frozen=True)
class Step:
    """Base of every step. `apply` rewrites `schedule.func` and returns what the call returns."""

    NAME: ClassVar[str] = ""  # the method of Stage, or of Schedule if OF_SCHEDULE
    OF_SCHEDULE: ClassVar[bool] = False
    SPLAT: ClassVar[str] = ""  # a field whose values are separate arguments

    stage: str

    def apply(self, schedule: Schedule) -> Any:
        raise NotImplementedError

    def call(self) -> str:
        """The call as Python text, on a schedule `s`."""
        arguments: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "stage" and not self.OF_SCHEDULE:
                continue
            if field.default is not MISSING and value == field.default:
                continue
            if field.name == self.SPLAT:
                arguments += [_text(v) for v in value]
            elif field.default is MISSING:
                arguments.append(_text(value))
            else:
                arguments.append(f"{field.name}={_text(value)}")
        target = "s" if self.OF_SCHEDULE else f"s[{_text(self.stage)}]"
        return f"{target}.{self.NAME}({', '.join(arguments)})"

    def to_dict(self) -> dict[str, Any]:
        """The step for JSON: its name and the fields that differ from their defaults."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        defaults = {f.name: f.default for f in fields(self)}
        kept = {k: v for k, v in values.items() if defaults[k] is MISSING or v != defaults[k]}
        return {"step": self.NAME, **kept}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Step:
        """The inverse of `to_dict`, from parsed JSON (lists come back as tuples).

        Raises:
            ScheduleError: a field is missing or unknown.
        """
        given = {k: _frozen(v) for k, v in values.items() if k != "step"}
        known = {f.name: f for f in fields(cls)}
        wrong = [k for k in given if k not in known]
        missing = [k for k, f in known.items() if f.default is MISSING and k not in given]
        wrong += [k for k, v in given.items() if isinstance(v, dict)]
        if wrong or missing:
            raise ScheduleError(
                f"a {cls.NAME} step has wrong fields {wrong} and lacks {missing}",
                hint=f"its fields are {', '.join(known)}",
            )
        return cls(**given)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_text(v) for v in value)}]"
    return repr(value)


def _frozen(value: Any) -> Any:
    """JSON lists as tuples, to any depth that steps use (two)."""
    if not isinstance(value, list):
        return value
    return tuple(tuple(v) if isinstance(v, list) else v for v in value)
