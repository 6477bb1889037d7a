"""DAG files: what is read from them, and that each line that can't be is named."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.errors import InputError
from mtask.pipelines.dag import Dag, Task, parse_dag


def test_tasks_with_all_their_options():
    dag = parse_dag(
        "# a comment\n\n"
        "#@ 3 wordcount ID0000003\n"
        "TASK a -m 10.2 -c 1.5 -t 4 -p -7 -f OUT=/tmp/o -f LOG=l=x -F s=d /bin/echo -m 'two words' \"\" \\$x\r\n"
        "\tTASK\tb  --request-memory 5 --request-cpus 0 --tries 0 --priority 2 --pipe-forward A=b --file-forward c=d x\n"
        "EDGE a   b  \n",
        "w.dag",
        tries=2,
    )
    a, b = dag.tasks
    assert a == Task(
        name="a",
        line=4,
        argv=["/bin/echo", "-m", "two words", "", "$x"],
        memory_mb=11,
        cpus=2,
        tries=4,
        priority=-7,
        pipes={"OUT": "/tmp/o", "LOG": "l=x"},
        files={"s": "d"},
        number="3",
    )
    assert (b.memory_mb, b.cpus, b.tries, b.priority, b.pipes, b.files) == (
        5,
        0,
        1,
        2,
        {"A": "b"},
        {"c": "d"},
    )
    assert (b.number, b.argv) == ("", ["x"])
    assert (dag.children, dag.parents) == ([[1], []], [0, 1])
    assert parse_dag("TASK a x", "w.dag", tries=2).tasks[0].tries == 2


def test_an_edge_may_stand_before_its_tasks_and_twice():
    dag = parse_dag("EDGE a b\nEDGE a b\nTASK b x\nTASK a x", "w.dag")
    assert (dag.children[dag.index["a"]], dag.parents[dag.index["b"]]) == ([0, 0], 2)


MALFORMED = [
    "TASK",
    "TASK a",
    "TASK a -m",
    "TASK a -m 3",
    "TASK a -m x prog",
    "TASK a -m -1 prog",
    "TASK a -m nan prog",
    "TASK a -m 1e9 prog",
    "TASK a -c two prog",
    "TASK a -t 1.5 prog",
    "TASK a -t -1 prog",
    "TASK a -p high prog",
    "TASK a -f OUT prog",
    "TASK a -f =x prog",
    "TASK a -F s= prog",
    "TASK a --nice 3 prog",
    "TASK a 'prog",
    "TASK a ''",
    "TASK a prog\0",
    "TASK fine again",
    "EDGE",
    "EDGE fine",
    "EDGE fine nobody",
    "EDGE nobody fine",
    "EDGE fine fine2 fine3",
    "#@ 1 two",
    "task a prog",
    "TASKa prog",
    "JOB a b",
    "DONE fine",
]


@pytest.mark.parametrize("line", MALFORMED)
def test_each_malformed_line_is_named_by_its_number(line):
    with pytest.raises(InputError) as caught:
        parse_dag(f"TASK fine x\n# here it comes\n{line}\n\nTASK fine2 x\nTASK fine3 x\n", "w.dag")
    assert caught.value.line == 3
    assert str(caught.value).startswith("w.dag, line 3: ")


def test_all_malformed_lines_are_named_at_once():
    text = "\n".join(["TASK fine x", *MALFORMED[:10]])
    with pytest.raises(InputError) as caught:
        parse_dag(text, "w.dag")
    assert [int(at) for at in re.findall(r"line (\d+)", str(caught.value))] == list(range(2, 12))


def test_of_very_many_the_first_are_named():
    with pytest.raises(InputError, match="and 5 lines more") as caught:
        parse_dag("TASK\n" * 25, "w.dag")
    assert str(caught.value).count("w.dag, line") == 20


@pytest.mark.parametrize(
    ("edges", "line", "names"),
    [
        (["a a"], 4, "a → a"),
        (["a b", "b a"], 5, "a → b → a|b → a → b"),
        (["a b", "b c", "c b"], 6, "b → c → b|c → b → c"),
    ],
)
def test_tasks_that_wait_for_each_other(edges, line, names):
    text = "\n".join(["TASK a x", "TASK b x", "TASK c x", *(f"EDGE {edge}" for edge in edges)])
    with pytest.raises(InputError, match=f"line {line}: these tasks wait for each other: ({names})$"):
        parse_dag(text, "w.dag")


@given(
    st.integers(1, 8).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))
    )
)
def test_a_cycle_is_found_if_there_is_one(graph):
    count, edges = graph
    cycle = Dag([Task(str(at), at, ["x"]) for at in range(count)], edges).cycle()
    reached = {at: {child for parent, child in edges if parent == at} for at in range(count)}
    for _ in range(count):
        for at in range(count):
            reached[at] |= {further for child in reached[at] for further in reached[child]}
    assert bool(cycle) == any(at in reached[at] for at in range(count))
    if cycle:
        assert set(zip(cycle, [*cycle[1:], cycle[0]], strict=True)) <= set(edges)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_dag_or_an_input_error(data):
    with contextlib.suppress(InputError):
        dag = parse_dag(data.decode("utf-8", "surrogateescape"), "w.dag")
        assert all(task.argv[0] for task in dag.tasks)
