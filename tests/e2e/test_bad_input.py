"""What is wrong is refused before anything is sent: what, where, and what to do next (promise 9)."""

from __future__ import annotations

import pytest

FUNCTIONS = """
def add(x: int, y: float = 1.0):
    return x + y

def texts(**columns):
    return len(columns)

not_a_function = 3
"""
GOOD = "x,y\n1,2\n3,4\n"
CALL = ("--call", "m:add")


@pytest.fixture
def command(command):
    command.write("m.py", FUNCTIONS)
    command.write("good.csv", GOOD)
    return command


def refused(command, args, *fragments, code=2):
    outcome = command(*args)
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    for fragment in fragments:
        assert fragment in outcome.err
    assert command.sent_nothing()
    return outcome.err


FILES = {
    "empty file": (b"", ["t.csv: is empty", "the first line should name the columns"]),
    "blank lines only": (b"\n\n", ["t.csv"]),
    "column name twice": (b"x,x\n1,2\n", ["t.csv, line 1, column 'x'", "same name", "rename"]),
    "empty column name": (b"x,\n1,2\n", ["t.csv, line 1", "column number 2 has no name"]),
    "too few fields": (b"x,y\n1,2\n3\n", ["t.csv, line 3", "expected 2 fields, found 1", "'y'"]),
    "too many fields": (
        b"x,y\n1,2\n3,4,5\n",
        ["t.csv, line 3", "expected 2 fields, found 3", "double quotes"],
    ),
    "not UTF-8": (b"x,y\n1,2\n3,\xff\n", ["t.csv, line 3", "not UTF-8", "iconv"]),
    "a NUL byte": (b"x,y\n1,2\n3,\x00\n", ["t.csv, line 3", "NUL byte"]),
    "wrong type": (b"x,y\n1,2\n3,four\n", ["t.csv, line 3, column 'y'", "expected a number", "'four'"]),
    "more digits than Python reads": (
        b"x,y\n1,2\n" + b"9" * 5000 + b",2\n",
        ["t.csv, line 3, column 'x'", "expected an integer", "9'…, which is too large"],
    ),
    "missing value": (b"x,y\n,2\n", ["t.csv, line 2, column 'x'", "expected an integer"]),
    "unknown column": (b"x,z\n1,2\n", ["no parameter for the column 'z'", "add(x: int, y: float = 1.0)"]),
    "missing column": (b"y\n1\n", ["no column for the parameter 'x'", "the columns:   y"]),
}


@pytest.mark.parametrize(("content", "fragments"), FILES.values(), ids=FILES)
@pytest.mark.parametrize("verb", ["run", "submit"])
def test_file(command, verb, content, fragments):
    command.write("t.csv", content)
    refused(command, (verb, "t.csv", *CALL), *fragments)


def test_a_file_that_is_missing_names_one_like_it(command):
    refused(command, ("run", "god.csv", *CALL), "god.csv: no such file", "'good.csv'")


def test_a_folder_is_not_a_task_file(command):
    (command.folder / "folder").mkdir()
    refused(command, ("run", "folder", *CALL), "folder", "director")


def test_wrong_value_in_row_7001_of_10000(command):
    rows = [f"{n},{'oops' if n == 7001 else n}" for n in range(1, 10_001)]
    command.write("t.csv", "x,y\n" + "\n".join(rows) + "\n")
    refused(
        command, ("submit", "t.csv", *CALL), "t.csv, line 7002, column 'y'", "expected a number", "'oops'"
    )


def test_a_header_alone_is_a_bag_that_is_done(command):
    command.write("none.csv", "x,y\n")
    code, out, err = command("run", "none.csv", *CALL)
    assert (code, out) == (0, "0 done\n")
    assert "no task in the file" in err
    assert '"state":"sealed"' in command("status", "none", "--json").out
    assert "no results" in command("results", "none").out


