"""mtask as a node of other pipelines: real ones, ended and begun again."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.conftest import signals_as_usual
from tests.servers.condor import wait_until
from tests.servers.process import missing

LIMIT_S = 110
MAKEFILE = Path(__file__).parents[2] / "examples/pipelines/Makefile"
SNAKEFILE = MAKEFILE.with_name("Snakefile")
DAGMAN = Path(__file__).parents[2] / "condor/dagman"
PEGASUS = Path(__file__).parents[2] / "condor/pegasus"
TASKS = "id,x\n" + "".join(f"t{at},{at}\n" for at in range(6))
# It fails where there is a file `bad`, and waits where there is a file `wait`.
PROGRAM = """#!/bin/sh
echo "$1" >> ran
test "$1" != 3 || test ! -e bad || exit 3
while test "$1" = 4 && test -e wait; do sleep 0.02; done
echo $(($1 * $1))
"""


@pytest.fixture
def node(command):
    """A folder with a task file and a program; `mtask` on the path is this one."""
    command.write("tasks.csv", TASKS)
    command.write("square", PROGRAM).chmod(0o755)
    return command


def environment() -> dict[str, str]:
    """With `mtask` of this interpreter; what runs it has an interpreter of its own."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        args, cwd=folder, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def squares(folder: Path) -> dict[str, str]:
    with open(folder / "results.csv", newline="") as file:
        return {row["id"]: row["stdout"].strip() for row in csv.DictReader(file)}


SQUARES = {f"t{at}": str(at * at) for at in range(6)}


@pytest.fixture(params=["make", "snakemake"])
def pipeline(request: pytest.FixtureRequest, node) -> list[str]:
    """The command that makes results.csv."""
    if request.param == "make":
        if shutil.which("make") is None:
            missing("make", "it is in every distribution")
        node.write("Makefile", MAKEFILE.read_text())
        return ["make", "--no-print-directory"]
    program = request.getfixturevalue("snakemake")
    node.write("Snakefile", SNAKEFILE.read_text())
    return [program, "--cores", "2", "--rerun-incomplete", "--quiet", "progress"]


def test_a_pipeline_makes_its_results_once(node, pipeline):
    first = run(node.folder, *pipeline)
    assert (first.returncode, squares(node.folder)) == (0, SQUARES), first.stderr
    assert json.loads(node.read("summary.json"))["done"] == 6
    assert run(node.folder, *pipeline).returncode == 0
    assert len(node.read("ran").splitlines()) == 6


def test_a_failed_pipeline_does_only_the_rest_again(node, pipeline):
    node.write("bad", "")
    failed = run(node.folder, *pipeline)
    assert failed.returncode != 0
    assert not (node.folder / "results.csv").exists()
    assert run(node.folder, *pipeline).returncode != 0
    (node.folder / "bad").unlink()
    mended = run(node.folder, *pipeline)
    assert (mended.returncode, squares(node.folder)) == (0, SQUARES), mended.stderr
    assert sorted(node.read("ran").split()) == ["0", "1", "2", "3", "3", "3", "4", "5"]


def test_an_interrupted_pipeline_goes_on(node, pipeline):
    node.write("wait", "")
    process = subprocess.Popen(
        pipeline,
        cwd=node.folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=signals_as_usual,
    )
    try:
        end_s = time.monotonic() + LIMIT_S
        while not (node.folder / "ran").exists() or "4" not in node.read("ran"):
            assert time.monotonic() < end_s
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        (node.folder / "wait").unlink()  # the task may end within the grace
        assert process.wait(LIMIT_S) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if pipeline[0] != "make":
        run(node.folder, pipeline[0], "--unlock")
    again = run(node.folder, *pipeline)
    assert (again.returncode, squares(node.folder)) == (0, SQUARES), again.stderr
    assert all(node.read("ran").split().count(x) <= 2 for x in "012345")


def test_new_tasks_are_a_new_bag(node, pipeline):
    assert run(node.folder, *pipeline).returncode == 0
    time.sleep(0.02)  # make compares the times of files
    node.write("tasks.csv", TASKS + "t6,6\n")
    changed = run(node.folder, *pipeline)
    assert (changed.returncode, squares(node.folder)) == (0, SQUARES | {"t6": "36"}), changed.stderr


