"""`mtask pmc` and `mtask seqexec`: in the place of pegasus-mpi-cluster and pegasus-cluster."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

import mtask
from mtask.cli.common import Whole
from mtask.start import import_msgspec

__all__ = ["pmc", "seqexec"]

BAD_OPTION = 1
"""The exit status of pegasus-cluster, where other verbs have 2."""


class Minutes(click.ParamType[float]):
    """More than 0."""

    name = "minutes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            minutes = float(value)
        except ValueError:
            minutes = 0.0
        if not 0 < minutes < 1e9:
            self.fail(f"{value!r} is not a number of minutes, more than 0", param, ctx)
        return minutes


@click.command()
@click.argument("dag", metavar="DAG", type=click.Path())
@click.option(
    "-j", "--slots", type=Whole(1), metavar="N", help="Most tasks that run at a time.  [default: CPUs]"
)
@click.option(
    "--host-cpus",
    type=Whole(1),
    envvar="PMC_HOST_CPUS",
    metavar="N",
    help="CPUs for tasks.  [default: PMC_HOST_CPUS; the HTCondor slot's; the machine's]",
)
@click.option(
    "--host-memory",
    "host_memory_mb",
    type=Whole(1),
    envvar="PMC_HOST_MEMORY",
    metavar="MB",
    help="Memory for tasks, in MiB.  [default: PMC_HOST_MEMORY; the HTCondor slot's; the machine's]",
)
@click.option("--strict-limits", is_flag=True, help="A task can't get more memory than it asks for.")
@click.option(
    "--max-wall-time",
    "max_wall_min",
    type=Minutes(),
    envvar="PMC_MAX_WALL_TIME",
    metavar="MIN",
    help="Stop after so many minutes.  [default: PMC_MAX_WALL_TIME; never]",
)
@click.option(
    "-m",
    "--max-failures",
    type=Whole(0),
    default=0,
    metavar="N",
    help="Start nothing more when N tasks have failed.  [default: 0, any number]",
)
@click.option(
    "-t",
    "--tries",
    type=Whole(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Try a task N times, if it doesn't say.",
)
@click.option(
    "-r", "--rescue", type=click.Path(), metavar="PATH", help="The rescue file.  [default: DAG.rescue]"
)
@click.option("-s", "--skip-rescue", is_flag=True, help="Do all tasks, also those done before.")
@click.option("-o", "--stdout", type=click.Path(), metavar="PATH", help="Where what tasks print goes.")
@click.option(
    "-e", "--stderr", type=click.Path(), metavar="PATH", help="Likewise, what they print as errors."
)
@click.option("--per-task-stdio", is_flag=True, help="To files of each attempt: NAME.out.000, NAME.err.000.")
@click.option("-n", "--nolock", is_flag=True, help="Don't lock the DAG against another run.")
@click.option(
    "--host-script",
    type=click.Path(),
    envvar="PMC_HOST_SCRIPT",
    metavar="PATH",
    help="Run this before; what it leaves running is ended after.  [default: PMC_HOST_SCRIPT]",
)
@click.option("--set-affinity", is_flag=True, help="Keep tasks of several CPUs on CPUs of their own.")
@click.option("--jobstate-log", is_flag=True, help="Write jobstate.log beside the DAG.")
@click.option("--monitord-hack", is_flag=True, help="Write DAG.dagman.out; with --per-task-stdio.")
@click.option("--no-resource-log", is_flag=True, help="Don't write DAG.resource.")
@click.option("-v", "--verbose", count=True, help="Say more; -vv still more.")
@click.option("-q", "--quiet", count=True, help="Say less.")
@click.option("--keep-affinity", is_flag=True, hidden=True)  # it is always kept
@click.option("--no-sleep-on-recv", is_flag=True, hidden=True)  # there is no MPI
@click.option("--maxfds", type=Whole(1), hidden=True)  # no file is kept open
@click.version_option(mtask.__version__, "-V", "--version", prog_name="mtask")
def pmc(dag: str, **given: Any) -> int:
    """Run a DAG of tasks on this host, like pegasus-mpi-cluster.

    DAG is a file of `TASK id [options] program argument…` and `EDGE parent child`. No task starts before all
    of its parents are done, and never more of them at a time than the host has CPUs and memory for. What each
    prints comes out whole when it ends, with a `cluster-task` record; a `cluster-summary` comes last.

    Interrupted, killed, or with failed tasks, it goes on by the same command: tasks that are done are in the
    rescue file.

    Exit status: 0 all tasks done, 1 not all, 2 wrong usage or DAG, 130 stopped by a signal.
    """
    import_msgspec()
    from mtask.errors import UsageError
    from mtask.pipelines.pmc import Options, run_dag

    if given["set_affinity"] and given["host_cpus"] is not None:
        raise UsageError("--set-affinity works with the CPUs that there are: leave out --host-cpus")
    for name in ("keep_affinity", "no_sleep_on_recv", "maxfds"):
        del given[name]
    return run_dag(
        Options(
            dag=dag,
            lock=not given.pop("nolock"),
            resource_log=not given.pop("no_resource_log"),
            max_wall_s=60 * (given.pop("max_wall_min") or 0.0),
            verbosity=given.pop("verbose") - given.pop("quiet"),
            **given,
        )
    )


class _BadOptionError(click.UsageError):
    exit_code = BAD_OPTION


class _OfPegasus(click.Command):
    """Wrong usage has pegasus-cluster's exit status."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise _BadOptionError(error.format_message(), ctx) from None


