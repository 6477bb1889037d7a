"""RabbitMQ from the outside: `init`, `doctor`, and all that can be wrong, each with what to do about it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer
from threading import Thread

import pytest

from mtask.errors import UnavailableError, UnusableError, UsageError
from mtask.testing.samples import a_message, index_of
from mtask_rabbitmq import make_queue, open_queue
from mtask_rabbitmq.address import CONSUMER_TIMEOUT_S, Address, parse
from tests.servers.process import free_port
from tests.servers.rabbitmq import PASSWORD, USER, Broker, broker
from tests.servers.wire import Wire, wire_to


@pytest.fixture
def made(rabbitmq: Broker) -> str:
    """The URL of a queue."""
    url = rabbitmq.url()
    make_queue(url)
    return url


@pytest.fixture
def wire(rabbitmq: Broker) -> Iterator[Wire]:
    with wire_to(rabbitmq.port) as wire:
        yield wire


def through(wire: Wire, server: Broker, url: str) -> str:
    return url.replace(f":{server.port}/", f":{wire.port}/")


# -- URLs and passwords -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("amqp://me:secret@host/reads", "a password doesn't belong into a URL"),
        ("amqp://me:sec/ret@host/reads", "a password doesn't belong into a URL"),
        ("amqp://me:12/ret@host/reads", "a password doesn't belong into a URL"),
        ("amqp://me:s?e#c@ret@host/reads", "a password doesn't belong into a URL"),
        ("amqp:me:secret@host/reads", "a password doesn't belong into a URL"),
        ("amqp://me@host/reads?pwd=secret", "'amqp://me@host/reads': unknown option 'pwd'"),
        ("amqp:///reads", "is not the URL of a queue at RabbitMQ"),
        ("amqp://host", "a name has 1 to 100"),
        ("amqp://host/a/b/reads", "a '/' in the name of a vhost is written %2F"),
        ("amqp://host/reads.delay", "letters, digits"),
        (f"amqp://host/{'x' * 101}", "1 to 100"),
        ("amqp://host:rabbit/reads", "can't be read"),
        ("amqp://host/reads?consumer_timeout=7200", "did you mean 'consumer_timeout_s'"),
        ("amqp://host/reads?consumer_timeout_s=soon", "number of seconds from 10 on, or 0"),
        ("amqp://host/reads?heartbeat_s=1", "number of seconds from 5 on"),
        ("amqp://host/reads?cafile=/ca.pem", "is for amqps://"),
        ("amqps://host/reads?keyfile=/key.pem", "key of a certfile"),
    ],
)
def test_urls_that_can_not_be_used(url: str, text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        open_queue(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("amqp://host/reads", Address("amqp", "", "host", 5672, "/", "reads")),
        ("amqps://me@host/lab/reads", Address("amqps", "me", "host", 5671, "lab", "reads")),
        (
            "amqp://host:7/%2Fa%2Fb/reads?heartbeat_s=9",
            Address("amqp", "", "host", 7, "/a/b", "reads", CONSUMER_TIMEOUT_S, 9),
        ),
        ("amqp://[::1]/reads?consumer_timeout_s=60", Address("amqp", "", "::1", 5672, "/", "reads", 60.0)),
        (
            "amqp://host/reads?consumer_timeout_s=0",
            Address("amqp", "", "host", 5672, "/", "reads", float("inf")),
        ),
    ],
)
def test_urls(url: str, address: Address) -> None:
    assert parse(url) == address


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MTASK_AMQP_PASSWORD", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    return tmp_path


def test_the_password_comes_from_the_environment_or_from_netrc(
    rabbitmq: Broker, made: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UsageError, match="there is no password for the user 'mtask'; set MTASK_AMQP_PASSWORD, or put"
    ):
        open_queue(made)
    netrc = home / ".netrc"
    netrc.write_text(f'machine 127.0.0.1 login {USER} password "{PASSWORD}"\n')
    netrc.chmod(0o644)
    with pytest.raises(UsageError, match="others may read the passwords in it; do `chmod 600"):
        open_queue(made)
    netrc.chmod(0o600)
    open_queue(made).close()
    open_queue(made.replace(f"{USER}@", "")).close()  # the user from there, too
    with pytest.raises(UsageError, match="no password for the user 'other'"):
        open_queue(made.replace(USER, "other"))
    netrc.write_text("machine 127.0.0.1 login\n\npassword\n nonsense")
    with pytest.raises(UsageError, match="not in the form of a netrc file") as caught:
        open_queue(made)
    assert "nonsense" not in str(caught.value)
    monkeypatch.setenv("NETRC", str(home / "other"))
    (home / "other").write_text(f'machine 127.0.0.1 login {USER} password "{PASSWORD}"\n')
    (home / "other").chmod(0o600)
    open_queue(made).close()


# -- what can be wrong with the broker --------------------------------------------------------------


def test_a_wrong_password(
    made: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MTASK_AMQP_PASSWORD", "s3cret")
    caplog.set_level("DEBUG")
    with pytest.raises(
        UnusableError, match=r"doesn't accept the user 'mtask' with this password \(from MTASK_AMQP"
    ) as e:
        open_queue(made)
    assert "s3cret" not in str(e.value)
    assert "s3cret" not in caplog.text


def test_no_such_vhost(rabbitmq: Broker) -> None:
    with pytest.raises(
        UnusableError, match="has no vhost 'lab', or the user 'mtask' has no rights in it; see"
    ):
        open_queue(rabbitmq.url("reads", vhost="lab"))


def test_no_such_queue(rabbitmq: Broker) -> None:
    with pytest.raises(UnusableError, match=r"there is no queue 'nothing' at .* make it with `mtask init`"):
        open_queue(rabbitmq.url("nothing"))


def test_no_broker(rabbitmq: Broker) -> None:
    url = rabbitmq.url("reads").replace(str(rabbitmq.port), str(free_port()))
    with pytest.raises(UnavailableError, match=r"is out of reach: .*refused"):
        open_queue(url)
    with pytest.raises(UnavailableError, match=r"there is no host 'rabbit.invalid'"):
        open_queue("amqp://rabbit.invalid/reads")


def test_a_broker_that_is_too_old(rabbitmq: Broker, made: str, wire: Wire) -> None:
    wire.change = lambda data: re.sub(rb"(\x07versionS\0\0\0.)\d+\.\d", rb"\g<1>3.0", data)
    with pytest.raises(UnusableError, match=r"mtask needs 3.10 or newer"):
        open_queue(through(wire, rabbitmq, made))


def test_what_is_no_broker() -> None:
    class Web(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with TCPServer(("127.0.0.1", 0), Web) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises((UnusableError, UnavailableError), match="RabbitMQ broker"):
            open_queue(f"amqp://127.0.0.1:{server.server_address[1]}/reads")
        server.shutdown()


def test_a_connection_that_is_cut(rabbitmq: Broker, made: str, wire: Wire) -> None:
    with closing(open_queue(through(wire, rabbitmq, made))) as queue, closing(open_queue(made)) as other:
        queue.send([a_message(1)])
        (held,) = queue.receive(max_messages=1, lease_s=100, wait_s=5)
        wire.cut()
        (again,) = other.receive(max_messages=1, lease_s=100, wait_s=15)
        assert (index_of(again), again.deliveries) == (1, 2)
        assert queue.extend([held], lease_s=100).lost == [held]
        queue.delete([held])
        other.release([again])
        assert queue.receive(max_messages=1, lease_s=100, wait_s=5)[0].deliveries == 2


def test_without_a_broker_a_lease_is_in_doubt_until_there_is_one(rabbitmq: Broker, made: str) -> None:
    with wire_to(rabbitmq.port) as wire, closing(open_queue(through(wire, rabbitmq, made))) as queue:
        queue.send([a_message(1)])
        (held,) = queue.receive(max_messages=1, lease_s=100, wait_s=5)
        wire.close()
        deadline = time.monotonic() + 10
        while True:
            try:
                assert queue.extend([held], lease_s=100).lost == []
            except UnavailableError:
                break
            assert time.monotonic() < deadline


def test_a_broker_that_answers_no_more(
    rabbitmq: Broker, made: str, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtask_rabbitmq.sender.CONFIRM_S", 0.5)
    monkeypatch.setattr("mtask_rabbitmq.queue.EXTEND_S", 0.5)
    with closing(open_queue(through(wire, rabbitmq, made))) as queue:
        queue.send([a_message(1)])
        (held,) = queue.receive(max_messages=1, lease_s=100, wait_s=5)
        wire.deaf = True
        with pytest.raises(UnavailableError, match=r"confirmed no message for 0.5 s: it doesn't answer"):
            queue.send([a_message(2)])
        with pytest.raises(UnavailableError, match=r"no answer within 0.5 s"):
            queue.extend([held], lease_s=100)


def test_a_broker_without_memory_takes_no_messages_but_goes_on_otherwise(
    rabbitmq: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = rabbitmq.url()
    make_queue(url)
    with closing(open_queue(url)) as queue:
        queue.send([a_message(1), a_message(2)])
        (held,) = queue.receive(max_messages=1, lease_s=100, wait_s=5)
        monkeypatch.setattr("mtask_rabbitmq.sender.CONFIRM_S", 2.0)
        rabbitmq.control("set_vm_memory_high_watermark", "0.000001")
        try:
            deadline = time.monotonic() + 20
            with pytest.raises(UnavailableError, match="it is short of"):
                while time.monotonic() < deadline:
                    queue.send([a_message(3)])
            ((_, held),) = queue.extend([held], lease_s=100).extended
            queue.delete([held])
            assert queue.receive(max_messages=1, lease_s=100, wait_s=5)
        finally:
            rabbitmq.control("set_vm_memory_high_watermark", "0.4")
        monkeypatch.setattr("mtask_rabbitmq.sender.CONFIRM_S", 30.0)
        queue.send([a_message(4)])


def test_two_vhosts_are_apart(rabbitmq: Broker) -> None:
    rabbitmq.control("add_vhost", "lab")
    rabbitmq.control("set_permissions", "-p", "lab", USER, ".*", ".*", ".*")
    urls = [rabbitmq.url("both"), rabbitmq.url("both", vhost="lab")]
    assert "vhost lab" in make_queue(urls[1])[0][0]
    make_queue(urls[0])
    with closing(open_queue(urls[0])) as one, closing(open_queue(urls[1])) as two:
        one.send([a_message(1)])
        assert two.receive(max_messages=1, lease_s=1, wait_s=0) == []
        assert one.depth().ready == 1


# -- the commands -----------------------------------------------------------------------------------


def test_init_and_doctor(command, rabbitmq: Broker) -> None:
    url = rabbitmq.url()
    name = parse(url).name
    code, out, err = command("doctor", "--queue", url)
    assert code != 0
    assert f"there is no queue {name!r}" in out
    code, out, err = command("init", url, "--table", "sqlite:///t.db")
    assert (code, err) == (0, "")
    assert f"made       queue {name} at amqp://127.0.0.1:{rabbitmq.port}" in out
    assert command("init", url, "--table", "sqlite:///t.db").out.count("was there") >= 2
    code, out, err = command("doctor")
    assert "broker: RabbitMQ 3." in out
    assert "credentials: mtask (password from MTASK_AMQP_PASSWORD)" in out
    assert "consumer_timeout: taken to be 60 s" in out
    assert f"allowed on {name}-*" in out
    assert PASSWORD not in out + err
    queues = rabbitmq.control("list_queues", "name", "--silent").split()
    assert not [queue for queue in queues if "doctor" in queue], "what it made to try is gone"


def test_doctor_names_the_rights_that_are_missing(command, rabbitmq: Broker, made: str, monkeypatch) -> None:
    name = parse(made).name
    monkeypatch.setenv("MTASK_AMQP_PASSWORD", "pw")
    rabbitmq.control("add_user", f"u-{name}", "pw")
    url = made.replace(USER, f"u-{name}", 1)

    def rights(configure: str, write: str, read: str) -> str:
        rabbitmq.control("set_permissions", f"u-{name}", configure, write, read)
        return str(command("doctor", "--queue", url).out)

    mine = f"^{name}([-.].*)?$"
    write = f"^({name}([-.].*)?|amq\\.default)$"
    out = rights("", "", "")
    assert f"configure: denied on {name}-*" in out
    assert "rabbitmqctl set_permissions -p / " in out
    assert f"read: denied on {name}: " in rights(mine, write, f"^{name}-.*")
    out = rights(mine, mine, mine)  # a queue whose dead letters go through an exchange needs a right to that
    assert "denied on" in out
    assert "amq.default" in out
    out = rights(mine, write, mine)
    assert "denied" not in out
    with closing(open_queue(url)) as queue, closing(queue.lane("b")) as lane:
        for each in (queue, lane):
            each.send([a_message(1)])
            each.send([a_message(2)], delay_s=0.5)
            for _ in range(2):
                each.delete(each.receive(max_messages=1, lease_s=10, wait_s=5))
        assert list(queue.dead()) == []


def test_a_bag_from_submit_to_results(command, rabbitmq: Broker) -> None:
    command("init", rabbitmq.url(), "--table", "sqlite:///t.db")
    command.write("tasks.csv", "name\nx\ny\nz\n")
    done = command.process("submit", "tasks.csv", "--run", "echo {name}", "--bag", "june", "--priority", "3")
    assert done.code == 0, done.err
    done = command.process("worker", "-j", "1", "--idle-exit", "0.5s")
    assert done.code == 0, done.err
    done = command.process("status", "june")
    assert re.search(r"\b3 done\b", done.out), done.out
    assert PASSWORD not in done.out + done.err
    results = command.process("results", "june", "-o", "r.csv")
    assert results.code == 0, results.err


# -- TLS --------------------------------------------------------------------------------------------


def certificates(folder: Path) -> dict[str, Path]:
    """Of an authority, of a server signed by it, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.now(UTC)
    paths = {name: folder / f"{name}.pem" for name in ("ca", "server", "key")}
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in ("tests", "127.0.0.1")
    ]
    for number, name in enumerate(("ca", "server")):
        builder = x509.CertificateBuilder(
            issuer_name=names[0],
            subject_name=names[number],
            public_key=keys[number].public_key(),
            serial_number=number + 1,
            not_valid_before=now - timedelta(days=1),
            not_valid_after=now + timedelta(days=1),
        ).add_extension(x509.BasicConstraints(ca=not number, path_length=None), critical=True)
        if number:
            alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
            builder = builder.add_extension(alternative, critical=False)
        pem = builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        paths[name].write_bytes(pem)
    paths["key"].write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTASK_AMQP_PASSWORD", PASSWORD)
    paths, port = certificates(tmp_path), free_port()
    settings = f"""
        listeners.ssl.1 = 127.0.0.1:{port}
        ssl_options.cacertfile = {paths["ca"]}
        ssl_options.certfile = {paths["server"]}
        ssl_options.keyfile = {paths["key"]}
        ssl_options.verify = verify_none
    """
    (tmp_path / "broker").mkdir()
    with broker(tmp_path / "broker", settings=settings) as server:
        url = f"amqps://{USER}@127.0.0.1:{port}/reads?cafile={paths['ca']}"
        make_queue(url)
        with closing(open_queue(url)) as queue:
            queue.send([a_message(1)])
            assert index_of(queue.receive(max_messages=1, lease_s=9, wait_s=5)[0]) == 1
        with pytest.raises(UnusableError, match=r"can't be trusted: .*; name the authority .*cafile=PATH"):
            open_queue(url.partition("?")[0])
        with pytest.raises(UnavailableError, match=r"doesn't speak TLS|out of reach"):
            open_queue(url.replace(str(port), str(server.port)))
    with pytest.raises(UsageError, match="files of certificates can't be used"):
        open_queue(f"amqps://{USER}@127.0.0.1:{port}/reads?cafile=/nowhere.pem")
