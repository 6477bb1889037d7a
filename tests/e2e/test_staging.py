"""Inputs and outputs by URL, as a user gives them, on the stores that can be run here."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mtask
from mtask.errors import BagNotFoundError
from mtask.model import Reason, Result
from tests.e2e.conftest import Command
from tests.servers.process import serving

pytest.importorskip("fsspec", reason="fsspec is not installed: pip install 'mtask[urls]'")

FUNCTIONS = """
from pathlib import Path

def search(id: str, reads: Path, db, hits: str):
    Path(hits).write_text(f"{id}: {reads.read_text()} in {Path(db).read_text()}")
    return reads.name

def fails(id: str, reads: str, db: str, hits: str):
    if id == "2":
        Path(hits).write_text("half")
        raise ValueError("no")
"""
FAILS = 'if test "$id" = 2; then echo half > "$hits"; exit 3; fi'
SEARCH = 'printf "%s: %s in %s" "$id" "$(cat "$reads")" "$(cat "$db")" > "$hits"'


class Store(NamedTuple):
    """A place at a URL, and what is there, seen by its vendor's own client."""

    url: str
    write: Callable[[str, bytes], None]
    read: Callable[[str], bytes]
    names: Callable[[], list[str]]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTASK_CACHE", str(tmp_path / "cache"))


def files(folder: Path, url: str) -> Store:
    folder.mkdir()

    def write(name: str, content: bytes) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return Store(
        url,
        write,
        lambda name: (folder / name).read_bytes(),
        lambda: sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()),
    )


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")
    import boto3

    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"b{uuid.uuid4().hex}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    return Store(
        f"s3://{bucket}",
        lambda name, content: client.put_object(Bucket=bucket, Key=name, Body=content),
        lambda name: client.get_object(Bucket=bucket, Key=name)["Body"].read(),
        lambda: [each["Key"] for each in client.list_objects_v2(Bucket=bucket).get("Contents", [])],
    )


@pytest.fixture
def az(blobs: str) -> Iterator[Store]:
    pytest.importorskip("adlfs", reason="adlfs is not installed: pip install adlfs")
    from azure.storage.blob import ContainerClient

    name = f"c{uuid.uuid4().hex}"
    with ContainerClient.from_connection_string(blobs, name) as container:
        container.create_container()
        yield Store(
            f"az://{name}",
            lambda name, content: container.upload_blob(name, content, overwrite=True),
            lambda name: container.download_blob(name).readall(),
            lambda: sorted(container.list_blob_names()),
        )