@pytest.mark.parametrize(
    ("content", "values"),
    [
        pytest.param(b"\xef\xbb\xbfx,y\r\n1,2\r\n3,4\r\n", [3.0, 7.0], id="BOM and CRLF"),
        pytest.param(b"x,y\n1,2\n\n3,4", [3.0, 7.0], id="a blank line, no newline at the end"),
        pytest.param(b'x;y\n"1";2\n', [3.0], id="semicolons"),
    ],
)
def test_accepted(command, content, values):
    command.write("t.csv", content)
    assert command("run", "t.csv", *CALL).code == 0
    assert [result.value for result in command.results("t")] == values


def test_a_field_of_1_mib_goes_round(command):
    text = "ä" * (1 << 19)
    command.write("m.py", "def size(text):\n    return {'size': len(text), 'end': text[-1]}\n")
    command.write("t.csv", f'text\n"{text}"\nshort\n')
    assert command("run", "t.csv", "--call", "m:size").code == 0
    assert command("results", "t", "-o", "r.csv").code == 0
    assert [result.value for result in command.results("t")] == [
        {"size": 1 << 19, "end": "ä"},
        {"size": 5, "end": "t"},
    ]
    assert f"\n0,{text},done,{1 << 19},ä," in command.read("r.csv").replace("\r\n", "\n")


TARGETS = {
    "no such module": ("--call", "nomodule:f", ["no module 'nomodule'", "Looked in:"]),
    "no such function": ("--call", "m:ad", ["m has no function 'ad'", "add"]),
    "no function": ("--call", "m:not_a_function", ["not a function"]),
    "no colon": ("--call", "m.add", ["'m.add' doesn't name a function", "m:add"]),
    "no function name": ("--call", "m:", ["module:function"]),
    "unknown column": ("--run", "echo {z}", ["no column 'z'", "columns: x, y", "\n    echo {z}\n         ^"]),
    "unclosed brace": ("--run", "echo {x", ["never closed", "{{", "\n         ^"]),
    "stray brace": ("--run", "echo x}", ["closes nothing", "}}"]),
    "unclosed quote": ("--run", "echo 'x", ["quote is never closed"]),
    "no command": ("--run", " ", ["the command is empty"]),
    "no such program": ("--run", "nosuchprogram {x}", ["no program 'nosuchprogram'", "PATH"]),
    "no such file": ("--run", "./nosuch.sh {x}", ["no program './nosuch.sh'", "relative to"]),
}


@pytest.mark.parametrize(("option", "target", "fragments"), TARGETS.values(), ids=TARGETS)
def test_target(command, option, target, fragments):
    refused(command, ("run", "good.csv", option, target), *fragments)


def test_the_search_path_of_a_missing_module_is_shown(command):
    assert str(command.folder) in refused(command, ("run", "good.csv", "--call", "nomodule:f"))


def test_a_module_that_fails_to_import_shows_its_own_lines(command):
    command.write("broken.py", "import os\n\nraise RuntimeError('no licence')\n")
    outcome = command("run", "good.csv", "--call", "broken:f")
    assert outcome.code == 2
    assert "RuntimeError: no licence" in outcome.err
    assert "broken.py" in outcome.err
    assert "importlib" not in outcome.err
    assert command.sent_nothing()


def test_no_command_column(command):
    refused(command, ("run", "good.csv"), "no column 'command'", "it has x, y", "--call, --run or --shell")


def test_a_command_line_that_cannot_be_split(command):
    command.write("t.csv", "command\necho ok\necho 'open\n")
    refused(command, ("run", "t.csv"), "t.csv, line 3, column 'command'", "quote")


@pytest.mark.parametrize("pair", [("--call", "--run"), ("--run", "--shell"), ("--call", "--shell")])
def test_two_things_to_run(command, pair):
    args = [part for option in pair for part in (option, "m:add")]
    refused(command, ("run", "good.csv", *args), f"not {pair[0]} and {pair[1]}")


