"""The Python side of `mtask submit`, `status`, `results`, `retry` and `cancel`."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mtask.bag import BagHandle
from mtask.costs import Bill, prices_of
from mtask.errors import BagNotFoundError, UsageError
from mtask.lanes import Lanes
from mtask.meter import Prices
from mtask.model import Bag, BagState, Spec
from mtask.queue import HandsOut, Queue, Standing
from mtask.registry import open_queue, open_table
from mtask.settings import Urls, find_urls
from mtask.table import Skipped, Table, leave_out

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mtask.append import Known
    from mtask.roles import Roles
    from mtask.sources import Source
    from mtask.submitting import Prepared

__all__ = ["Manager", "connect", "make_spec", "source_of"]


def connect(queue: str | None = None, table: str | None = None) -> Manager:
    """Open a queue and a table by their URLs.

    What isn't given comes from MTASK_QUEUE and MTASK_TABLE, from `mtask.toml`, or is the SQLite file
    `.mtask/mtask.db`. Raises UsageError for a URL that can't be used, BackendError when the vendor is
    out of reach.
    """
    urls = find_urls(queue, table)
    opened = open_table(urls.table)
    try:
        return Manager(open_queue(urls.queue), opened, place=urls.place, urls=urls)
    except BaseException:
        opened.close()
        raise


class Manager:
    """A queue and a table. Close it, or use it in a `with` statement."""

    def __init__(self, queue: Queue, table: Table, *, place: str = "", urls: Urls | None = None) -> None:
        """`place`: where they are, for people; `urls`: from where they were opened, which tells what they cost."""
        self.queue, self.table, self.place = Lanes.over(queue), table, place
        self._urls = urls
        self._known: dict[str, Known] = {}
        """The keys of open bags, by uid."""
        main = self.queue.main
        self._hands_out = main if isinstance(main, HandsOut) else None
        if self._hands_out is not None:
            self._hands_out.attach(table, urls.table if urls else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.queue.close()
        self.table.close()

    @property
    def prices(self) -> list[Prices]:
        """Of the vendors of queue and table, if they bill by use."""
        return prices_of(self._urls) if self._urls else []

    def submit(
        self,
        tasks: str | os.PathLike[str] | Iterable[Any] | Source,
        *,
        call: str | Callable[..., Any] | None = None,
        run: str | None = None,
        shell: str | None = None,
        bag: str | None = None,
        columns: Sequence[str] | None = None,
        on_rows: Callable[[int], None] | None = None,
        on_checked: Callable[[Prepared], None] | None = None,
        on_sent: Callable[[int], None] | None = None,
        row_needs: bool = True,
        open: bool = False,  # noqa: A002 as the option
        seal: bool = False,
        **options: Any,
    ) -> BagHandle:
        """Check all tasks, then store and send them.

        `tasks`: a task file (CSV, JSON Lines, Parquet), or rows: mappings, dataclasses, or sequences
        with `columns`, or a pandas DataFrame. One of `call` ("module:function", or a function that
        can be imported), `run` (a command template) and `shell` (a script) says what to run; without
        any, the column `command` does. `options` are fields of `Spec`: retries, timeout_s, per_message, …;
        also as people write them: memory="8GB", tags="blast,eu", priority="high", rate="10/s".
        `inputs` and `outputs`: name → URL, with {column}s; see docs/staging.md. The columns
        cpus, memory, gpus, tags and priority say it of their row alone, unless `row_needs` is False.
        `on_checked` is called when all tasks are right and none is sent, and may raise.
        The same call again goes on with a submit that was interrupted.

        With `open`, the tasks are added to the open bag of this name, which is made if there is none: any number of
        submits, also at once, until one of them says `seal`, or `BagHandle.seal` does. The same tasks once more are
        the same submit, and add nothing; with `key`, nor does a task whose key is in the bag already.

        Raises InputError for a wrong task and UsageError for a wrong call, with nothing sent, and
        BagExistsError when `bag` names other tasks.
        """
        from mtask.resend import repair
        from mtask.submitting import check_name, claim, prepare, repacked, send

        if bag is not None:
            check_name(bag)
        elif open or seal:
            raise UsageError("an open bag needs a name: --bag NAME")
        source, wish = source_of(tasks, columns)
        options.setdefault("growth", self.queue.limits.growth)
        spec = make_spec(call=call, run=run, shell=shell, columns=source.columns, **options)
        self._check_keep(spec)
        if self._hands_out is not None:
            self._hands_out.check(spec)
            if spec.then:
                raise UsageError(
                    f"--then: {self.place} runs tasks where they can't read the results of others; leave it out"
                )
        prepared = prepare(source, spec, on_rows=on_rows, row_needs=row_needs)
        try:
            if on_checked is not None:
                on_checked(prepared)
            if bag is not None and (open or seal):
                return self._append(prepared, bag, on_sent, seal=seal)
            with Bill(self.queue, self.table) as bill:
                claimed = claim(self.table, prepared, wish if bag is None else bag, explicit=bag is not None)
                bill.uid = claimed.uid
                prepared = repacked(prepared, claimed.spec.growth)
                if claimed.state is BagState.RESENDING:
                    repair(self.queue, self.table, claimed)
                send(self.queue, self.table, claimed, prepared, on_sent=on_sent)
                if spec.then:  # workers may have been done before it was sealed
                    BagHandle(self, claimed.name).then()
                self.flush()
        finally:
            prepared.spool.close()
        return BagHandle(self, claimed.name)

    def _append(
        self, prepared: Prepared, name: str, on_sent: Callable[[int], None] | None, *, seal: bool
    ) -> BagHandle:
        from mtask.append import Known, add, open_bag, rows_of

        with Bill(self.queue, self.table) as bill:
            bag, lanes = open_bag(
                self.table,
                name,
                prepared.spec,
                prepared.columns,
                prepared.placing.kinds,
                source=prepared.source,
            )
            bill.uid = bag.uid
            if prepared.total:
                add(
                    self.queue,
                    self.table,
                    bag,
                    rows_of(prepared.spool.blocks(name, lanes)),
                    submit=prepared.digest,
                    digest=prepared.digest,
                    known=self._known.setdefault(bag.uid, Known()) if bag.spec.key else None,
                    on_sent=on_sent,
                )
            self.flush()
        handle = BagHandle(self, name)
        if seal:
            handle.seal()
        return handle

    @property
    def hands_out(self) -> bool:
        """Does the queue's vendor run the messages itself, without workers of ours?"""
        return self._hands_out is not None

    @property
    def collects(self) -> bool:
        """Does that vendor run somebody who collects, too?"""
        return self._hands_out is not None and self._hands_out.collects

    def flush(self) -> int:
        """Where the vendor runs the messages itself: all that was sent is with it when this returns. How many of
        the tasks that were to be sent again were left out, because it had them already."""
        return self._hands_out.flush() if self._hands_out is not None else 0

    def collect(self) -> int:
        """Where the vendor runs the messages itself (HTCondor): record what has come back; how many rows.

        Elsewhere workers record by themselves, and there is nothing to collect.
        """
        return self._hands_out.collect() if self._hands_out is not None else 0

    def standing(self, name: str) -> Standing | None:
        """How the bag's messages stand with a vendor who runs them itself; None: workers do."""
        return self._hands_out.standing(self.info(name)) if self._hands_out is not None else None

    def cancel(self, name: str) -> None:
        self.table.update_bag(name, state=BagState.CANCELLED)
        if self._hands_out is not None:
            self._hands_out.cancelled(self.info(name))

    def _check_keep(self, spec: Spec) -> None:
        """Raises UsageError for results that are to expire in a table where they can't."""
        if spec.keep_s is not None and not getattr(self.table, "keeps", False):
            where = f"the table {self._urls.table_place}" if self._urls else "this table"
            raise UsageError(
                f"--keep: {where} keeps results for ever; leave it out, or take a table in which they can expire "
                "(DynamoDB)"
            )

    def bag(self, name: str) -> BagHandle:
        """Raises BagNotFoundError."""
        self.info(name)
        return BagHandle(self, name)

    def info(self, name: str) -> Bag:
        """What is stored of a bag. Raises BagNotFoundError, which names the bags there are."""
        try:
            return self.table.bag(name)
        except BagNotFoundError:
            names = [bag.name for bag in self.table.bags(skipped=leave_out)]
            near = difflib.get_close_matches(name, names, 1)
            where = f" in {self.place}" if self.place else ""
            if near:
                hint = f"did you mean {near[0]!r}?"
            else:
                hint = f"there are {', '.join(names[-20:])}" if names else "there is none at all"
            raise BagNotFoundError(f"there is no bag {name!r}{where}; {hint}") from None

    def roles(self, *, skipped: Skipped | None = None) -> Roles:
        """Which roles the workers serve that serve roles only, and how they were to be split; see docs/roles.md.

        `skipped`: as for `bags`.
        """
        from mtask.roles import roles_of

        return roles_of(self.table, skipped)

    def set_roles(self, want: Mapping[str, int], *, new: bool = False) -> None:
        """Have so many of the workers with `--roles auto` serve each role, within 10 s; `{}` takes the roles away.

        The numbers are shares if there are more or fewer such workers. Raises UsageError for a role that no bag asks
        for and no worker serves, unless `new` says that it is meant.
        """
        from mtask.roles import set_roles

        set_roles(self.table, want, new=new)

    def bags(self, *, skipped: Skipped | None = None) -> list[BagHandle]:
        """All, oldest first.

        Raises SchemaError for one that only a newer version can read; where `skipped` is given, that is called with
        the error, and the others are listed.
        """
        return [BagHandle(self, bag.name) for bag in self.table.bags(skipped=skipped)]


