"""`mtask doctor` at RabbitMQ: who this is, what is there, and whether each thing is allowed.

Rights at RabbitMQ are patterns of names, apart for making (configure), sending (write) and receiving (read):
https://www.rabbitmq.com/docs/access-control. Each is tried on a queue of its own, `NAME-doctorXXXX`, which is removed
again, and on what is there by asking for what changes nothing: an empty message with a routing key that nobody has.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from typing import Any

from mtask.doctor import Finding
from mtask.errors import MtaskError, UnusableError
from mtask_rabbitmq import names
from mtask_rabbitmq.address import CONSUMER_TIMEOUT_S, Address, parse
from mtask_rabbitmq.broker import Broker
from mtask_rabbitmq.errors import MissingError
from mtask_rabbitmq.link import Line
from mtask_rabbitmq.sender import Letter

__all__ = ["diagnose"]

RIGHTS = "`rabbitmqctl set_permissions -p {vhost} {user} '^{name}([-.].*)?$' '^({name}([-.].*)?|amq\\.default)$' '^{name}([-.].*)?$'`"
"""Those that mtask needs, of a manager and of a worker alike: both make lanes, and both send."""


def diagnose(urls: Sequence[str], roles: Collection[str]) -> Iterator[Finding]:
    """As mtask.registry says."""
    for url in urls:
        yield from _diagnose(parse(url), roles)


def _diagnose(address: Address, roles: Collection[str]) -> Iterator[Finding]:
    try:
        credentials = address.credentials()
        address.tls()
    except MtaskError as error:
        yield Finding.problem("credentials", error, stops=True)
        return
    broker = Broker(address)
    try:
        try:
            server = broker.call(_server(broker))
        except MtaskError as error:
            yield Finding.problem("broker", error, stops=True)
            return
        yield Finding("credentials", True, f"{credentials.user} (password from {credentials.source})")
        version = f"{server.get('product', 'an unknown broker')} {server.get('version', '')}".strip()
        known = server.get("product") == "RabbitMQ"
        yield Finding(
            "broker",
            known or None,
            f"{version} at {address.server}, vhost {address.vhost}",
            "" if known else "mtask was made for RabbitMQ",
        )
        yield _encryption(address)
        for finding in broker.call(_queue(broker, address)):
            yield finding
            if finding.stops:
                return
        yield from broker.call(_rights(broker, address, credentials.user, roles))
        yield _timeout(address)
    except MtaskError as error:
        yield Finding.problem("broker", error)
    finally:
        broker.close()


async def _server(broker: Broker) -> dict[str, Any]:
    return (await broker.link("doctor")).server


def _encryption(address: Address) -> Finding:
    if address.scheme == "amqps":
        return Finding("encryption", True, "TLS, and the broker's certificate was checked")
    if address.host in ("localhost", "127.0.0.1", "::1"):
        return Finding("encryption", True, "none, on this machine alone")
    return Finding(
        "encryption",
        None,
        "none: the password and all tasks can be read on the way",
        "use amqps:// if the broker has it",
    )


def _timeout(address: Address) -> Finding:
    """No request tells it: https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout."""
    assumed_s = address.consumer_timeout_s
    default = "; that is RabbitMQ's default" if assumed_s == CONSUMER_TIMEOUT_S else ""
    return Finding(
        "consumer_timeout",
        None,
        f"taken to be {assumed_s:g} s{default}; RabbitMQ tells nobody but its owner",
        "`rabbitmqctl environment | grep consumer_timeout` says it, in milliseconds; if it is shorter, add "
        "?consumer_timeout_s=… to the URL",
    )


async def _queue(broker: Broker, address: Address) -> list[Finding]:
    found, name = [], address.name
    init = "`mtask init` makes it"
    if await broker.number(name) is None:
        return [Finding("queue", False, f"there is no queue {name!r} in vhost {address.vhost!r}", init, True)]
    try:
        async with broker.scratch() as line:  # the same as it is there changes nothing
            await _declare(line, name, names.queue_arguments(name))
        found.append(
            Finding("settings", True, f"a quorum queue; dead letters after {names.DELIVERIES} deliveries")
        )
    except UnusableError as error:
        if "access denied" in str(error):
            found.append(Finding("settings", None, "can't be looked at without the right to make queues"))
        else:
            found.append(Finding.problem("settings", error))
    dead = names.dead(name)
    there = await broker.number(dead) is not None
    text = dead if there else f"{dead} isn't there: what is delivered too often stays where it is"
    found.append(Finding("dead letters", there, text, "" if there else init))
    return found


async def _rights(broker: Broker, address: Address, user: str, roles: Collection[str]) -> list[Finding]:
    lane = names.physical(address.name, f"doctor{secrets.token_hex(4)}")
    todo = RIGHTS.format(vhost=address.vhost, user=user, name=address.name)
    found: list[Finding] = []

    async def tried(what: str, on: str, work: Callable[[Line], Coroutine[Any, Any, Any]]) -> bool:
        try:
            async with broker.scratch() as line:
                await work(line)
        except (UnusableError, MissingError) as error:
            found.append(Finding(what, False, f"denied on {on}: {error}", todo))
            return False
        found.append(Finding(what, True, f"allowed on {on}"))
        return True

    shown = f"{address.name}-*"
    arguments = names.queue_arguments(address.name)
    if not await tried("configure", shown, lambda line: _declare(line, lane, arguments)):
        return found
    try:
        due = names.due(address.name)
        bound = {"queue": lane, "exchange": due, "routing_key": names.due_pattern(lane)}
        await tried("bind", f"{shown} and {due}", lambda line: line.ask("queue_bind", "binding", **bound))
        await tried("write", shown, lambda _: _send(broker, Letter("", lane, b"{}")))
        if "worker" in roles:
            await tried("read", shown, lambda line: line.get(lane))
            await tried("read", address.name, lambda line: _may_read(line, address.name))
    finally:
        async with broker.scratch() as line:
            await line.ask("queue_delete", f"removing {lane}", queue=lane)
    return found


async def _declare(line: Line, queue: str, arguments: dict[str, Any]) -> None:
    await line.ask("queue_declare", f"making {queue}", queue=queue, durable=True, arguments=arguments)


async def _send(broker: Broker, letter: Letter) -> None:
    (why,) = await broker.send([letter])
    if why:
        raise UnusableError(why)


async def _may_read(line: Line, queue: str) -> None:
    """To take nothing, it asks for something impossible: the right is looked at first."""
    options: dict[str, Any] = {"queue": queue, "arguments": {"x-priority": "none"}}
    try:
        await line.ask("basic_consume", f"reading {queue}", on_message_callback=print, **options)
    except UnusableError as error:
        if "access denied" in str(error):
            raise
