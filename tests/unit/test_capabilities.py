"""What a worker finds that its machine has, and what of it a task finds in its environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mtask.requirements import Capabilities
from mtask.worker.capabilities import cpus_of_machine, found
from mtask.worker.environment import THREAD_LIMITS, environment_of
from mtask.worker.options import Options
from mtask.worker.room import Share

GB = 10**9
NO_LIMIT_V1 = "9223372036854771712"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GPUs, no limits of threads, and 8 CPUs."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", *THREAD_LIMITS):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    cpus_of_machine.cache_clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """In place of `/`, with 16 GB."""
    write(
        tmp_path / "root", {"proc/meminfo": "MemFree: 5 kB\nMemTotal:       16000000 kB\nSwapTotal: 9 kB\n"}
    )
    return tmp_path / "root"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def machine(root: Path = Path("/"), **options: Any) -> Capabilities:
    return found(Options(**options), root=root)


# -- what it was told -------------------------------------------------------------------------------


def test_what_a_worker_is_told_goes_before_what_it_finds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    told = machine(root, slots=2, cpus=0.5, memory_bytes=GB, gpus=("7",), tags=("eu",))
    assert told == Capabilities(cpus=0.5, memory_bytes=GB, gpus=("7",), tags=("eu",))
    assert machine(root, gpus=()).gpus == (), "told that it has none"
    assert machine(root, memory_bytes=0).memory_bytes == 0


def test_each_slot_is_one_cpu_whatever_the_machine_has(root: Path) -> None:
    assert machine(root, slots=3).cpus == 3
    assert machine(root, slots=20).cpus == 20


# -- CPUs -------------------------------------------------------------------------------------------

CPU_GROUPS = {
    "none": ({}, 8),
    "v2, no quota": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
    "v2, in a container": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
    "v2, less than one": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
    "v2, more than there are": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "990000 10000\n"}, 8),
    "v2, of the group around": (
        {
            "proc/self/cgroup": "0::/user.slice/job.scope\n",
            "sys/fs/cgroup/user.slice/job.scope/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user.slice/cpu.max": "300000 100000\n",
        },
        3,
    ),
    "v1": (
        {
            "proc/self/cgroup": "5:cpuacct,cpu:/docker/abc\n4:memory:/docker/abc\n",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "v1, in a container that /proc names as it is outside": (
        {
            "proc/self/cgroup": "4:cpu:/docker/abc\n0::/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "600000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        6,
    ),
}


@pytest.mark.parametrize("kind", CPU_GROUPS)
def test_cpus_are_those_it_may_use_within_its_quota(root: Path, kind: str) -> None:
    files, cpus = CPU_GROUPS[kind]
    write(root, files)
    assert cpus_of_machine(root) == cpus


def test_on_this_machine_something_is_found() -> None:
    assert 1 <= cpus_of_machine() <= 8
    assert machine().memory_bytes > 10**8


# -- memory -----------------------------------------------------------------------------------------

MEMORY_GROUPS = {
    "none": ({}, 16_384_000_000),
    "v2, no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 16_384_000_000),
    "v2, in a container": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{GB}\n"}, GB),
    "v2, the least of those around": (
        {
            "proc/self/cgroup": "0::/a/b/c\n",
            "sys/fs/cgroup/a/b/c/memory.max": f"{5 * GB}\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/memory.max": f"{3 * GB}\n",
        },
        3 * GB,
    ),
    "v2, outside of its namespace": (
        {"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/memory.max": f"{GB}\n"},
        GB,
    ),
    "v1": (
        {
            "proc/self/cgroup": "7:cpu:/other\n4:memory:/a\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{2 * GB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{NO_LIMIT_V1}\n",
            "sys/fs/cgroup/memory/other/memory.limit_in_bytes": "1\n",
        },
        2 * GB,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{NO_LIMIT_V1}\n",
        },
        16_384_000_000,
    ),
}


@pytest.mark.parametrize("kind", MEMORY_GROUPS)
def test_memory_is_that_of_the_machine_or_of_the_container(root: Path, kind: str) -> None:
    files, size_bytes = MEMORY_GROUPS[kind]
    write(root, files)
    assert machine(root).memory_bytes == size_bytes


def test_where_nothing_tells_there_is_no_memory_to_reserve(tmp_path: Path) -> None:
    assert machine(tmp_path / "empty").memory_bytes == 0


# -- GPUs -------------------------------------------------------------------------------------------


def fake_nvidia_smi(tmp_path: Path, script: str) -> None:
    program = tmp_path / "bin/nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("0", ("0",)),
        ("2,3", ("2", "3")),
        (" 1 , 0 ", ("1", "0")),
        ("GPU-8932f937-d72c,MIG-5c89", ("GPU-8932f937-d72c", "MIG-5c89")),
        ("", ()),
        ("-1", ()),
        ("0,2,-1,1", ("0", "2")),
        ("1,1", ("1",)),
        ("NoDevFiles", ()),
        ("10000", ()),
    ],
)
def test_gpus_are_those_that_cuda_would_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, gpus: tuple[str, ...]
) -> None:
    fake_nvidia_smi(tmp_path, "echo 5")
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        with monkeypatch.context() as patch:
            patch.setenv(name, text)
            assert machine().gpus == gpus


def test_gpus_that_rocr_lets_through_are_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "4,GPU-deadbeef,6")
    assert machine().gpus == ("0", "1", "2")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "2")
    assert machine().gpus == ("2",)


def test_gpus_are_asked_for_where_the_environment_tells_none(tmp_path: Path) -> None:
    """No machine with a GPU was at hand: a script takes the place of the driver's program."""
    fake_nvidia_smi(
        tmp_path, '[ "$*" = "--query-gpu=index --format=csv,noheader" ] && printf "0\\n1\\n10\\n"'
    )
    assert machine().gpus == ("0", "1", "10")


