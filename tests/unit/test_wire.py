from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtask.worker.wire import BAD, DONE, ENDED, HEADER, JOB, RESULTS, Cell, Frames, frame

frames = st.lists(
    st.tuples(
        st.sampled_from([JOB, RESULTS, ENDED, BAD]),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=50),
    ),
    max_size=8,
)


@given(frames, st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    sent: list[tuple[int, int, int, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(frame(*each) for each in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))

    reader, got = Frames(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[start:stop])

    assert got == sent


def test_a_frame_that_is_cut_off_never_comes_out() -> None:
    reader = Frames()
    assert reader.feed(frame(RESULTS, 1, 2, b"[1]") + frame(ENDED, 1, 3, b"[2]")[:-1]) == [
        (RESULTS, 1, 2, b"[1]")
    ]
    assert reader.feed(b"") == []


def test_a_payload_may_be_empty_or_large() -> None:
    large = os.urandom(3_000_000)
    assert Frames().feed(frame(JOB, 0, 0) + frame(JOB, 1, 0, large)) == [(JOB, 0, 0, b""), (JOB, 1, 0, large)]


@pytest.fixture
def cells() -> Iterator[tuple[Cell, Cell]]:
    """The supervisor's and the child's."""
    ours, fd = Cell.create()
    theirs = Cell(fd)
    os.close(fd)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_new_cell_tells_of_no_task(cells: tuple[Cell, Cell]) -> None:
    ours, _ = cells
    assert ours.task()[0] < 0
    assert ours.unsent() is None


@given(job=st.integers(0, 2**31 - 1), offset=st.integers(0, 2**32 - 1), started_ns=st.integers(0, 2**62))
def test_the_cell_tells_which_task_runs(job: int, offset: int, started_ns: int) -> None:
    ours, fd = Cell.create()
    theirs = Cell(fd)
    os.close(fd)
    theirs.words[Cell.STARTED_NS] = started_ns
    theirs.words[Cell.TASK] = job << 32 | offset
    assert ours.task() == (job, offset, started_ns)
    ours.close()
    theirs.close()


def put(cell: Cell, job: int, first: int, items: bytes, frames: bytes = b"") -> None:
    cell.words[Cell.TASK] = job << 32 | first
    cell.words[Cell.FIRST] = first
    begin = len(frames) + HEADER.size
    cell.buffer[: len(frames)] = frames
    cell.buffer[begin : begin + len(items)] = items
    cell.words[Cell.STORED] = len(frames) << 32 | begin + len(items)


def test_results_that_were_not_sent_are_found(cells: tuple[Cell, Cell]) -> None:
    ours, theirs = cells
    put(theirs, 3, 17, b"1\n2\n")
    assert ours.unsent() == (b"", 3, 17, b"1\n2\n")
    before = frame(DONE, 2, 5, b"7\n") + frame(ENDED, 2, 5)
    put(theirs, 3, 17, b"1\n2\n", before)
    assert ours.unsent() == (before, 3, 17, b"1\n2\n")
    theirs.words[Cell.STORED] = len(before) << 32 | len(before)
    assert ours.unsent() == (before, 3, 17, b"")
    theirs.words[Cell.STORED] = 0
    assert ours.unsent() is None


class Moving:
    """The words of a cell whose child goes on while they are read."""

    def __init__(self, cell: Cell, at_word: int, go_on: object) -> None:
        self._words, self._at_word, self._go_on = cell.words, at_word, go_on

    def __getitem__(self, word: int) -> int:
        value = self._words[word]
        if word == self._at_word and self._go_on is not None:
            go_on, self._go_on = self._go_on, None
            go_on()  # type: ignore[operator]
        return value

    def release(self) -> None:
        self._words.release()


@pytest.mark.parametrize("at_word", [Cell.TASK, Cell.PORTION, Cell.STORED, Cell.FIRST])
@pytest.mark.parametrize(("job", "first"), [(3, 19), (4, 0)])
def test_results_are_not_taken_while_they_change(at_word: int, job: int, first: int) -> None:
    """The child sends its portion, and puts another result in the buffer, of this job or the next one."""
    ours, fd = Cell.create()
    theirs = Cell(fd)
    os.close(fd)
    put(theirs, 3, 17, b"1\n2\n")

    def go_on() -> None:
        theirs.words[Cell.STORED] = 0
        theirs.words[Cell.PORTION] += 1
        put(theirs, job, first, b"9\n")

    ours.words = Moving(ours, at_word, go_on)  # type: ignore[assignment]
    assert ours.unsent() in (None, (b"", job, first, b"9\n"))
    ours.close()
    theirs.close()


@pytest.mark.parametrize("at_word", [Cell.TASK, Cell.PORTION, Cell.STORED, Cell.FIRST])
def test_lines_are_not_taken_for_others_when_a_job_ends(at_word: int) -> None:
    """The child makes a frame of them, and puts the first result of the next job behind it."""
    ours, fd = Cell.create()
    theirs = Cell(fd)
    os.close(fd)
    put(theirs, 3, 17, b"1\n2\n")
    ended = frame(DONE, 3, 19, b"1\n2\n") + frame(ENDED, 3, 19)

    def go_on() -> None:
        put(theirs, 4, 0, b"9\n", ended)

    ours.words = Moving(ours, at_word, go_on)  # type: ignore[assignment]
    assert ours.unsent() in (None, (ended, 4, 0, b"9\n"))
    ours.close()
    theirs.close()


def test_the_header_is_small_and_fixed() -> None:
    assert HEADER.size == struct.calcsize("<IIII") == 16
