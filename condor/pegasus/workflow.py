#!/usr/bin/env python3
"""A sample workflow for Pegasus 5, whose clustered jobs mtask runs; and the catalogues that say so.

    ./workflow.py --mtask /path/to/mtask [--aggregator seqexec] [--folder DIR]

writes workflow.yml, sites.yml, transformations.yml, replicas.yml, pegasus.properties and sample texts. It splits nothing
and merges little: each of 20 texts is counted by `wc`, and the counts are sorted into one table. Needs
`pip install pegasus-wms.api`; what plans and runs the workflow is Pegasus itself.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from Pegasus.api import (
    OS,
    Arch,
    Directory,
    File,
    FileServer,
    Job,
    Operation,
    Properties,
    ReplicaCatalog,
    Site,
    SiteCatalog,
    Transformation,
    TransformationCatalog,
    Workflow,
)

SITE = "condorpool"
TEXTS = 20
IN_A_JOB = 10


def installed(name: str, program: str, **more: str) -> Transformation:
    return Transformation(
        name, site=SITE, pfn=program, is_stageable=False, arch=Arch.X86_64, os_type=OS.LINUX, **more
    )


def transformations(wrapper: Path, aggregator: str) -> TransformationCatalog:
    """The one entry by which the clustered jobs come to mtask is the last."""
    wc = installed("wc", shutil.which("wc") or "/usr/bin/wc").add_pegasus_profile(clusters_size=IN_A_JOB)
    sort = installed("sort", shutil.which("sort") or "/usr/bin/sort")
    program = installed(aggregator, str(wrapper), namespace="pegasus")
    program.add_condor_profile(request_cpus="2", request_memory="2 GB")
    return TransformationCatalog().add_transformations(wc, sort, program)


def sites(folder: Path) -> SiteCatalog:
    local = Site("local", arch=Arch.X86_64, os_type=OS.LINUX).add_directories(
        *(
            Directory(kind, folder / name).add_file_servers(
                FileServer(f"file://{folder / name}", Operation.ALL)
            )
            for kind, name in ((Directory.SHARED_SCRATCH, "scratch"), (Directory.LOCAL_STORAGE, "output"))
        )
    )
    pool = Site(SITE, arch=Arch.X86_64, os_type=OS.LINUX).add_pegasus_profile(style="condor")
    return SiteCatalog().add_sites(local, pool.add_condor_profile(universe="vanilla"))


def workflow(folder: Path) -> tuple[Workflow, ReplicaCatalog]:
    replicas, made = ReplicaCatalog(), Workflow("count")
    sort = Job("sort").add_args("-n")
    for at in range(TEXTS):
        text, count = File(f"text-{at:02}.txt"), File(f"count-{at:02}.txt")
        path = folder / text.lfn
        path.write_text(f"the text number {at}\n" * (at + 1))
        replicas.add_replica("local", text, path)
        wc = Job("wc").add_args("-l", text).add_inputs(text).set_stdout(count, stage_out=False)
        # On one host, all of a job's tasks share what the job has: 1 CPU and 100 MB for each of these.
        wc.add_pegasus_profile(pmc_request_cpus=1, pmc_request_memory=100)
        made.add_jobs(wc)
        sort.add_args(count).add_inputs(count)
    made.add_jobs(sort.set_stdout(File("table.txt")))
    return made, replicas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--mtask", default=shutil.which("mtask"), help="the program, as the nodes of the pool have it"
    )
    parser.add_argument("--aggregator", choices=["mpiexec", "seqexec"], default="mpiexec")
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    given = parser.parse_args()
    if not given.mtask:
        parser.error("mtask is not on the path: say --mtask /path/to/mtask")
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    verb = {"mpiexec": "pmc", "seqexec": "seqexec"}[given.aggregator]
    wrapper = folder / f"mtask-{verb}"
    wrapper.write_text(f'#!/bin/sh\nexec {given.mtask} {verb} "$@"\n')
    wrapper.chmod(0o755)

    made, replicas = workflow(folder)
    properties = Properties()
    properties["pegasus.clusterer.job.aggregator"] = given.aggregator
    properties["pegasus.data.configuration"] = "condorio"
    properties.write(str(folder / "pegasus.properties"))
    sites(folder).write(str(folder / "sites.yml"))
    transformations(wrapper, given.aggregator).write(str(folder / "transformations.yml"))
    replicas.write(str(folder / "replicas.yml"))
    made.write(str(folder / "workflow.yml"))
    print(f"cd {folder} && pegasus-plan --conf pegasus.properties --cluster horizontal --submit workflow.yml")


if __name__ == "__main__":
    main()