@pytest.mark.parametrize(
    "script",
    [
        "echo 0; echo broken >&2; exit 9",
        "echo 'No devices were found'",
        "printf '\\377'",
        "exec sleep 60",
        None,
    ],
)
def test_a_driver_that_doesnt_work_is_no_gpu_and_no_trouble(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    script: str | None,
) -> None:
    """As above, with scripts."""
    monkeypatch.setattr("mtask.worker.capabilities.ASK_GPUS_S", 0.2)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin:/usr/bin" if script else f"{tmp_path}/bin")
    if script is not None:
        fake_nvidia_smi(tmp_path, script)
    assert machine().gpus == ()
    assert capfd.readouterr() == ("", "")


# -- what a task is told ----------------------------------------------------------------------------


def test_a_task_is_told_its_share() -> None:
    share = Share(1.5, 2 * GB, ("3", "1"))
    told = environment_of(share, Capabilities(cpus=8, memory_bytes=4 * GB, gpus=("1", "2", "3")))
    assert (told["MTASK_CPUS"], told["MTASK_GPUS"], told["MTASK_MEMORY"]) == ("1.5", "3,1", "2000000000")
    assert (told["CUDA_VISIBLE_DEVICES"], told["HIP_VISIBLE_DEVICES"]) == ("3,1", "3,1")
    assert "ROCR_VISIBLE_DEVICES" not in told


def test_a_task_that_asks_for_no_gpu_sees_none_of_another_s() -> None:
    told = environment_of(Share(1.0), Capabilities(cpus=8, gpus=("0", "1")))
    assert (told["CUDA_VISIBLE_DEVICES"], told["HIP_VISIBLE_DEVICES"]) == ("", "-1")
    assert (told["MTASK_GPUS"], told["MTASK_MEMORY"]) == ("", "")


def test_where_there_are_no_gpus_nothing_is_hidden() -> None:
    told = environment_of(Share(1.0), Capabilities(cpus=8))
    assert not {"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"} & told.keys()


def test_a_worker_within_a_task_without_gpus_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_of(Share(1.0), Capabilities(cpus=8, gpus=("0", "1"))).items():
        monkeypatch.setenv(name, value)
    assert machine().gpus == ()


@pytest.mark.parametrize(
    ("worker_cpus", "task_cpus", "threads"),
    [
        (1, 1, 8),
        (8, 1, 1),
        (3, 1, 2),
        (2, 2, 8),
        (16, 1, 1),
        (8, 2.5, 2),
        (8, 0.1, 1),
        (0.8, 0.3, 3),
        (32, 8, 2),
    ],
)
def test_all_tasks_together_start_as_many_threads_as_there_are_cpus(
    worker_cpus: float, task_cpus: float, threads: int
) -> None:
    told = environment_of(Share(task_cpus), Capabilities(cpus=worker_cpus))
    assert {told[name] for name in THREAD_LIMITS} == {str(threads)}


def test_a_task_on_its_own_cores_has_no_more_threads_than_these() -> None:
    told = environment_of(Share(1.0, cores=(3,)), Capabilities(cpus=1))
    assert told["OMP_NUM_THREADS"] == "1"


def test_a_limit_of_threads_that_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    told = environment_of(Share(1.0), Capabilities(cpus=8))
    assert "OMP_NUM_THREADS" not in told
    assert told["MKL_NUM_THREADS"] == "1"


def test_a_task_with_nothing_special_finds_nothing_special() -> None:
    assert environment_of(None, Capabilities(cpus=8, gpus=("0",))) == {}
