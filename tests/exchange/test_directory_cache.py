"""The cache of directories: whole or absent, bounded, and never taken from a live process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from capaft.exchange.directory_cache import DirectoryCache
from capaft.support.errors import TrainingError


def filled(size: int) -> Callable[[Path], None]:
    return lambda path: (path / "content").write_bytes(b"x" * size) and None


def refuse(_: Path) -> None:
    raise AssertionError("the directory is there")


def keys(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if not path.name.startswith(".")}


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".") and path.name not in (".lock", ".leases")]


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    for key in ("a", "b", "c"):
        cache = DirectoryCache(tmp_path, 300)
        assert (cache.get(key, filled(100)) / "content").stat().st_size == 100
        cache.close()
        time.sleep(0.02)
    cache.get("a", refuse)
    cache.close()
    cache.get("d", filled(150))
    assert keys(tmp_path) == {"a", "d"}
    assert not leftovers(tmp_path)


def test_what_this_process_was_given_stays(tmp_path: Path) -> None:
    cache = DirectoryCache(tmp_path, 250)
    first, second = cache.get("a", filled(100)), cache.get("b", filled(100))
    with pytest.raises(TrainingError, match=re.escape("no room for 100 more bytes: its limit is 250")):
        cache.get("c", filled(100))
    with pytest.raises(TrainingError, match="no room for 251 more bytes"):
        cache.get("d", filled(251))
    assert first.is_dir()
    assert second.is_dir()
    assert not leftovers(tmp_path)


HOLD = """
import sys
from pathlib import Path
from capaft.exchange.directory_cache import DirectoryCache
cache = DirectoryCache(Path(sys.argv[1]), 300)
for key in sys.argv[2:]:
    cache.get(key, lambda path: (path / "content").write_bytes(b"x" * 100))
print("held", flush=True)
sys.stdin.read()
"""


def holder(root: Path, *names: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_what_another_process_was_given_stays_until_it_dies(tmp_path: Path) -> None:
    process = holder(tmp_path, "a", "b")
    cache = DirectoryCache(tmp_path, 300)
    try:
        cache.get("c", filled(100))
        with pytest.raises(TrainingError, match="live processes hold the rest"):
            cache.get("d", filled(100))
    finally:
        process.kill()
        process.communicate()
    cache.get("d", filled(100))
    assert keys(tmp_path) == {"b", "c", "d"}
    assert len(list((tmp_path / ".leases").iterdir())) == 1


def test_a_directory_that_could_not_be_made_is_not_there(tmp_path: Path) -> None:
    cache = DirectoryCache(tmp_path, 300)

    def stop(path: Path) -> None:
        (path / "half").write_text("half")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        cache.get("a", stop)
    assert not keys(tmp_path)
    assert not leftovers(tmp_path)
    closed = tmp_path / "closed"
    closed.write_text("a file")
    with pytest.raises(TrainingError, match="cannot write"):
        DirectoryCache(closed, 300).get("a", refuse)


def test_what_a_killed_process_was_making_is_removed_in_the_end(tmp_path: Path) -> None:
    cache = DirectoryCache(tmp_path, 300)
    cache.get("a", filled(100))
    now, young = tmp_path / ".c.young", time.time() - 3600
    for path, age in ((tmp_path / ".b.old", 48 * 3600), (now, 3600)):
        path.mkdir()
        filled(100)(path)
        os.utime(path, (young, time.time() - age))
    os.utime(tmp_path / ".leases", (0, 0))
    cache.get("d", filled(100))
    assert leftovers(tmp_path) == [now.name]
    assert keys(tmp_path) == {"a", "d"}
    (lease,) = (tmp_path / ".leases").iterdir()
    for _ in range(3):
        cache.get("a", refuse)
    assert lease.read_text().split() == ["a", "d"]


def test_threads_and_processes_that_make_the_same(tmp_path: Path) -> None:
    cache, barrier, made = DirectoryCache(tmp_path, 10_000), threading.Barrier(4), []

    def make(path: Path) -> None:
        barrier.wait(5)
        made.append(path)
        (path / "content").write_bytes(b"x" * 100)

    threads = [threading.Thread(target=cache.get, args=("a", make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert keys(tmp_path) == {"a"}
    assert not leftovers(tmp_path)
    assert (tmp_path / "a" / "content").stat().st_size == 100
    (lease,) = (tmp_path / ".leases").iterdir()
    assert lease.name.startswith(f"{os.getpid()}-")