def test_a_program_that_only_the_task_names_fails_in_the_task(command):
    command.write("t.csv", "program\nnosuchprogram\ntrue\n")
    outcome = command("run", "t.csv", "--run", "{program}", "--retries", "0")
    assert outcome.code == 1
    assert "1 done, 1 failed" in outcome.out
    assert "FileNotFoundError: can't start 'nosuchprogram'" in outcome.out
    failed, done = command.results("t")
    assert (failed.state, failed.error.reason, done.state) == ("failed", "start", "done")


class TestBagName:
    def test_taken_by_other_tasks(self, command):
        command("submit", "good.csv", *CALL, "--bag", "b")
        command.write("other.csv", "x,y\n5,6\n")
        code, _, err = command("submit", "other.csv", *CALL, "--bag", "b")
        assert code == 2
        assert "the bag 'b' is taken: it holds other tasks (from good.csv); choose another name" in err
        assert '"total":2' in command("status", "b", "--json").out

    def test_taken_by_another_function(self, command):
        command("submit", "good.csv", *CALL, "--bag", "b")
        code, _, err = command("submit", "good.csv", "--run", "echo {x}", "--bag", "b")
        assert (code, "it runs something else (m:add)" in err) == (2, True)

    def test_taken_with_other_options_names_them(self, command):
        command("submit", "good.csv", *CALL, "--bag", "b", "--retries", "1")
        code, _, err = command("submit", "good.csv", *CALL, "--bag", "b")
        assert (code, "it has other options: retries=1 (now 3)" in err) == (2, True)

    def test_taken_by_a_cancelled_bag(self, command):
        command("submit", "good.csv", *CALL, "--bag", "b")
        command("cancel", "b")
        code, _, err = command("submit", "good.csv", *CALL, "--bag", "b")
        assert (code, "it was cancelled" in err) == (2, True)

    @pytest.mark.parametrize("name", ["", "a/b", "two words", "-x", "a\nb", "x" * 101])
    def test_impossible(self, command, name):
        refused(
            command, ("submit", "good.csv", *CALL, f"--bag={name}"), "can't be the name of a bag", "letters"
        )

    @pytest.mark.parametrize("verb", ["status", "results", "retry", "cancel"])
    def test_unknown(self, command, verb):
        command("submit", "good.csv", *CALL)
        code, _, err = command(verb, "goood")
        assert code == 2
        assert "there is no bag 'goood' in .mtask/mtask.db; did you mean 'good'?" in err

    @pytest.mark.parametrize("verb", ["status", "results", "retry", "cancel"])
    def test_in_a_folder_where_nothing_was_submitted(self, command, verb):
        code, _, err = command(verb, "b")
        assert code == 2
        assert f"there is no .mtask/mtask.db in {command.folder}" in err
        assert not (command.folder / ".mtask").exists()


URLS = {
    "no URL": ("tasks.db", ["'tasks.db' is not the URL", "sqlite:///tasks.db"]),
    "unknown scheme": ("redis://host/q", ["unknown scheme 'redis'", "sqlite", "sqs"]),
    "not installed": ("sqs://us-west-2/reads", ["pip install 'mtask[aws]'"]),
    "sqlite without a path": ("sqlite:///", ["names no file", "sqlite:///tasks.db"]),
    "sqlite with a host": ("sqlite://tasks.db", ["is not the URL of an SQLite file", "sqlite:///"]),
    "sqlite with an unknown option": ("sqlite:///t.db?mode=ro", ["unknown option 'mode'"]),
}