# With 7, it fails often enough to fail the node: once, and with three retries.
EXPR = """#!/bin/sh
echo "$1" >> ran
test "$1" != 7 || test "$(grep -c '^7$' ran)" -gt 4 || exit 3
exec /usr/bin/expr "$@"
"""


@pytest.mark.timeout(600)
def test_dagman_runs_a_node_again_that_failed(pool):
    """The other 99 tasks aren't run again; the node after it looks at the results."""
    folder = pool.folder / f"dag-{os.urandom(4).hex()}"
    (folder / "bin").mkdir(parents=True)
    for path in DAGMAN.iterdir():
        shutil.copy(path, folder)
    for name, text in (("mtask", f'#!/bin/sh\nexec {pool.python} -m mtask "$@"\n'), ("expr", EXPR)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    for path in (folder, folder / "bin"):
        path.chmod(0o777)
    env = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(pool.packages("click", "rich", "pygments", "markdown_it", "mdurl")),
    }
    subprocess.run(["condor_submit_dag", "squares.dag"], cwd=folder, env=env, check=True, timeout=LIMIT_S)
    log = folder / "squares.dag.dagman.out"
    wait_until(lambda: log.exists() and "EXITING WITH STATUS" in log.read_text(), "the DAG has ended", 300)
    said = {path.name: path.read_text() for path in folder.glob("*.err")} | {
        "dagman": log.read_text()[-3000:]
    }
    assert "EXITING WITH STATUS 0" in log.read_text(), said
    assert Counter((folder / "ran").read_text().split()) == {
        str(x): 5 if x == 7 else 1 for x in range(1, 101)
    }
    with open(folder / "results.csv", newline="") as file:
        assert [int(row["stdout"]) for row in csv.DictReader(file)] == [x * x for x in range(1, 101)]


# -- Pegasus ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "tasks", "content"),
    [
        ("pmc", "TASK a /bin/echo a\nTASK b /bin/echo b\nEDGE a b\n", True),
        ("pmc", "TASK a -t 3 /bin/sh -c 'echo x >> tried; test $(wc -l < tried) = 3'\n", True),
        ("pmc", "TASK a /bin/echo a\nTASK b /bin/false\n", False),
        ("pmc", "# none\n", True),
        ("seqexec", "/bin/echo a\n/bin/echo b\n", True),
        ("seqexec", "/bin/echo a\n/bin/false\n", False),
    ],
)
def test_pegasus_exitcode_is_content(command, pegasus, verb, tasks, content):
    """The real pegasus-exitcode, also when a run had nothing left to do."""
    command.write("merge.in", tasks)
    for _ in range(2):
        out = command.process(verb, "merge.in").out
        command.write("job.out", out)
        done = run(command.folder, pegasus, "-m", "Pegasus.cli.pegasus-exitcode", "--no-rename", "job.out")
        assert (done.returncode == 0) == content, done.stdout + done.stderr


@pytest.mark.parametrize(("aggregator", "verb"), [("mpiexec", "pmc"), ("seqexec", "seqexec")])
def test_the_catalogues_are_those_of_pegasus(command, pegasus, aggregator, verb):
    """Pegasus' API writes them; and what they call is `mtask`, which does the tasks of a clustered job."""
    program = f"{sys.executable} -m mtask"
    made = run(
        command.folder, pegasus, str(PEGASUS / "workflow.py"), "--mtask", program, "--aggregator", aggregator
    )
    assert made.returncode == 0, made.stderr
    catalogue = command.read("transformations.yml")
    wrapper = command.folder / f"mtask-{verb}"
    assert f"namespace: pegasus\n  name: {aggregator}\n" in catalogue
    assert f"pfn: {wrapper}\n" in catalogue
    assert f"pegasus.clusterer.job.aggregator = {aggregator}" in command.read("pegasus.properties")
    tasks = "TASK a /bin/echo a\n" if verb == "pmc" else "/bin/echo a\n"
    command.write("merge_wc_PID1_ID1.in", tasks)
    done = run(command.folder, str(wrapper), "merge_wc_PID1_ID1.in")
    assert (done.returncode, done.stdout.startswith("a\n[cluster-task ")) == (0, True)


def test_the_sample_of_a_clustered_job(command):
    for path in PEGASUS.iterdir():
        if path.is_file():
            shutil.copy(path, command.folder)
    code, out, _ = command.process("pmc", "merge_wc_PID1_ID1.in")
    assert (code, "both are counted\n[cluster-task id=3, name=cat_ID0000003," in out) == (0, True)
