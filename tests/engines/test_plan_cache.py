"""The plan cache as an attacker, a crash and a second process meet it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from styleclip_rt.engines.errors import EngineError
from styleclip_rt.engines.plan_cache import PlanCache, Refused, default_folder

KEY = {
    "gpu": "Test GPU",
    "sm": "8.9",
    "driver": "580.1",
    "library": "TensorRT 11.4",
    "graph": "ab" * 32,
    "batches": (1, 2),
}
PLAN = bytes(range(256)) * 40

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes and signals of POSIX")


@pytest.fixture
def cache(tmp_path):
    return PlanCache(tmp_path / "plans")


def never():
    raise AssertionError("built although it stood in the cache")


def mode(path):
    return path.stat().st_mode & 0o777


def test_a_plan_is_built_once_and_read_by_a_later_process(cache):
    assert cache.get_or_build(KEY, lambda: PLAN) == PLAN
    assert PlanCache(cache.folder).get_or_build(KEY, never) == PLAN
    assert (mode(cache.folder), mode(cache.folder / "key"), mode(cache.path(KEY))) == (0o700, 0o600, 0o600)


@pytest.mark.parametrize("field", sorted(KEY))
def test_any_other_field_is_another_plan(cache, field):
    cache.put(KEY, PLAN)
    assert cache.get({**KEY, field: "another"}) is None


def test_a_plan_under_the_name_of_another_is_not_taken(cache):
    other = {**KEY, "driver": "570.0"}
    cache.put(other, PLAN)
    os.replace(cache.path(other), cache.path(KEY))
    assert cache.get(KEY) is None


def test_no_flipped_byte_is_ever_accepted(cache):
    cache.put(KEY, PLAN)
    path, good = cache.path(KEY), cache.path(KEY).read_bytes()
    spots = [*range(200), *range(200, len(good), 499), len(good) - 1]
    for spot in spots:
        bad = bytearray(good)
        bad[spot] ^= 0x10
        path.write_bytes(bad)
        assert cache.get(KEY) is None, spot
    assert cache.get_or_build(KEY, lambda: b"new") == b"new"
    assert cache.get(KEY) == b"new"


@pytest.mark.parametrize("cut", [0, 5, 30, 60, 100, -1])
def test_a_plan_cut_short_or_grown_is_built_again(cache, cut):
    cache.put(KEY, PLAN)
    path = cache.path(KEY)
    good = path.read_bytes()
    path.write_bytes(good[:cut])
    assert cache.get(KEY) is None
    path.write_bytes(good + b"\0")
    assert cache.get(KEY) is None


def test_a_plan_of_another_machine_is_not_taken(cache, tmp_path):
    other = PlanCache(tmp_path / "other")
    other.put(KEY, PLAN)
    cache.path(KEY).write_bytes(other.path(KEY).read_bytes())
    cache.path(KEY).chmod(0o600)
    assert cache.get(KEY) is None


def test_a_link_or_a_file_open_to_others_is_not_taken(cache, tmp_path):
    cache.put(KEY, PLAN)
    path = cache.path(KEY)
    path.chmod(0o644)
    assert cache.get(KEY) is None
    path.chmod(0o600)
    assert cache.get(KEY) == PLAN
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert cache.get(KEY) is None


def test_a_folder_open_to_others_is_refused_with_the_way_out(tmp_path):
    folder = tmp_path / "plans"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(EngineError, match=r"native code.*chmod 700"):
        PlanCache(folder)
    folder.chmod(0o700)
    PlanCache(folder)
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(EngineError, match="must be a folder of yours"):
        PlanCache(link)


def test_a_key_open_to_others_or_of_another_size_is_refused(cache):
    key = cache.folder / "key"
    key.chmod(0o644)
    with pytest.raises(EngineError, match="may be written or read by others"):
        PlanCache(cache.folder)
    key.chmod(0o600)
    key.write_bytes(b"short")
    with pytest.raises(EngineError, match="has 5 bytes, expected 32"):
        PlanCache(cache.folder)


def test_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"cannot be made .*STYLECLIP_RT_HOME"):
        PlanCache(tmp_path / "file/plans")


def test_a_build_that_fails_leaves_nothing(cache):
    def fail():
        raise EngineError("no")

    with pytest.raises(EngineError, match=r"^no$"):
        cache.get_or_build(KEY, fail)
    assert cache.get(KEY) is None
    assert cache.get_or_build(KEY, lambda: PLAN) == PLAN


def test_a_full_disk_costs_the_cache_not_the_run(cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"not kept in .*No space left"):
        assert cache.get_or_build(KEY, lambda: PLAN) == PLAN
    assert sorted(path.suffix for path in cache.folder.iterdir()) == ["", ".lock"]


def test_a_plan_found_wrong_is_not_built_again_at_every_start(cache):
    def refuse():
        raise Refused("PSNR 12 dB")

    with pytest.raises(Refused, match=r"^PSNR 12 dB$"):
        cache.get_or_build(KEY, refuse)
    with pytest.raises(Refused, match=r"^PSNR 12 dB \(as found before; remove .*\.plan"):
        cache.get_or_build(KEY, never)
    cache.path(KEY).unlink()
    assert cache.get_or_build(KEY, lambda: PLAN) == PLAN


def test_eight_threads_build_once(cache):
    built, together = [], threading.Barrier(8)

    def build():
        built.append(1)
        return PLAN

    def work(_):
        together.wait()
        return PlanCache(cache.folder).get_or_build(KEY, build)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(8))) == {PLAN}
    assert len(built) == 1


CHILD = """
import sys, time
from pathlib import Path
from styleclip_rt.engines.plan_cache import PlanCache
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
def build():
    with log.open("a") as file:
        file.write("built\\n")
    time.sleep(float(sys.argv[3]))
    return b"plan" * 1000
