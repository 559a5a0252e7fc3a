import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tinycomp.config import Config
from tinycomp.runtime import bulk
from tinycomp.runtime.cache import Cache, atomic_path, content_key, source_digest


def test_get_returns_what_was_put(tmp_path):
    cache = Cache(tmp_path)
    key = content_key("kernel", b"\0\1")
    assert cache.get(key) is None
    cache.put(key, b"object")
    assert cache.get(key) == b"object"


def test_damaged_entries_are_ignored_and_rewritten(tmp_path):
    cache = Cache(tmp_path)
    key = content_key("k")
    for damage in (b"", b"garbage", None):
        cache.put(key, b"payload" * 10)
        path = cache.path(key)
        stored = bytearray(path.read_bytes())
        stored[-1] ^= 1
        path.write_bytes(bytes(stored) if damage is None else damage)
        assert cache.get(key) is None
        assert not path.exists()
    cache.put(key, b"again")
    assert cache.get(key) == b"again"


def test_least_recently_used_entries_go_first(tmp_path):
    cache = Cache(tmp_path, limit_bytes=2500)
    keys = [content_key(str(i)) for i in range(3)]
    for age, key in enumerate(keys):
        cache.put(key, bytes(1000))
        os.utime(cache.path(key), (1000 + age, 1000 + age))
    assert cache.get(keys[0]) is not None  # used just now
    cache.evict()
    assert [cache.get(k) is not None for k in keys] == [True, False, True]


def test_switched_off_or_unwritable_is_silent(tmp_path):
    off = Cache.from_config(Config.from_environment({"TINYCOMP_CACHE": "0"}))
    off.put("abcd", b"x")
    assert off.get("abcd") is None
    assert off.entries() == []
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    cache = Cache(blocked)
    cache.put("abcd", b"x")
    assert cache.get("abcd") is None


def test_atomic_path_leaves_nothing_behind_on_failure(tmp_path):
    target = tmp_path / "out"
    target.write_text("old")
    try:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_two_processes_share_a_folder(tmp_path):
    script = (
        "import sys; from pathlib import Path; from tinycomp.runtime.cache import Cache\n"
        "cache = Cache(Path(sys.argv[1]), 3000)\n"
        "for i in range(200):\n"
        "    key = f'{i % 7:04x}'; cache.put(key, key.encode() * 200); cache.evict()\n"
        "    found = cache.get(key); assert found in (None, key.encode() * 200), found\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 0, errors.decode()


def test_keys_depend_on_every_part():
    assert content_key("a", "b") != content_key("ab")
    assert content_key("a", "b") != content_key("b", "a")
    assert len(source_digest()) == 64


def test_configuration_from_the_environment():
    config = Config.from_environment({"TINYCOMP_CACHE_DIR": "/x/y", "TINYCOMP_CACHE_LIMIT": "2"})
    assert config.cache_dir == Path("/x/y")
    assert config.cache_limit_bytes == 2 << 20
    assert Config.from_environment({"XDG_CACHE_HOME": "/h"}).cache_dir == Path("/h/tinycomp")


def test_hashes_of_large_data_are_trees():
    data = bytes(range(256)) * (3 * bulk.PIECE // 512)
    small = data[: bulk.PIECE]
    assert bulk.digest(small) == hashlib.sha256(small).digest()
    found = {bulk.digest(data)}
    for position in (0, bulk.PIECE, len(data) - 1):
        changed = bytearray(data)
        changed[position] ^= 1
        found.add(bulk.digest(changed))
    found.add(bulk.digest(data[:-1]))
    assert len(found) == 5
    target = np.zeros(len(data), np.uint8)
    bulk.copy(target, np.frombuffer(data, np.uint8))
    assert target.tobytes() == data
