"""An on-disk cache of bytes by content key.

Entries are written to a temporary file and renamed, so two processes may use one folder at a
time; each carries its own hash, and one that is damaged counts as absent and is written anew.
A cache that cannot be written (read-only home, full disk) is only slower, never an error.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config import Config

_MAGIC = b"TCCACHE1"
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Cache:
    """Files named by key under `folder`, together at most `limit_bytes`; None turns it off.

    >>> import tempfile
    >>> cache = Cache(Path(tempfile.mkdtemp()))
    >>> cache.put("ab12", b"object code")
    >>> cache.get("ab12"), cache.get("ffff")
    (b'object code', None)
    """

    folder: Path | None
    limit_bytes: int = 4096 << 20

    @staticmethod
    def from_config(config: Config) -> Cache:
        return Cache(config.cache_dir if config.cache else None, config.cache_limit_bytes)

    def path(self, key: str, suffix: str = ".bin") -> Path:
        """Where the entry of a hexadecimal key is, or would be."""
        assert self.folder is not None, "the cache is off"
        return self.folder / key[:2] / (key[2:] + suffix)

    def get(self, key: str) -> bytes | None:
        """The bytes stored under `key`; None if absent or damaged."""
        if self.folder is None:
            return None
        path = self.path(key)
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        head = len(_MAGIC) + _DIGEST_BYTES
        payload = stored[head:]
        digest = hashlib.sha256(payload).digest()
        if stored[:head] != _MAGIC + digest:
            self.discard(path)
            return None
        touch(path)
        return payload

    def put(self, key: str, payload: bytes) -> None:
        """Store `payload` under `key`. Call `evict` after a batch of these."""
        if self.folder is None:
            return
        digest = hashlib.sha256(payload).digest()
        with contextlib.suppress(OSError), atomic_path(self.path(key)) as temporary:
            temporary.write_bytes(_MAGIC + digest + payload)

    def discard(self, path: Path) -> None:
        """Remove an entry, if it is still there."""
        with contextlib.suppress(OSError):
            path.unlink()

    def entries(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of every entry, oldest first."""
        found: list[tuple[float, int, Path]] = []
        if self.folder is None or not self.folder.is_dir():
            return found
        for shard in self.folder.iterdir():
            if not (len(shard.name) == 2 and shard.is_dir()):
                continue
            for path in shard.iterdir():
                with contextlib.suppress(OSError):  # another process may just have evicted it
                    stat = path.stat()
                    found.append((stat.st_mtime, stat.st_size, path))
        return sorted(found)

    def evict(self) -> None:
        """Remove the least recently used entries until the size bound holds."""
        entries = self.entries()
        excess = sum(size for _, size, _ in entries) - self.limit_bytes
        for _, size, path in entries:
            if excess <= 0:
                break
            self.discard(path)
            excess -= size


def touch(path: Path) -> None:
    """Mark an entry as just used."""
    with contextlib.suppress(OSError):
        os.utime(path)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(6)}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


@functools.cache
def source_digest() -> str:
    """A hash of the code that decides what is generated, and of LLVM's version.

    Kernels compiled by another version of either are never reused.
    """
    import llvmlite

    root = Path(__file__).resolve().parent.parent
    hasher = hashlib.sha256(llvmlite.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(("cli/", "testing/")):
            hasher.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return hasher.hexdigest()


def content_key(*parts: str | bytes) -> str:
    """A key over parts, which are told apart by their lengths.

    >>> content_key("ab", "c") != content_key("a", "bc")
    True
    """
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()