@pytest.fixture(params=["path", "file", "s3", "az"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "path":
        return files(tmp_path / "store", str(tmp_path / "store"))
    if request.param == "file":
        return files(tmp_path / "store", f"file://{tmp_path}/store")
    return request.getfixturevalue(request.param)


def rows(command: Command, count: int = 3) -> str:
    text = "".join(f"{x},q{x}\n" for x in range(1, count + 1))
    return str(command.write("tasks.csv", f"id,query\n{text}").name)


def results(command: Command, bag: str) -> list[Result]:
    file = f"sqlite:///{command.folder}/.mtask/mtask.db"
    with mtask.connect(file, file) as mt:
        return list(mt.bag(bag).results())


def staged(store: Store, name: str = "hits") -> tuple[str, ...]:
    return (
        *("--in", f"db={store.url}/db.fa", "--in", f"reads={store.url}/reads/{{query}}.fa"),
        *("--out", f"{name}={store.url}/out/{{id}}.tsv", "--retries", "0", "-j", "1"),
    )


def fill(store: Store, count: int = 3) -> None:
    store.write("db.fa", b"DB")
    for x in range(1, count + 1):
        store.write(f"reads/q{x}.fa", f"read {x}".encode())


def test_commands_and_functions_find_their_inputs_and_leave_their_outputs(
    command: Command, store: Store
) -> None:
    fill(store)
    command.write("m.py", FUNCTIONS)
    for bag, what in (("shell", ("--shell", SEARCH)), ("call", ("--call", "m:search"))):
        outcome = command.process("run", rows(command), "--bag", bag, *what, *staged(store))
        assert outcome.code == 0, outcome
        for x in (1, 2, 3):
            assert store.read(f"out/{x}.tsv").decode() == f"{x}: read {x} in DB"
            store.write(f"out/{x}.tsv", b"")
    assert store.names() == [
        "db.fa",
        *(f"out/{x}.tsv" for x in (1, 2, 3)),
        *(f"reads/q{x}.fa" for x in (1, 2, 3)),
    ]

    store.write("db.fa", b"another one")
    assert (
        command.process("run", rows(command), "--bag", "again", "--shell", SEARCH, *staged(store)).code == 0
    )
    assert store.read("out/1.tsv") == b"1: read 1 in another one"


@pytest.mark.parametrize("store", ["path", "s3"], indirect=True)
def test_what_is_missing_is_named_by_its_url_and_what_failed_writes_nothing(
    command: Command, store: Store
) -> None:
    fill(store, 2)
    command.write("m.py", FUNCTIONS)
    for bag, what in (("shell", ("--shell", FAILS)), ("call", ("--call", "m:fails"))):
        assert command.process("run", rows(command), "--bag", bag, *what, *staged(store)).code == 1
        first, second, third = (each.error for each in results(command, bag))
        assert first is not None
        assert second is not None
        assert third is not None
        assert first.message == f"output 'hits': the task wrote nothing to it, for {store.url}/out/1.tsv"
        assert second.message in ("exit status 3", "no")
        assert third.message.startswith(f"input 'reads': {store.url}/reads/q3.fa: ")
        assert first.reason is third.reason is Reason.STAGING
    assert not [name for name in store.names() if name.startswith("out/")]


def test_a_program_and_a_command_of_a_row_take_paths(command: Command, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.txt").write_text("a")
    url = f"file://{tmp_path}/store"
    command.write("t.csv", f"id,reads\n1,{url}/a.txt\n")
    options = ("--in", "reads", "--out", "copy=out/{id}.txt")
    outcome = command.process("run", "t.csv", "--run", "cp {reads} {copy}", *options)
    assert outcome.code == 0, outcome
    assert (command.folder / "out" / "1.txt").read_text() == "a"
    text = "sh -c 'cat {reads} > $copy; echo {other} > /dev/null'"
    command.write("c.csv", f'id,reads,command\n2,{url}/a.txt,"{text}"\n')
    assert command.process("run", "c.csv", *options).code == 0
    assert (command.folder / "out" / "2.txt").read_text() == "a"


def test_from_python(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(command.folder)
    command.write("m.py", FUNCTIONS)
    (tmp_path / "db").write_text("DB")
    (tmp_path / "r.fa").write_text("read")
    with mtask.connect() as mt:
        bag = mt.submit(
            [{"id": "x"}],
            call="m:search",
            inputs={"db": f"file://{tmp_path}/db", "reads": tmp_path / "r.fa"},
            outputs={"hits": f"file://{tmp_path}/{{id}}.tsv"},
        )
        assert command.process("worker", "--idle-exit", "0.5").code == 0
        (result,) = bag.results()
    assert result.value == "r.fa"
    assert (tmp_path / "x.tsv").read_text() == "x: read in DB"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A web server's URL, its folder, and what was asked of it."""
    folder, asked = tmp_path / "web", list[str]()
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            asked.append(f"{self.command} {self.path}")

    handler = functools.partial(Handler, directory=str(folder))
    with serving(handler) as address:
        yield f"http://{address}", folder, asked


def test_inputs_come_from_web_servers(command: Command, web: tuple[str, Path, list[str]]) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install 'mtask[urls]'")
    url, folder, asked = web
    (folder / "db.fa").write_text("DB")
    options = ("--in", f"db={url}/db.fa?token=s3cret", "--retries", "0", "-j", "2")
    assert command.process("run", rows(command), "--shell", 'cat "$db"', "--bag", "one", *options).code == 0
    assert [row.stdout for row in results(command, "one")] == ["DB"] * 3
    assert asked.count("GET /db.fa?token=s3cret") == 1
    (folder / "db.fa").unlink()
    assert command.process("run", rows(command), "--shell", "cat $db", "--bag", "two", *options).code == 1
    error = results(command, "two")[0].error
    assert error is not None
    assert f"{url}/db.fa?…: it is not there" in error.message
    assert "s3cret" not in error.message


def test_a_database_of_many_files(command: Command, s3: Store) -> None:
    for name in ("", "nt.nin", "nt.nsq"):  # the first one stands for the folder, as a console makes it
        s3.write(f"blast/{name}", name.encode())
    script = 'cat "$db/nt.nin" "$db/nt.nsq"; ls "$db"'
    outcome = command.process(
        "run", rows(command), "--shell", script, "--in", f"db={s3.url}/blast/", "-j", "1"
    )
    assert outcome.code == 0, outcome
    assert [row.stdout for row in results(command, "tasks")] == ["nt.ninnt.nsqnt.nin\nnt.nsq\n"] * 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--in", "db"), "there is no column 'db'"),
        (("--in", "=x"), "should look like --in db=s3://bucket/nt.fa"),
        (("--in", "a=x", "--in", "a=y"), "the same name twice"),
        (("--in", "a=x", "--out", "a={id}"), "is the name of an input and of an output"),
        (("--out", "a=https://x/{id}"), "whole or not at all"),
        (("--in", "a=oss://x"), "Install ossfs"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    command: Command, options: tuple[str, ...], said: str
) -> None:
    outcome = command("submit", rows(command), "--shell", "true", *options)
    assert outcome.code == 2
    assert said in " ".join(outcome.err.split())
    with pytest.raises(BagNotFoundError):
        results(command, "tasks")


def test_who_stages_nothing_imports_nothing_for_it(command: Command) -> None:
    command.write(
        "m.py",
        "import sys\ndef f(id, query):\n    return sorted({'fsspec', 'mtask.worker.child.stage', 'mtask.worker.child.cache'} & set(sys.modules))\n",
    )
    code = (
        "import sys, mtask.cli\n"
        "try:\n    mtask.cli.main()\n"
        "except SystemExit:\n    assert not {'fsspec', 'mtask.worker.child.stage', 'mtask.worker.child.cache'} & set(sys.modules)\n"
    )
    for options in (("--shell", "true"), ("--call", "m:f")):
        done = subprocess.run(
            [sys.executable, "-c", code, "run", rows(command), *options],
            cwd=command.folder,
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    assert [row.value for row in results(command, "tasks-2")] == [[]] * 3