print("ready", flush=True)
plan = PlanCache(folder).get_or_build({"graph": "x"}, build)
print(len(plan), flush=True)
"""


def start(folder, log, seconds):
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(folder), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_that_start_together_build_once(tmp_path):
    log = tmp_path / "log"
    children = [start(tmp_path / "plans", log, 1.0) for _ in range(2)]
    outputs = [child.communicate(timeout=60)[0].split() for child in children]
    assert outputs == [["ready", "4000"]] * 2
    assert log.read_text() == "built\n"


def test_a_build_that_is_killed_leaves_no_plan_and_no_lock(tmp_path):
    folder, log = tmp_path / "plans", tmp_path / "log"
    child = start(folder, log, 600)
    while not log.exists():
        assert child.poll() is None
        threading.Event().wait(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=60)
    child.stdout.close()
    assert list(folder.glob("*.plan")) == []
    left = folder / f".{PlanCache._digest({'graph': 'x'})}.killed.tmp"
    left.write_bytes(b"half a plan")
    assert PlanCache(folder).get_or_build({"graph": "x"}, lambda: PLAN) == PLAN
    assert not left.exists()


def test_the_longest_unused_plans_go_first(tmp_path):
    cache = PlanCache(tmp_path / "plans", max_bytes=3 * len(PLAN))
    keys = [{"graph": str(i)} for i in range(4)]
    for age, key in enumerate(keys[:2]):
        cache.put(key, PLAN)
        os.utime(cache.path(key), (1000 + age, 1000 + age))
    assert cache.get(keys[0]) == PLAN  # used just now
    cache.get_or_build(keys[2], lambda: PLAN)
    assert [cache.get(key) is not None for key in keys[:3]] == [True, False, True]
    cache.get_or_build(keys[3], lambda: PLAN * 4)  # too large by itself: kept, alone
    assert [cache.get(key) is not None for key in keys] == [False, False, False, True]


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("STYLECLIP_RT_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "plans"
    monkeypatch.delenv("STYLECLIP_RT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "styleclip-rt/plans"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache/styleclip-rt/plans"
