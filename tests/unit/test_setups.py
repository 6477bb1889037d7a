"""`mtask.setup`: by itself, and in the processes that run tasks."""

from __future__ import annotations

import pickle
import textwrap
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtask
from mtask.errors import UsageError
from mtask.manager import connect
from mtask.model import Reason, Result
from mtask.setups import Setup
from tests.unit.worker_kit import Place

HEAD = """
import os, time
from pathlib import Path
import mtask

def note(text):
    with open(os.environ["SETUP_LOG"], "a") as file:
        file.write(f"{os.getpid()} {text}\\n")
"""


class Bench:
    """Runs functions of a module that is written for the test, and reads what its setup functions noted."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place, self.folder = place, folder

    def run(
        self, source: str, rows: list[dict[str, object]], *, slots: int = 1, **options: object
    ) -> list[Result]:
        module = self.folder / f"with_setup_{self.folder.name}.py"
        module.write_text(HEAD + textwrap.dedent(source))
        options = {"retries": 0, "bag": "bag", "call": f"{module}:f", "backoff_s": 0.01} | options
        return self.place.work(self.place.manager.submit(rows, **options), slots=slots)

    def noted(self) -> list[list[str]]:
        """(process, text) of each note."""
        log = self.folder / "log"
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("SETUP_LOG", str(tmp_path / "log"))
    url = f"sqlite:///{tmp_path}/m.db"
    with connect(url, url) as manager:
        yield Bench(Place(manager), tmp_path)


# -- by itself --------------------------------------------------------------------------------------


class TestCall:
    def test_the_value_is_kept(self):
        calls = []

        @mtask.setup
        def model(topic: str = "bio") -> list[str]:
            "A model."
            calls.append(topic)
            return [topic]

        assert model() is model("bio") is model(topic="bio")
        assert model.__doc__ == "A model."
        assert model("math") == ["math"]
        assert model() == ["bio"], "one value is kept, if nothing else is said"
        assert calls == ["bio", "math", "bio"]
        model.forget()
        model()
        assert calls == ["bio", "math", "bio", "bio"]

    def test_those_used_last_are_kept(self):
        calls = []

        @mtask.setup(keep=2)
        def model(topic):
            calls.append(topic)

        for topic in "abacbcab":
            model(topic)
        assert calls == ["a", "b", "c", "b", "a", "b"]

    def test_the_old_value_goes_before_the_new_one_comes(self):
        made: list[weakref.ref[object]] = []

        class Value:
            pass

        @mtask.setup
        def model(topic):
            assert [ref() for ref in made] == [None] * len(made), "there may be no memory for both"
            value = Value()
            made.append(weakref.ref(value))
            return value

        model("a")
        model("b")
        assert len(made) == 2

    def test_what_raises_isnt_kept(self):
        calls = []

        @mtask.setup
        def model():
            calls.append(1)
            raise FileNotFoundError("no model.joblib")

        for _ in range(2):
            with pytest.raises(FileNotFoundError, match="no model"):
                model()
        assert len(calls) == 2

    def test_lists_tell_no_values_apart(self):
        model = mtask.setup(_named)
        with pytest.raises(
            UsageError, match=r"the setup function .*:_named can't be called with such a value"
        ):
            model(["a"])

    @pytest.mark.parametrize("options", [{"keep": 0}, {"timeout_s": 0.0}])
    def test_wrong_options(self, options):
        with pytest.raises(UsageError, match="must be"):
            mtask.setup(**options)

    def test_only_ordinary_functions(self):
        async def later():
            pass

        def several():
            yield 1

        for wrong in (later, several):
            with pytest.raises(UsageError, match="must be an ordinary one"):
                mtask.setup(wrong)
        with pytest.raises(UsageError, match="is for functions"):
            mtask.setup(Path)

    def test_another_process_gets_it_without_its_values(self):
        """As `mtask.map` sends it, when it can't be imported there."""
        model = Setup(_named, 3, 7.0)
        model("x")
        again = pickle.loads(pickle.dumps(model))
        assert (again.function, again.keep, again.timeout_s, len(again._values)) == (_named, 3, 7.0, 0)


def _named(topic):
    return topic


# -- in the processes of a worker -------------------------------------------------------------------


