from __future__ import annotations

import os

import pytest

from styleclip_rt.engines.cpu import physical_cores, thread_count
from styleclip_rt.engines.errors import InputError


@pytest.fixture
def four_cpus(tmp_path, monkeypatch):
    """A machine of two cores with two threads each."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    (tmp_path / "sys/fs/cgroup/cpu").mkdir(parents=True)
    return tmp_path


def test_hyper_threads_are_not_cores(four_cpus):
    assert physical_cores(four_cpus) == 2


def test_without_topology_every_cpu_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 9}, raising=False)
    assert physical_cores(tmp_path) == 3


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("bad", 2)])
def test_the_quota_of_a_container_caps_it(four_cpus, quota, cores):
    (four_cpus / "sys/fs/cgroup/cpu.max").write_text(quota + "\n")
    assert physical_cores(four_cpus) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 2), ("100000", 1)])
def test_the_quota_of_cgroup_version_1(four_cpus, quota, cores):
    (four_cpus / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").write_text(quota)
    (four_cpus / "sys/fs/cgroup/cpu/cpu.cfs_period_us").write_text("100000")
    assert physical_cores(four_cpus) == cores


def test_the_default_is_at_least_one(monkeypatch):
    monkeypatch.delenv("STYLECLIP_RT_THREADS", raising=False)
    assert thread_count() >= 1


@pytest.mark.parametrize("threads", [0, -1, 2000, 1.5, True])
def test_a_bad_number_is_refused(threads):
    with pytest.raises(InputError, match="expected a whole number from 1 to 1024"):
        thread_count(threads)


@pytest.mark.parametrize("text", ["zero", "0", "-2", "9" * 99, "²"])
def test_a_bad_variable_is_refused_by_its_name(monkeypatch, text):
    monkeypatch.setenv("STYLECLIP_RT_THREADS", text)
    with pytest.raises(InputError, match="STYLECLIP_RT_THREADS is"):
        thread_count()
