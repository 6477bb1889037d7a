"""`condor/personal-pool`: a pool of one's own, as any user; two beside each other; nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.condor import NO_PACKAGES, PROGRAM, START_S, wait_until
from tests.servers.process import missing

pytestmark = pytest.mark.timeout(START_S)
SYSTEM = "/usr/bin/python3"


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix=f"mtp-{os.getpid()}-", dir="/tmp"))
    made.chmod(0o777)
    yield made
    personal_pool("stop", "--folder", str(made / "pool"))
    shutil.rmtree(made, ignore_errors=True)


def personal_pool(*args: str, before: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*before, str(PROGRAM), *args], env=os.environ | {"PYTHON": sys.executable} | env,
        capture_output=True, text=True, timeout=START_S,
    )  # fmt: skip
    if done.returncode == NO_PACKAGES:
        missing("HTCondor", done.stderr.strip()[-500:])
    return done


def inside(folder: Path, script: str, *before: str) -> str:
    """What a shell prints that has the pool's environment."""
    text = f'eval "$({PROGRAM} env --folder {folder}/pool)"; {script}'
    env = os.environ | {"PYTHON": SYSTEM}
    done = subprocess.run([*before, "bash", "-c", text], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def processes(folder: Path) -> list[str]:
    """Whose environment names the pool: its daemons and its jobs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{folder}/pool/".encode() in (process / "environ").read_bytes():
                found.append((process / "comm").read_text().strip())
    return found


JOB = """cd $(mktemp -d) && chmod 777 . && cat > job <<'END'
executable = /usr/bin/id
arguments = -un
output = out
log = log
queue
END
condor_submit -terse job >/dev/null && condor_wait -wait 60 log >/dev/null && cat out"""


def test_a_job_runs_and_nothing_is_left(folder):
    done = personal_pool("start", "--folder", str(folder / "pool"), "--cpus", "3")
    assert (done.returncode, "a pool of 3 cores runs in" in done.stderr) == (0, True), done.stderr
    assert done.stdout.startswith(f"export CONDOR_CONFIG={folder}/pool/condor_config\nexport PATH=")
    assert inside(folder, "condor_status -af TotalSlotCpus Machine").split()[0] == "3"
    assert inside(folder, JOB).strip() == ("nobody" if os.getuid() == 0 else os.environ.get("USER", ""))
    assert processes(folder)
    assert personal_pool("stop", "--folder", str(folder / "pool")).returncode == 0
    assert processes(folder) == []
    done = personal_pool("env", "--folder", str(folder / "pool"))
    assert (done.returncode, "`personal-pool start` starts one" in done.stderr) == (1, True)


def test_after_a_crash_stop_finds_what_is_left(folder):
    """Of a startd that was killed, the starter goes on with its job."""
    personal_pool("start", "--folder", str(folder / "pool"))
    inside(folder, "cd /tmp && printf 'executable=/bin/sleep\narguments=600\nqueue\n' | condor_submit")
    wait_until(lambda: "sleep" in processes(folder), "the job runs")
    master = int((folder / "pool/master.pid").read_text())
    children = subprocess.run(
        ["ps", "-o", "pid=,comm=", "--ppid", str(master)], capture_output=True, text=True
    )
    startd = next(line.split()[0] for line in children.stdout.splitlines() if "condor_startd" in line)
    for each in (master, int(startd)):
        os.kill(each, signal.SIGKILL)
    assert personal_pool("stop", "--folder", str(folder / "pool")).returncode == 0
    wait_until(lambda: processes(folder) == [], "its processes are gone", 5)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_any_user(folder):
    cache = personal_pool("fetch").stdout.strip()
    daemon = ("setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups")
    env = {"HOME": str(folder), "XDG_CACHE_HOME": str(Path(cache).parents[1]), "PYTHON": SYSTEM}
    done = personal_pool("start", "--folder", str(folder / "pool"), before=daemon, **env)
    assert done.returncode == 0, done.stderr
    assert inside(folder, JOB, *daemon).strip() == "daemon"


def test_a_port_that_is_taken(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = personal_pool("start", "--folder", str(folder / "pool"), "--port", str(taken.getsockname()[1]))
    assert (done.returncode, "is taken; choose another one" in done.stderr) == (1, True)


def test_a_path_that_is_too_long(tmp_path):
    done = personal_pool("start", "--folder", str(tmp_path / ("x" * 60)))
    assert (done.returncode, "too long for the daemons' sockets" in done.stderr) == (1, True)


@pytest.mark.skipif(os.getuid() != 0, reason="of root's pools only")
def test_a_folder_that_nobody_can_enter(folder):
    (folder / "closed").mkdir(mode=0o700)
    done = personal_pool("start", "--folder", str(folder / "closed/pool"))
    assert (done.returncode, "can't enter" in done.stderr) == (1, True), done.stderr


def test_no_packages_here(folder):
    """Another suite than any there is: as without network."""
    done = subprocess.run(
        [str(PROGRAM), "fetch", "--suite", "nosuch"], capture_output=True, text=True, timeout=START_S,
        env=os.environ | {"XDG_CACHE_HOME": str(folder), "PYTHON": sys.executable},
    )  # fmt: skip
    assert (done.returncode, "apt-get" in done.stderr) == (NO_PACKAGES, True), done.stderr
    assert not list(folder.glob("mtask/*/complete"))


def test_fetched_into_an_empty_cache(folder):
    env = {"XDG_CACHE_HOME": str(folder / "cache")}
    done = personal_pool("fetch", **env)
    assert (done.returncode, done.stdout.strip()) == (0, f"{folder}/cache/mtask/condor-forky"), done.stderr
    done = personal_pool("start", "--folder", str(folder / "pool"), **env)
    assert (done.returncode, "fetching" in done.stderr) == (0, False), done.stderr
    assert f"{folder}/cache/mtask/condor-forky/root/usr/bin" in done.stdout