class TestTasks:
    def test_once_in_each_process_before_its_first_task(self, bench):
        source = """
        @mtask.setup
        def model():
            note("model")
            return os.getpid()

        def f(x):
            note("task")
            return [model(), os.getpid()]
        """
        results = bench.run(source, [{"x": x} for x in range(40)], slots=2, per_message=1)
        assert all(made == there for made, there in (result.value for result in results))
        by_process: dict[str, list[str]] = {}
        for process, text in bench.noted():
            by_process.setdefault(process, []).append(text)
        assert all(texts[0] == "model" and texts.count("model") == 1 for texts in by_process.values())
        assert sum(map(len, by_process.values())) == 40 + len(by_process)

    def test_also_if_no_task_calls_it(self, bench):
        source = """
        STATE = []

        @mtask.setup
        def prepare():
            STATE.append(1)

        def f(x):
            return len(STATE)
        """
        assert [result.value for result in bench.run(source, [{"x": x} for x in range(5)])] == [1] * 5

    def test_once_for_each_value_of_a_column(self, bench):
        source = """
        @mtask.setup(keep=2)
        def model(topic, size: int = 3):
            note(f"{topic}-{size!r}")
            return topic

        def f(x: int, topic: str, size: int) -> str:
            note("task")
            return model(topic, size)
        """
        topics = ["a", "a", "b", "a", "c", "b"]
        rows = [{"x": at, "topic": topic, "size": 5} for at, topic in enumerate(topics)]
        assert [result.value for result in bench.run(source, rows)] == topics
        noted = [text for _, text in bench.noted()]
        assert noted == ["a-5", "task", "task", "b-5", "task", "task", "c-5", "task", "b-5", "task"], (
            "each before its task"
        )

    def test_the_values_are_those_that_the_task_gets(self, bench):
        source = """
        @mtask.setup
        def model(where):
            note(type(where).__name__)

        def f(where: Path):
            model(where)
        """
        bench.run(source, [{"where": "/a"}, {"where": "/a"}])
        assert [text for _, text in bench.noted()] == ["PosixPath"]

    def test_one_whose_parameters_are_no_columns_waits_for_its_call(self, bench):
        source = """
        @mtask.setup
        def model(name):
            note(name)
            return name

        def f(x):
            return model("big") if x else None
        """
        assert [result.value for result in bench.run(source, [{"x": 0}, {"x": 1}])] == [None, "big"]
        assert [text for _, text in bench.noted()] == ["big"]

    @pytest.mark.parametrize("columns", [("x",), ("x", "data")], ids=["no column", "a column"])
    def test_a_staged_parameter_with_a_default_waits_for_its_call(self, bench, columns):
        """Before the task there is no path, only the URL."""
        (bench.folder / "data.txt").write_text("7")
        url = (bench.folder / "data.txt").as_uri()
        source = """
        @mtask.setup
        def model(data="none"):
            note(os.path.basename(data))
            return int(Path(data).read_text())

        def f(x, data):
            return model(data)
        """
        (result,) = bench.run(source, [dict.fromkeys(columns, url)], inputs={"data": url})
        assert result.value == 7, result.error
        assert [text for _, text in bench.noted()] == ["data.txt"], "once"

    @pytest.mark.parametrize(
        ("columns", "said"),
        [(("x",), ["bio"]), (("x", "topic"), ["math", "bio"])],
        ids=["no column", "a column"],
    )
    def test_a_default_stands_for_a_column_that_isnt_there(self, bench, columns, said):
        source = """
        @mtask.setup(keep=2)
        def model(topic="bio"):
            note(topic)

        def f(x, topic=None):
            model()
        """
        bench.run(source, [dict.fromkeys(columns, "math")] * 2)
        assert [text for _, text in bench.noted()] == said, "what the task calls is another value"

    @pytest.mark.parametrize("name", ["x", "other"], ids=["before the task", "in the task"])
    def test_its_time_isnt_the_tasks(self, bench, name):
        source = f"""
        @mtask.setup
        def model({name}):
            end = time.monotonic() + 1.2
            while time.monotonic() < end:
                pass

        def f(x):
            model(x)
            time.sleep(0.4)
        """
        (result,) = bench.run(source, [{"x": 0}], timeout_s=1.1)
        assert result.state == "done", result.error
        assert 0.4 <= result.wall_s < 1.0
        assert result.cpu_s < 0.4
        assert result.finished_at - result.started_at == pytest.approx(result.wall_s, abs=0.01)

    def test_the_tasks_own_time_goes_on_after_it(self, bench):
        source = """
        @mtask.setup
        def model():
            time.sleep(0.3)

        def f(x):
            model()
            time.sleep(30)
        """
        (result,) = bench.run(source, [{"x": 0}], timeout_s=0.5)
        assert (result.error.reason, result.error.message) == (Reason.TIMEOUT, "ran longer than 0.5 s")
        assert result.wall_s < 5

    def test_what_it_raises_is_the_attempts_failure(self, bench):
        source = """
        @mtask.setup
        def model():
            note("tried")
            raise FileNotFoundError("no model.joblib")

        def f(x):
            return 1
        """
        (result,) = bench.run(source, [{"x": 0}], retries=2)
        error = result.error
        assert (error.reason, error.type) == (Reason.SETUP, "FileNotFoundError")
        assert error.message.startswith("the setup function with_setup_")
        assert error.message.endswith(":model: no model.joblib")
        assert "raise FileNotFoundError" in error.traceback
        assert result.attempt == 3
        assert len(bench.noted()) == 3, "each attempt tries it again"

    def test_the_next_attempt_may_find_it_well(self, bench):
        source = """
        @mtask.setup
        def model():
            note("tried")
            if len(Path(os.environ["SETUP_LOG"]).read_text().splitlines()) < 2:
                raise FileNotFoundError("not yet")
            return 7

        def f(x):
            return model()
        """
        (result,) = bench.run(source, [{"x": 0}], retries=3, retry_on=["OSError"])  # a base of it
        assert (result.value, result.attempt) == (7, 2)

    def test_no_retry_may_name_it(self, bench):
        source = """
        @mtask.setup
        def model():
            note("tried")
            raise KeyError("x")

        def f(x):
            return model()
        """
        (result,) = bench.run(source, [{"x": 0}], retries=3, no_retry=["setup"])
        assert result.attempt == 1

    def test_one_that_hangs_is_ended(self, bench):
        source = """
        @mtask.setup(timeout_s=0.3)
        def model():
            time.sleep(60)

        def f(x):
            return 1
        """
        (result,) = bench.run(source, [{"x": 0}])
        assert result.error.reason == Reason.SETUP
        assert result.error.message == "a setup function ran longer than 0.3 s"
        assert result.wall_s < 0.3

    @pytest.mark.parametrize("end", ["time.sleep(60)", "os.kill(os.getpid(), 9)"], ids=["hangs", "crashes"])
    def test_one_that_is_ended_in_a_task_leaves_it_the_time_before(self, bench, end):
        source = f"""
        @mtask.setup(timeout_s=0.8)
        def model(later):
            time.sleep(0.6)
            {end}

        def f(x):
            time.sleep(0.2)
            model(x)
        """
        (result,) = bench.run(source, [{"x": 0}])
        assert result.error.reason == Reason.SETUP
        assert 0.2 <= result.wall_s < 0.6

    def test_one_that_crashes(self, bench):
        source = """
        @mtask.setup
        def model():
            os.kill(os.getpid(), 9)

        def f(x):
            return 1
        """
        (result,) = bench.run(source, [{"x": 0}])
        assert result.error.reason == Reason.SETUP
        assert result.error.message == "in a setup function: killed by SIGKILL (out of memory?)"


# -- from a Python program --------------------------------------------------------------------------


def test_map_and_executor():
    calls = []

    @mtask.setup
    def model():
        import os

        calls.append(os.getpid())
        return list(calls)

    def f(x):
        return [model(), len(calls)]

    for values in (
        mtask.map(f, [1, 2, 3], slots=1),
        [future.result() for future in _submitted(f, 3)],
    ):
        assert [len(value) for value, _ in values] == [1, 1, 1], "once in the child"
        assert [count for _, count in values] == [1, 1, 1]
    assert calls == [], "and not here"


def _submitted(function, times):
    with mtask.Executor(1) as executor:
        return [executor.submit(function, x) for x in range(times)]
