"""Settings from the environment, read once per use and passed on as a value.

| variable | meaning |
|---|---|
| `TINYCOMP_CACHE` | `0` turns the disk cache off |
| `TINYCOMP_CACHE_DIR` | where it is; default `$XDG_CACHE_HOME/tinycomp` or `~/.cache/tinycomp` |
| `TINYCOMP_CACHE_LIMIT` | its size bound in MiB; default 4096 |
| `TINYCOMP_NUM_THREADS` | threads of a model unless `num_threads=` says otherwise |
| `TINYCOMP_MEMORY_LIMIT` | MiB that a model may need; default all of the machine's memory |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .diagnostics import TinycompError


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one compile.

    >>> Config.from_environment({"TINYCOMP_CACHE": "0"}).cache
    False
    """

    cache: bool = True
    cache_dir: Path = Path("~/.cache/tinycomp")
    cache_limit_bytes: int = 4096 << 20
    num_threads: int | None = None
    memory_limit_bytes: int | None = None

    @staticmethod
    def from_environment(environ: Mapping[str, str] | None = None) -> Config:
        """The settings that the environment variables above give.

        Raises:
            TinycompError: a variable that should be a number is not one.
        """
        env = os.environ if environ is None else environ
        home = env.get("XDG_CACHE_HOME") or "~/.cache"
        threads = _number(env, "TINYCOMP_NUM_THREADS", 0)
        memory = _number(env, "TINYCOMP_MEMORY_LIMIT", 0) << 20
        return Config(
            cache=env.get("TINYCOMP_CACHE", "1").lower() not in ("0", "off", "false", "no"),
            cache_dir=Path(env.get("TINYCOMP_CACHE_DIR") or f"{home}/tinycomp").expanduser(),
            cache_limit_bytes=_number(env, "TINYCOMP_CACHE_LIMIT", 4096) << 20,
            num_threads=threads or None,
            memory_limit_bytes=memory or None,
        )

    @property
    def memory_budget(self) -> int:
        """Bytes that a model may need: the limit set, else the machine's memory."""
        return self.memory_limit_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "")
    if not text:
        return default
    if not text.isdigit():
        raise TinycompError(
            f"{name}={text!r} is not a number", hint=f"unset {name} or give it an integer"
        )
    return int(text)
