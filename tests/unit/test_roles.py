"""Roles: who gets which, from the wish, the backlog and the heartbeats; and how the workers agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtask.errors import UnavailableError, UsageError
from mtask.manager import Manager, connect
from mtask.model import Bag, Message, Spec
from mtask.requirements import Capabilities, Lane, Requirements, can_with, lacking
from mtask.roles import (
    AUTO,
    BY_BACKLOG,
    Split,
    assign,
    change,
    follow,
    parse_roles,
    read,
    role_of,
    shares,
    swap,
)
from mtask.status import unable, unserved
from mtask.testing.samples import a_done, a_status
from mtask.worker import roles
from mtask.worker.notes import Notes
from mtask.worker.roles import RoleKeeper
from tests.unit.worker_kit import Place, Wrapper, unavailable, wait_until

ROLES = st.sampled_from(["bio", "compsci", "finance", "math", "physics"])
WANT = st.dictionaries(ROLES, st.integers(0, 40), max_size=5)
WORKERS = st.sets(st.integers(0, 30).map("w{:02}".format), max_size=20)


class TestShares:
    @pytest.mark.parametrize(
        ("want", "workers", "found"),
        [
            ({"physics": 4, "bio": 1}, 5, {"physics": 4, "bio": 1}),
            ({"physics": 4, "bio": 1}, 10, {"physics": 8, "bio": 2}),
            ({"physics": 4, "bio": 1}, 3, {"physics": 2, "bio": 1}),
            ({"physics": 4, "bio": 1}, 1, {"physics": 1}),
            ({"physics": 99, "bio": 1}, 5, {"physics": 4, "bio": 1}),
            ({"physics": 4, "bio": 0}, 5, {"physics": 5}),
            ({}, 5, {}),
            ({"bio": 1}, 0, {}),
        ],
    )
    def test_examples(self, want, workers, found):
        assert shares(want, workers) == found

    @given(WANT, st.integers(0, 50))
    def test_all_are_shared_out_and_nobody_goes_without(self, want, workers):
        found = shares(want, workers)
        wanted = {role: number for role, number in want.items() if number}
        assert sum(found.values()) == (workers if wanted else 0)
        assert found.keys() <= wanted.keys()
        if workers >= len(wanted):
            assert found.keys() == wanted.keys()
        if workers == sum(wanted.values()):
            assert found == wanted


class TestAssign:
    @given(WANT, st.dictionaries(st.integers(0, 30).map("w{:02}".format), ROLES), WORKERS)
    def test_totals_are_right_and_few_change(self, want, held, workers):
        found = assign(want, held, workers)
        counts = shares(want, len(workers), Counter(held[each] for each in workers if each in held))
        assert found.keys() == workers
        if not counts:
            assert set(found.values()) <= {""}
            return
        assert Counter(found.values()) == counts
        before = Counter(held[worker] for worker in workers if worker in held)
        stay = sum(min(before[role], counts[role]) for role in counts)
        assert sum(found[worker] == held.get(worker) for worker in workers) == stay, (
            "no more change than must"
        )
        assert assign(want, found, workers) == found, "who looks next changes nothing"

    def test_all_agree_in_whatever_order_they_look(self):
        want, held = {"a": 2, "b": 1}, {"w1": "b", "w3": "a"}
        assert assign(want, held, ["w1", "w2", "w3"]) == assign(
            dict(reversed(want.items())), held, {"w3", "w2", "w1"}
        )


class TestFollow:
    @given(
        st.dictionaries(ROLES, st.integers(0, 1000), max_size=5),
        st.dictionaries(ROLES, st.integers(0, 6), max_size=5),
        st.integers(0, 6),
    )
    @example({"bio": 1, "math": 1}, {"bio": 2}, 0)
    def test_nobody_starves_and_it_comes_to_rest(self, open_tasks, serving, more):
        workers = sum(serving.values()) + more
        found = follow(open_tasks, serving, workers)
        wants = {role for role, count in open_tasks.items() if count}
        if wants:
            assert sum(found.values()) == workers
        if workers >= len(wants):
            assert wants <= found.keys()
        again = follow(open_tasks, found, workers)
        assert follow(open_tasks, again, workers) == again

    def test_a_little_more_or_less_changes_nothing(self):
        serving = {"bio": 2, "physics": 4}
        for bio in range(35, 70):
            assert follow({"bio": bio, "physics": 100}, serving, 6) == serving

    def test_the_load_is_evened_out(self):
        assert follow({"bio": 100, "physics": 100}, {"bio": 1, "physics": 7}, 8) == {"bio": 3, "physics": 5}

    def test_who_has_nothing_to_do_helps(self):
        assert follow({"bio": 10}, {"physics": 3}, 3) == {"bio": 3}
        assert follow({}, {"physics": 3}, 3) == {"physics": 3}, "nobody has anything"

    def test_fewer_workers_than_roles(self):
        assert follow({"a": 10, "b": 30, "c": 20}, {}, 2) == {"b": 1, "c": 1}
        assert follow({"a": 19, "b": 30, "c": 10}, {"b": 1, "c": 1}, 2) == {"b": 1, "c": 1}
        assert follow({"a": 20, "b": 30, "c": 10}, {"b": 1, "c": 1}, 2) == {"b": 1, "a": 1}


class TestWords:
    def test_what_the_option_takes(self):
        assert parse_roles("physics,bio,physics") == ("physics", "bio")
        assert parse_roles("auto") == ("auto",)

    @pytest.mark.parametrize("text", ["", "auto,bio", "!bio", "bio,by-backlog", "?"])
    def test_what_it_refuses(self, text):
        with pytest.raises(ValueError):
            parse_roles(text)

    def test_which_tag_is_the_role(self):
        assert role_of(Requirements(tags=("bio", "!spot")), ()) == "bio"
        assert role_of(Requirements(tags=("bio", "eu")), {"eu"}) == "bio"
        assert role_of(Requirements(tags=("bio", "eu")), ()) == ""
        assert role_of(Requirements(), ()) == ""

    def test_what_a_worker_with_roles_serves(self):
        can = can_with(Capabilities(tags=("eu",)), ("bio",))
        assert lacking(can, ("bio",), Requirements(tags=("bio", "eu"))) == ""
        assert lacking(can, ("bio",), Requirements(only_on=("bio", "math"))) == ""
        assert lacking(can, ("bio",), Requirements(tags=("eu",))) == "the role eu"
        assert lacking(can, ("bio",), Requirements()) == "a worker without --roles"
        assert lacking(can, ("bio",), Requirements(tags=("bio", "us"))) == "the tag us"
        assert lacking(can, None, Requirements()) == ""
        assert lacking(can, (), Requirements(tags=("bio",))) == "the role bio"

    def test_what_nobody_serves(self):
        def bag(*tags: str) -> Bag:
            lane = Lane.of(0, Requirements(tags=tags))
            return Bag(name="b", spec=Spec(kind="command"), lanes=(lane,) if lane.name else ())

        auto = a_status("w1", roles=("bio",), takes="auto", can=Capabilities(tags=("bio",)))
        follows = a_status("w2", roles=("bio",), takes="by-backlog", can=Capabilities(tags=("bio", "eu")))
        assert unserved(bag("bio"), [auto]) == []
        assert unserved(bag("math"), [auto]) == ["needs tags=math: the only worker doesn't have that"]
        assert unserved(bag("math", "eu"), [follows]) == [], "it may come to that by itself"
        assert unable(follows, Requirements(tags=("math", "us"))) == "the role math or us"
        (told,) = unserved(bag(), [auto, follows])
        assert told.startswith("asks for no role")


# -- the table ----------------------------------------------------------------------------------------


@pytest.fixture
def mt(tmp_path: Path) -> Iterator[Manager]:
    with connect(f"sqlite:///{tmp_path}/m.db", f"sqlite:///{tmp_path}/m.db") as manager:
        yield manager


def submit(mt: Manager, name: str, tags: str, tasks: int = 10, **more) -> None:
    mt.submit([{"command": f"echo {n}"} for n in range(tasks)], bag=name, tags=tags, **more)


class TestSet:
    def test_only_roles_that_somebody_asks_for(self, mt):
        submit(mt, "p", "physics,!spot")
        submit(mt, "b", "bio")
        mt.set_roles({"physics": 4, "bio": 1})
        assert mt.roles().wanted == {"physics": 4, "bio": 1}
        with pytest.raises(
            UsageError, match=r"the role 'phisics'; did you mean 'physics'\? There are bio, physics.*--new"
        ):
            mt.set_roles({"phisics": 2})
        assert mt.roles().wanted == {"physics": 4, "bio": 1}, "nothing was changed"
        mt.set_roles({"phisics": 2}, new=True)
        mt.set_roles({"phisics": 1, "bio": 1})
        assert mt.roles().wanted == {"phisics": 1, "bio": 1}
        mt.set_roles({})
        assert mt.roles().wanted == {}

    def test_roles_that_workers_serve_are_known(self, mt):
        mt.table.beat(a_status(roles=("math",)))
        mt.set_roles({"math": 1})
        with pytest.raises(UsageError, match="there are math"):
            mt.set_roles({"bio": 1})

    @pytest.mark.parametrize(
        "want", [{"bio": -1}, {"bio": 0}, {"auto": 1}, {"a,b": 1}, {"": 1}, {"bio": 1.5}]
    )
    def test_what_cant_be_wanted(self, mt, want):
        with pytest.raises(UsageError):
            mt.set_roles(want, new=True)

    def test_what_is_open_of_each_role(self, mt):
        submit(mt, "p", "physics", 7)
        mt.submit([{"command": "true", "tags": tag} for tag in ("bio", "math", "math")], bag="rows")
        mt.submit([{"command": "true"}], bag="none")
        submit(mt, "two", "physics,bio", 5)
        mt.table.record([a_done(0, bag="p")])
        assert mt.roles().open_tasks == {"physics": 6, "bio": 2, "math": 2}
        mt.cancel("p")
        assert mt.roles().open_tasks == {"physics": 0, "bio": 2, "math": 2}


class Fleet:
    """Role keepers of several workers without the workers, and a clock that is set by hand."""

    def __init__(self, mt: Manager, pool: str = AUTO) -> None:
        self.pool, self.now_s = pool, 100.0
        self.table = Wrapper(mt.table)
        self.keepers: dict[str, RoleKeeper] = {}
        self.told: dict[str, list[str]] = {}

    def start(self, *names: str) -> None:
        for name in names:
            self.told[name] = []
            notes = Notes(lambda text: None)
            self.keepers[name] = RoleKeeper(
                self.table, name, self.pool, notes, self.told[name].append, clock=lambda: self.now_s
            )
        self.step(0.0)

    def kill(self, name: str) -> None:
        del self.keepers[name]

    def step(self, seconds: float = 2.0) -> None:
        self.now_s += seconds
        for name in self.keepers:
            self.table.beat(a_status(name, roles=(), takes=self.pool))
        for keeper in self.keepers.values():
            keeper.look()

    @property
    def roles(self) -> dict[str, int]:
        """Of those that live."""
        return dict(Counter(self.told[name][-1] for name in self.keepers if self.told[name]))


class TestKeepers:
    def test_all_agree_and_few_change(self, mt):
        fleet = Fleet(mt)
        fleet.start(*"abcde")
        assert fleet.roles == {}
        change(mt.table, AUTO, {"physics": 4, "bio": 1})
        fleet.step()
        assert fleet.roles == {"physics": 4, "bio": 1}
        change(mt.table, AUTO, {"physics": 3, "bio": 2})
        fleet.step()
        assert fleet.roles == {"physics": 3, "bio": 2}
        assert sum(len(told) for told in fleet.told.values()) == 6, "one has changed"
        assert set(read(mt.table, AUTO)[0].held) == set("abcde")

    def test_who_has_died_is_made_up_for(self, mt):
        fleet = Fleet(mt)
        change(mt.table, AUTO, {"physics": 2, "bio": 1})
        fleet.start(*"abc")
        (only,) = (name for name, told in fleet.told.items() if told[-1] == "bio")
        fleet.kill(only)
        fleet.step(roles.DEAD_S - 2.1)
        assert fleet.roles == {"physics": 2}, "it may live"
        for _ in range(3):
            fleet.step()
        assert fleet.roles == {"physics": 1, "bio": 1}

    def test_who_was_only_away_enters_itself_again(self, mt):
        fleet = Fleet(mt)
        change(mt.table, AUTO, {"physics": 1, "bio": 1})
        fleet.start(*"ab")
        away = fleet.keepers.pop("a")
        for _ in range(6):
            fleet.step()
        assert read(mt.table, AUTO)[0].held == {"b": fleet.told["b"][-1]}
        fleet.keepers["a"] = away
        for _ in range(2):
            fleet.step()
        assert fleet.roles == {"physics": 1, "bio": 1}

    def test_who_stops_says_so(self, mt):
        fleet = Fleet(mt)
        change(mt.table, AUTO, {"physics": 1, "bio": 1})
        fleet.start(*"ab")
        fleet.keepers.pop("a").leave()
        assert read(mt.table, AUTO)[0].held == {"b": "physics"}, "and b need not change"

    def test_a_role_is_taken_though_the_table_fails_when_it_is_looked_up(self, mt):
        fleet = Fleet(mt)
        fleet.start("a")
        change(mt.table, AUTO, {"physics": 1})
        fleet.table.faults["bags"] = unavailable
        with pytest.raises(UnavailableError):
            fleet.step()
        fleet.table.faults.clear()
        fleet.step()
        assert fleet.told == {"a": ["physics"]}

    def test_those_of_yesterday_are_gone_at_once(self, mt):
        swap(mt.table, AUTO, Split(want={"physics": 1, "bio": 1}, held={"old": "physics"}), 0)
        fleet = Fleet(mt)
        fleet.table.faults["workers"] = lambda real: [a_status("old", beat_at=1.0), *real()]
        fleet.start("a", "b")
        assert fleet.roles == {"physics": 1, "bio": 1}


def test_what_a_worker_hasnt_started_goes_back_when_its_role_changes(mt, tmp_path):
    """Also of a message of which a task runs, which may end."""
    place, gate = Place(mt), tmp_path / "gate"
    rows = [{"x": x, "path": str(gate)} for x in range(6)]
    bag = place.submit("wait_for", rows, tags="physics", per_message=3)
    change(mt.table, AUTO, {"physics": 1})
    (lane,) = bag.info.lanes
    with place.working(takes="auto", split_after_s=600) as worker:
        wait_until(lambda: Path(f"{gate}.0").exists() or Path(f"{gate}.3").exists(), what="a task")
        change(mt.table, AUTO, {"bio": 1})
        wait_until(lambda: worker.roles == ("bio",), what="the other role")
        wait_until(lambda: _waiting_tasks(mt, lane.name) == 5, what="all others in the queue")
        gate.touch()
        wait_until(lambda: bag.counts().done == 1, what="the one that ran")
    assert "its role is now physics" in place.said
    assert bag.counts().done == 1


def test_another_has_the_role_of_a_worker_that_is_draining(mt, tmp_path):
    """At once, however long its last task runs."""
    place, gate = Place(mt), tmp_path / "gate"
    place.submit("wait_for", [{"x": 0, "path": str(gate)}], tags="physics")
    change(mt.table, AUTO, {"physics": 1})
    with place.working(takes="auto") as worker:
        wait_until(lambda: Path(f"{gate}.0").exists(), what="the task")
        worker.drain(grace_s=30)
        wait_until(lambda: not read(mt.table, AUTO)[0].held, timeout_s=10, what="it is out of the list")
        fleet = Fleet(mt)
        fleet.start("other")
        assert read(mt.table, AUTO)[0].held == {"other": "physics"}
        gate.touch()
        wait_until(lambda: mt.bag("bag").counts().done == 1)


def _waiting_tasks(mt: Manager, lane: str) -> int:
    """Tasks of the messages that anybody could receive now; they are given back."""
    found = mt.queue.receive(max_messages=10, lease_s=30, wait_s=0, lane=lane)
    mt.queue.release(found)
    return sum(Message.decode(each.body).count for each in found)


class TestBacklog:
    def test_the_split_follows_the_open_tasks(self, mt):
        submit(mt, "p", "physics", 60)
        fleet = Fleet(mt, BY_BACKLOG)
        fleet.start(*"abcd")
        assert fleet.roles == {"physics": 4}
        submit(mt, "b", "bio", 20)
        fleet.step(4)
        fleet.step()
        assert fleet.roles == {"physics": 3, "bio": 1}, "at once, for nobody served it"
        mt.table.record([a_done(n, bag="p") for n in range(50)])
        fleet.step(4)
        assert fleet.roles == {"physics": 3, "bio": 1}, "not so soon again"
        fleet.step(roles.STAY_S)
        fleet.step()
        assert fleet.roles == {"physics": 2, "bio": 2}
        mt.table.record([a_done(n, bag="p") for n in range(60)])
        fleet.step(roles.STAY_S)
        fleet.step()
        assert fleet.roles == {"physics": 1, "bio": 3}, "there were some lately"
        fleet.step(roles.LATELY_S)
        fleet.step()
        assert fleet.roles == {"bio": 4}

    def test_a_change_that_another_was_quicker_than_is_made_at_the_next_look(self, mt):
        submit(mt, "p", "physics", 60)
        submit(mt, "b", "bio", 20)
        fleet = Fleet(mt, BY_BACKLOG)
        fleet.start(*"abcd")
        for _ in range(2):
            fleet.step(roles.STAY_S)
        assert fleet.roles == {"physics": 3, "bio": 1}
        mt.table.record([a_done(n, bag="p") for n in range(40)])
        fleet.table.faults["swap"] = lambda real, *given: False
        fleet.step(roles.STAY_S)
        fleet.table.faults.clear()
        fleet.step(roles.AGAIN_S)
        fleet.step(roles.AGAIN_S)
        assert fleet.roles == {"physics": 2, "bio": 2}

    def test_a_tag_that_a_worker_has_is_no_role(self, mt):
        submit(mt, "b", "blast", 60)
        mt.table.beat(a_status("plain", can=Capabilities(tags=("blast",))))
        fleet = Fleet(mt, BY_BACKLOG)
        fleet.start("a")
        assert fleet.roles == {}

    def test_another_goes_on_when_the_first_has_died(self, mt):
        submit(mt, "p", "physics", 60)
        fleet = Fleet(mt, BY_BACKLOG)
        fleet.start(*"abc")
        fleet.kill("a")
        for _ in range(6):
            fleet.step()
        submit(mt, "b", "bio", 60)
        for _ in range(4):
            fleet.step()
        assert fleet.roles == {"physics": 1, "bio": 1}