@click.command(cls=_OfPegasus)
@click.argument("file", required=False, metavar="[FILE]", type=click.Path())
@click.option("-n", "cpus", metavar="N|auto", help="Commands at a time.  [default: SEQEXEC_CPUS; 1]")
@click.option("-f", "fail_hard", is_flag=True, help="Start nothing more when one has failed.")
@click.option("-e", "always_succeed", is_flag=True, help="Exit with 0 whatever fails.")
@click.option(
    "-S",
    "good_codes",
    type=Whole(1),
    multiple=True,
    metavar="CODE",
    help="This exit status is a success, too.",
)
@click.option("-s", "status", type=click.Path(), metavar="PATH", help="Instead of standard output.")
@click.option(
    "-R",
    "progress",
    type=click.Path(),
    envvar="SEQEXEC_PROGRESS_REPORT",
    metavar="PATH",
    help="Append a line for each command that has ended.  [default: SEQEXEC_PROGRESS_REPORT]",
)
@click.option("-d", "debug", count=True, help="Say more.")
def seqexec(file: str | None, cpus: str | None, status: str | None, debug: int, **given: Any) -> int:
    """Run the commands of a file, like pegasus-cluster.

    FILE has one command a line, and lines that begin with #; without it they come from standard input. They start
    in their order. What each prints comes out whole when it ends, with a `cluster-task` record; a
    `cluster-summary` comes last.

    Exit status: 0; 1 wrong option; 2 the file of -s or, 3, the commands can't be read; 5 a command failed;
    130 stopped by a signal.
    """
    import_msgspec()
    from mtask.errors import MtaskError
    from mtask.pipelines import seqexec as sequence
    from mtask.worker.capabilities import cpus_of_machine

    if given["fail_hard"] and given["always_succeed"]:
        return _refused("-e and -f exclude each other", BAD_OPTION)
    try:
        slots = sequence.slots_of(cpus, os.environ, cpus_of_machine())
    except ValueError as error:
        return _refused(f"-n {error}", BAD_OPTION)
    status_fd = 1
    if status is not None:
        try:
            status_fd = os.open(status, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            return _refused(f"can't open {status}: {error.strerror}", sequence.BAD_STATUS)
    try:
        commands, lines = sequence.read_commands(sequence.open_input(file), file or "standard input")
    except MtaskError as error:
        return _refused(str(error), sequence.BAD_INPUT)
    try:
        return sequence.run_sequence(
            sequence.CommandList(
                commands=commands, lines=lines, slots=slots, status_fd=status_fd, verbosity=debug, **given
            )
        )
    except MtaskError as error:
        return _refused(str(error), BAD_OPTION)


def _refused(text: str, code: int) -> int:
    print(f"mtask: {text}", file=sys.stderr)
    return code