def make_spec(
    *,
    call: str | Callable[..., Any] | None = None,
    run: str | None = None,
    shell: str | None = None,
    columns: Collection[str],
    **options: Any,
) -> Spec:
    """The spec of a call, a command template, a shell script or, with none of them, a column `command`.

    `options` as `placing.spec_fields` takes them. Raises UsageError.
    """
    from mtask.placing import spec_fields
    from mtask.staging import staged_columns
    from mtask.template import Template

    given = [name for name, value in (("call", call), ("run", run), ("shell", shell)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"say one of --call, --run and --shell, not {' and '.join('--' + g for g in given)}")
    try:
        options = spec_fields(options)
        for name in ("inputs", "outputs"):
            options[name] = {key: os.fspath(url) for key, url in (options.get(name) or {}).items()}
        columns = staged_columns(columns, options["inputs"], options["outputs"])
        if call is not None:
            return Spec(kind="call", target=(call if isinstance(call, str) else _name_of(call),), **options)
        if run is not None:
            return Spec(kind="run", target=Template.parse(run, columns).words, **options)
        if shell is not None:
            return Spec(kind="shell", target=(shell,), **options)
        return Spec(kind="command", **options)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None


def _name_of(function: Callable[..., Any]) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<lambda>")
    if module in (None, "__main__") or "<" in name:
        raise UsageError(
            f"workers are other processes and import what they run: {name!r} must be a function at the top of a "
            "module (a .py file), not of a notebook or the main script; mtask.map takes those, too"
        )
    return f"{module}:{name}"


def source_of(tasks: Any, columns: Sequence[str] | None) -> tuple[Source, str]:
    """The source, and a name for the bag if none is given."""
    from mtask.sources import RowsSource, open_source

    if isinstance(tasks, str | os.PathLike):
        tasks = open_source(tasks)
    elif not hasattr(tasks, "chunks"):
        return RowsSource(tasks, columns), "tasks"
    name = os.path.basename(tasks.name)
    if name == "standard input":
        return tasks, "stdin"
    return tasks, re.sub(r"[^\w.-]+", "-", name.split(".")[0])[:80].strip("-_.") or "tasks"
