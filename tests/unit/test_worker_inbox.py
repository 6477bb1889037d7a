"""What other threads post to the worker's main thread is read, however they meet."""

from __future__ import annotations

import os
import select

import pytest

from mtask.worker import inbox as module
from mtask.worker.inbox import Inbox


def rings(inbox: Inbox) -> bool:
    return bool(select.select([inbox.fd], [], [], 0)[0])


def test_many_events_are_one_ring() -> None:
    inbox, read = Inbox(), list[int]()
    for number in range(3):
        inbox.post(lambda number=number: read.append(number))  # type: ignore[misc]
    assert rings(inbox)
    inbox.awake()
    assert not rings(inbox)
    inbox.read()
    assert read == [0, 1, 2]
    inbox.close()


def test_an_event_of_the_moment_in_which_the_reader_wakes_is_read_and_the_next_one_rings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inbox, read = Inbox(), list[str]()

    def read_amid_posts(fd: int, size: int) -> bytes:
        """As if other threads had their turns just before and after."""
        inbox.post(lambda: read.append("before"))
        data = os_read(fd, size)
        inbox.post(lambda: read.append("after"))
        return data

    inbox.post(lambda: read.append("first"))
    os_read = os.read
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "read", read_amid_posts)
        inbox.awake()
    inbox.read()
    assert read == ["first", "before", "after"]
    inbox.post(lambda: None)
    assert rings(inbox)
    inbox.close()
