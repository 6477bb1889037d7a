"""Bad messages among good ones: each is set aside once, and the good tasks don't notice."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from mtask.bag import BagHandle
from mtask.model import Message, State
from tests.chaos.harness import Site, check, wait_for

COUNT = 60
HUGE = 10 * 1024 * 1024
DEEP = 100_000
TASKS = """
def good(x):
    with open("good-call.log", "a") as log:
        log.write(f"{x}\\n")
    return x

def hurt(x):
    return x
"""
NUMBERS: list[Any] = [None, "0", [], {}, True, 0.5, -1, 2**63, 10**40]
TIMES: list[Any] = ["now", [], {}, True, 1e300]
WRONG: dict[str, list[Any]] = {
    "v": [*NUMBERS, 0],
    "bag": [None, 1, [], {}, "", "\0", "nobody's", "hurt-call", "hurt-run", "b" * HUGE],
    "uid": [None, 1, [], {}, "", "\0", "unknown", "u" * HUGE],
    "generation": NUMBERS,
    "block": NUMBERS,
    "first": [*NUMBERS, COUNT - 1, COUNT, 2**40],
    "count": [*NUMBERS, 0, 1, 3, 2**32],
    "columns": [None, 1, "x", {}, [], [1], ["y"], ["x", "x"], [["x"]], ["x"] * 100_000],
    "rows": [1, "text", {}, [], [1, 2], [[666]], [[666]] * 3, [[666], [666, 666]], [[666], []], [{}, {}]],
    "attempt": NUMBERS,
    "deaths": NUMBERS,
    "check": [None, 1, "true", []],
    "lane": [None, 1, [], {}, "nobody's"],
    "then": [number for number in NUMBERS if number is not None],
    "sent_at": [*TIMES, None, -1e300],
    "not_before": TIMES,
    "expires_at": [*TIMES, 1.0],
}
"""What no field may be, in a message of two tasks of the column x, of a bag of COUNT that doesn't expire."""
VALUES = [b"NaN", b"-Infinity", b"1e999", b"01", b"'a'", b'"\xff"', b'"\\ud800"', b"\0", b"[" * DEEP]
SPOILT = [(b'"rows":[[', b'"rows":[[' + value + b",") for value in VALUES] + [
    (b'"first":', b'"first":' + b"9" * DEEP),
    (b'"count":2', b'"count":2,"count":9'),
    (b'"rows":', b'"rows":[[666],[666]],"rows":7,"more":'),
    (b'"v":', b'"more":' + b"[" * DEEP + b"]" * DEEP + b',"v":'),
    (b'"v":', b'"more":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b',"v":'),
    (b'"v":', b'/* */"v":'),
    (b"}", b",}"),
    (b"}", b"}}"),
]
JUNK = [b"", b" ", b"null", b"[]", b"{}", b'"text"', b"\xff\xfe\x00", b"\0" * 1000, b"\x80\x04\x95pickle"]
JUNK += [b"[" * DEEP, b'{"a":' * DEEP, b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP + b"1" + b"}" * DEEP]
JUNK += [b"[" + b"0," * (HUGE // 2) + b"0]", b'{"v":1,"x":"' + b"x" * HUGE + b'"}', os.urandom(HUGE)]


class Body(bytes):
    """A message that is sent as it is."""

    def encode(self) -> bytes:
        return self


def encode(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def bad_ones(good: dict[str, Any]) -> Iterator[bytes]:
    """What is made of a good message and can't be taken for one."""
    body = encode(good)
    yield from (body[:length] for length in range(1, len(body), 7))
    yield from (encode({k: good[k] for k in good if k != name}) for name in ("bag", "uid", "first", "count"))
    yield from (encode(good | {name: value}) for name, values in WRONG.items() for value in values)
    yield from (body.replace(old, new, 1) for old, new in SPOILT)
    yield from (encode(good | {"rows": None, name: 10**6}) for name in ("block", "first", "count"))
    yield from (b"[" + body + b"]", body + body, body + b"x", b"\xef\xbb\xbf" + body)
    yield body.decode().encode("utf-16")


def mutant(bodies: list[bytes], rng: random.Random) -> bytes:
    """A message with bytes changed, taken out, put in, or from another message."""
    body = bytearray(rng.choice(bodies))
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length, other = rng.randrange(len(body)), rng.choice((1, 1, 3, 30)), rng.choice(bodies)
        put = rng.choice(
            (rng.randbytes(length), b'0"[]{},:-9'[:length], b"", bytes([body[at] ^ 1 << rng.randrange(8)]))
        )
        body[at : rng.choice((at, at + length))] = put
        if rng.random() < 0.2:
            body[at:] = other[rng.randrange(len(other)) :]
        body = body or bytearray(b"{")
    return bytes(body)


def is_json(body: bytes) -> bool:
    """Roughly: what stands in a field that nobody knows is read by nobody."""
    try:
        json.loads(body.decode(errors="replace"), strict=False)
    except ValueError:
        return False
    return True


class Mixture:
    """Good tasks in the queue, functions and commands, and among their messages bad ones."""

    def __init__(self, site: Site, rng: random.Random) -> None:
        (site.folder / "tasks.py").write_text(TASKS)
        self.site, self.bags, self.bad, self.maybe = site, list[BagHandle](), list(JUNK), list[bytes]()
        bases: list[bytes] = []
        script = f"{site.folder}/tasks.py"
        for kind, good_one, hurt_one in (
            ("call", f"{script}:good", f"{script}:hurt"),
            ("run", "sh -c 'echo $0 >> good-run.log' {x}", "true {x}"),
        ):
            good, hurt = self.submit("good", kind, good_one), self.submit("hurt", kind, hurt_one)
            self.bags.append(good)
            self.bad += bad_ones(self.messages(good)[0])
            bases += map(encode, self.messages(hurt))
        for body in (mutant(bases, rng) for _ in range(400)):
            (self.maybe if is_json(body) else self.bad).append(body)
        queue: Any = site.manager.queue
        sent = queue.receive(max_messages=1000, lease_s=60, wait_s=0)
        queue.delete(sent)
        bodies = [delivery.body for delivery in sent] + self.bad + self.maybe
        rng.shuffle(bodies)
        queue.main.send([Body(body) for body in bodies])

    def submit(self, name: str, kind: str, what: str) -> BagHandle:
        options: dict[str, Any] = {kind: what, "per_message": 2, "retries": 0, "lease_s": 3.0}
        return self.site.manager.submit([{"x": x} for x in range(COUNT)], bag=f"{name}-{kind}", **options)

    def messages(self, bag: BagHandle) -> list[dict[str, Any]]:
        """With all fields, also those that have their default."""
        full = {"v": 1, "generation": 0, "attempt": 0, "deaths": 0, "check": False}
        blocks = self.site.manager.table.blocks(bag.name)
        return [full | json.loads(Message.of(bag.info, block).encode()) for block in blocks]

    def over(self) -> bool:
        return all(bag.finished() for bag in self.bags) and self.site.manager.queue.depth() == (0, 0, 0)


def short(body: bytes) -> bytes:
    return body if len(body) < 400 else body[:60] + b"... " + hashlib.sha256(body).hexdigest().encode()


def check_all(site: Site, mixture: Mixture, most_runs: int) -> None:
    """All bad messages were set aside, some of those that may be messages still, and all good tasks done."""
    dead = list(site.manager.table.dead())
    aside, bad = Counter(short(each.body) for each in dead), Counter(map(short, mixture.bad))
    assert bad - aside == Counter(), "not set aside"
    assert aside - bad - Counter(map(short, mixture.maybe)) == Counter(), "set aside twice, or without need"
    assert max(len(each.reason) for each in dead) < 1000
    for bag in mixture.bags:
        assert {(result.state, result.attempt) for result in check(bag)} == {(State.DONE, 1)}
        assert list(bag.attempts()) == []
        runs = Counter((site.folder / f"{bag.name}.log").read_text().split())
        assert set(runs) == set(map(str, range(COUNT))), "each ran, and nothing else"
        assert max(runs.values()) <= most_runs
    assert [result.value for result in mixture.bags[0].results()] == list(range(COUNT))


@pytest.mark.parametrize("killed", [False, True])
def test_bad_messages_are_set_aside_and_good_tasks_done(site: Site, killed: bool) -> None:
    seed = int(os.environ.get("MTASK_TEST_SEED") or random.randrange(10**6))
    print(f"MTASK_TEST_SEED={seed}")
    mixture = Mixture(site, random.Random(seed))
    workers = [site.start_worker("-j", "2", "--lease", "3") for _ in range(2)]
    if killed:
        wait_for(lambda: workers[0].said().count("set aside") > 50, "it is in the middle")
        workers.pop(0).kill()
    wait_for(mixture.over, "all is done or set aside")
    for worker in workers:
        assert worker.alive
        worker.terminate()
        assert worker.exit_code() == 0
        assert "Traceback" not in worker.said()
        assert max(map(len, worker.said().splitlines())) < 1000
    check_all(site, mixture, 2 if killed else 1)