@pytest.mark.parametrize(("url", "fragments"), URLS.values(), ids=URLS)
@pytest.mark.parametrize("option", ["--queue", "--table"])
def test_url(command, option, url, fragments, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mtask_aws", None)
    refused(command, ("run", "good.csv", *CALL, option, url), *fragments)


def test_a_password_is_not_shown(command):
    err = refused(
        command, ("run", "good.csv", *CALL, "--queue", "ftp://me:secret@host/q"), "ftp://me:…@host/q"
    )
    assert "secret" not in err


OPTIONS = {
    "no number": (["-j", "many"], ["'-j' / '--slots'", "'many' is not a whole number"]),
    "no slot": (["-j", "0"], ["the least is 1"]),
    "negative": (["--retries=-1"], ["'--retries'", "the least is 0"]),
    "fraction": (["--retries", "1.5"], ["'1.5' is not a whole number"]),
    "no duration": (["--timeout", "soon"], ["'--timeout'", "write seconds, or 90s, 5m, 2h, 1d"]),
    "unknown unit": (["--timeout", "1y"], ["'1y' is not a duration"]),
    "no time at all": (["--timeout", "0"], ["more than 0"]),
    "negative time": (["--grace=-1"], ["'-1' is not a duration"]),
    "short lease": (["--lease", "0.5s"], ["the least is 1s"]),
    "per message": (["--per-message", "0"], ["neither a number from 1 on nor 'auto'"]),
    "no CPU": (["--cpus", "0"], ["'--cpus'", "cpus must be more than 0"]),
    "negative CPUs": (["--cpus=-2"], ["cpus must be more than 0"]),
    "no size": (
        ["--memory", "much"],
        ["'--memory'", "'much' is not a size; write bytes, or 512MB, 2GB, 2GiB"],
    ),
    "negative size": (["--memory=-1GB"], ["'-1GB' is negative"]),
    "no unit": (["--memory", "8"], ["'8' is 8 bytes", "a unit seems to be missing, as in 8GB or 8MB"]),
    "no memory": (["--memory", "0GB"], ["memory must be more than 0"]),
    "a part of a GPU": (["--gpus", "0.5"], ["'--gpus'", "'0.5' is not a whole number of GPUs"]),
    "negative GPUs": (["--gpus=-1"], ["gpus must be from 0"]),
    "strange tag": (["--tags", "blast,<b>"], ["'--tags'", "'<b>' can't be a tag", "letters, digits"]),
    "no tag": (["--tags="], ["names no tag"]),
    "nowhere": (["--only-on="], ["'--only-on'", "names no tag"]),
    "not there": (["--only-on", "!eu"], ["'!eu'", "only --tags"]),
    "unknown priority": (["--priority", "urgent"], ["'urgent' is not a priority; write low, normal, high"]),
    "too high a priority": (["--priority", "10"], ["a number from -9 to 9"]),
    "nothing runs": (["--max-running", "0"], ["'--max-running'", "the least is 1"]),
    "too many to read": (["-j", "9" * 5000], ["'-j' / '--slots'", "9'… is too large; the most is"]),
    "too many to be": (["-j", "9" * 400], ["'-j' / '--slots'", "9'… is too large; the most is"]),
    "too many retries": (["--retries", str(2**53 + 2)], ["'--retries'", "is too large; the most is"]),
    "too few to read": (["--retries=-" + "9" * 5000], ["'--retries'", "the least is 0"]),
    "too many per message": (["--per-message", "9" * 5000], ["'--per-message'", "is too large"]),
    "too many GPUs": (["--gpus", "9" * 5000], ["'--gpus'", "9'… is more than any machine has"]),
    "nothing starts": (["--rate", "0"], ["'--rate'", "a rate must be more than 0"]),
    "no rate": (["--rate", "10/y"], ["'10/y' is not a rate; write 10/s, 600/min or 100/h"]),
    "unknown option": (["--retrys", "1"], ["'--retrys'", "--retries"]),
    "no value": (["--bag"], ["'--bag' requires an argument"]),
}


@pytest.mark.parametrize(("args", "fragments"), OPTIONS.values(), ids=OPTIONS)
def test_option(command, args, fragments):
    refused(command, ("run", "good.csv", *CALL, *args), *fragments)
    assert not (command.folder / ".mtask").exists()


@pytest.mark.parametrize("option", ["--key", "--serial"])
def test_no_such_column(command, option):
    refused(
        command, ("run", "good.csv", *CALL, option, "sample"), f"{option} sample: good.csv has no", "x, y"
    )
    refused(command, ("run", "good.csv", *CALL, option, "X"), f"{option} X: good.csv has no such column")
    command.write("t.csv", "x,sample_id\n1,2\n")
    refused(command, ("run", "t.csv", "--run", "echo {x}", option, "sample"), "did you mean 'sample_id'?")


NEEDS = {
    "no number": ("cpus", "four", "'four' is not a number of CPUs"),
    "zero": ("cpus", "0", "cpus must be more than 0"),
    "negative": ("gpus", "-1", "gpus must be from 0"),
    "too many": ("gpus", "9" * 5000, "9'… is more than any machine has; the most is 1024"),
    "no unit": ("memory", "8", "a unit seems to be missing, as in 8GB or 8MB"),
    "unknown unit": ("memory", "8 gigs", "'8 gigs' is not a size"),
    "strange tag": ("tags", "machine learning; NLP", "'learning;' can't be a tag"),
    "unknown priority": ("priority", "P1", "'P1' is not a priority"),
}


@pytest.mark.parametrize(("column", "value", "problem"), NEEDS.values(), ids=NEEDS)
@pytest.mark.parametrize("verb", ["run", "submit"])
def test_a_column_of_needs(command, verb, column, value, problem):
    command.write("t.csv", f"x,{column}\n1,\n2,{value}\n")
    meaning = f"the column {column!r} says what each task needs: rename it if it means something else"
    refused(command, (verb, "t.csv", *CALL), f"t.csv, line 3, column {column!r}: ", problem, meaning)


def test_unknown_verb(command):
    refused(command, ("rum",), "'rum'", "Did you mean 'run'?")
    refused(command, ("xyzzy",), "There are run, submit, worker")


SETTINGS = {
    "broken": ('queue = "sqlite\n', ["mtask.toml", "line 1"]),
    "unknown key": (
        'queu = "sqlite:///t.db"\n',
        ["mtask.toml: unknown setting 'queu'; did you mean 'queue'?"],
    ),
    "no text": ("queue = 3\n", ["mtask.toml: queue must be a URL in quotes"]),
    "no URL": ('queue = "tasks.db"\n', ["mtask.toml: queue: 'tasks.db' is not the URL"]),
    "not UTF-8": (b'queue = "\xff"\n', ["mtask.toml"]),
}


@pytest.mark.parametrize(("content", "fragments"), SETTINGS.values(), ids=SETTINGS)
def test_settings_file(command, content, fragments):
    command.write("mtask.toml", content)
    refused(command, ("run", "good.csv", *CALL), *fragments)


def test_a_wrong_variable_is_named(command, monkeypatch):
    monkeypatch.setenv("MTASK_QUEUE", "tasks.db")
    refused(command, ("run", "good.csv", *CALL), "MTASK_QUEUE: 'tasks.db' is not the URL")


class TestOutput:
    @pytest.fixture
    def command(self, command):
        command("run", "good.csv", *CALL)
        return command

    @pytest.mark.parametrize(
        ("name", "fragments"),
        [
            ("r.xlsx", ["r.xlsx", ".csv, .csv.gz, .jsonl"]),
            ("r", ["the suffix says the format"]),
            ("nowhere/r.csv", ["can't write nowhere/r.csv", "no folder nowhere"]),
        ],
    )
    def test_place(self, command, name, fragments):
        before = set(command.folder.iterdir())
        code, _, err = command("results", "good", "-o", name)
        assert code == 2
        assert all(fragment in err for fragment in fragments)
        assert set(command.folder.iterdir()) == before

    def test_a_folder_is_not_overwritten(self, command):
        (command.folder / "r.csv").mkdir()
        code, _, err = command("results", "good", "-o", "r.csv")
        assert (code, "can't write r.csv" in err) == (2, True)
        assert not (command.folder / "r.csv.part").exists()

    @pytest.mark.parametrize("args", [("--failed", "--state", "done"), ("--attempts", "--failed")])
    def test_contradictions(self, command, args):
        assert command("results", "good", *args).code == 2

    def test_unknown_state(self, command):
        code, _, err = command("results", "good", "--state", "gone")
        assert (code, "'done', 'failed', 'expired'" in err) == (2, True)
