"""The cache of inputs: what is kept, what goes, and what many processes do with it at once."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtask.errors import UsageError
from mtask.worker.child import cache as module
from mtask.worker.child.cache import VERIFY_S, Cache, version_of

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1000)


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were fetched, in order."""
    found: list[str] = []
    local = fsspec.get_filesystem_class("file")
    before = local.get_file

    def get_file(self: object, path: str, *args: object, **options: object) -> None:
        found.append(os.path.basename(path))
        before(self, path, *args, **options)

    monkeypatch.setattr(local, "get_file", get_file)
    return found


def put(store: Path, name: str, content: bytes) -> str:
    (store / name).parent.mkdir(exist_ok=True)
    (store / name).write_bytes(content)
    return f"file://{store}/{name}"


def get(cache: Cache, url: str) -> bytes:
    use = cache.use(url)
    content = Path(use.path).read_bytes()
    use.close()
    return content


def size_of(cache: Cache) -> int:
    return sum(
        each.stat().st_size for each in (cache.folder / "entries").glob("*/data/**/*") if each.is_file()
    )


def test_what_is_there_is_not_fetched_again(cache: Cache, store: Path, fetches: list[str]) -> None:
    url = put(store, "db.fa", b"db")
    assert [get(cache, url) for _ in range(3)] == [b"db"] * 3
    assert fetches == ["db.fa"]
    use = cache.use(url)
    assert os.path.basename(use.path) == "db.fa"
    assert not os.stat(use.path).st_mode & 0o222


def test_what_has_changed_is_fetched_anew_and_the_old_one_stays_while_it_is_used(
    cache: Cache, store: Path, fetches: list[str]
) -> None:
    url = put(store, "db.fa", b"old")
    old = cache.use(url)
    put(store, "new", b"new")
    os.utime(store / "new", ns=(1, os.stat(store / "db.fa").st_mtime_ns))  # the same size and time
    os.rename(store / "new", store / "db.fa")
    assert get(cache, url) == b"new"
    assert Path(old.path).read_bytes() == b"old"
    assert fetches == ["db.fa"] * 2


def test_what_is_not_there_any_more_is_not_taken_from_the_cache(cache: Cache, store: Path) -> None:
    url = put(store, "db.fa", b"db")
    get(cache, url)
    os.unlink(store / "db.fa")
    with pytest.raises(FileNotFoundError):
        cache.use(url)


def test_a_damaged_file_is_fetched_anew(cache: Cache, store: Path, fetches: list[str]) -> None:
    url = put(store, "db.fa", b"right")
    path = Path(cache.use(url).path)
    found = path.stat()
    path.chmod(0o600)
    path.write_bytes(b"wrong")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert get(cache, url) == b"right"
    assert fetches == ["db.fa"] * 2


def test_what_is_damaged_stays_until_nobody_uses_it(cache: Cache, store: Path) -> None:
    url = put(store, "db.fa", b"right")
    use = cache.use(url)
    held = os.open(Path(use.path).parents[1], os.O_RDONLY | os.O_DIRECTORY)
    Path(use.path).chmod(0o600)
    Path(use.path).write_bytes(b"wrong")
    assert get(cache, url) == b"right"
    assert os.listdir(f"/proc/self/fd/{held}/data") == ["db.fa"]
    assert len(list((cache.folder / "tmp").iterdir())) == 1
    use.close()
    get(cache, put(store, "other.fa", b"other"))
    assert not list((cache.folder / "tmp").iterdir())
    os.close(held)


def test_no_room_to_note_that_a_file_is_right_is_no_damage(
    cache: Cache, store: Path, fetches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(store, "db.fa", b"right")
    use = cache.use(url)
    os.utime(use.path)

    def write(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", write)
    assert get(cache, url) == b"right"
    assert Path(use.path).read_bytes() == b"right"
    assert fetches == ["db.fa"]


def test_a_file_that_was_only_touched_is_not(cache: Cache, store: Path, fetches: list[str]) -> None:
    url = put(store, "db.fa", b"right")
    os.utime(cache.use(url).path)
    assert get(cache, url) == b"right"
    assert fetches == ["db.fa"]


def test_checksums_are_looked_at_again_after_a_day(cache: Cache, store: Path, fetches: list[str]) -> None:
    url = put(store, "db.fa", b"right")
    use = cache.use(url)
    meta = Path(use.path).parents[1] / "meta"
    said = json.loads(meta.read_bytes())
    said["verified_at"] -= VERIFY_S
    digest = said["files"]["db.fa"]["digest"]
    said["files"]["db.fa"]["digest"] = "0" * 64  # as if the disk gave other bytes without a word
    meta.write_text(json.dumps(said))
    assert get(cache, url) == b"right"
    assert fetches == ["db.fa"] * 2
    (meta,) = cache.folder.glob("entries/*/meta")
    assert json.loads(meta.read_bytes())["files"]["db.fa"]["digest"] == digest


def test_a_folder_is_fetched_whole(cache: Cache, store: Path, fetches: list[str]) -> None:
    for name in ("db.nin", "db.nsq", "more/x"):
        put(store / "blast", name, name.encode()) if "/" not in name else None
    (store / "blast" / "more").mkdir()
    put(store / "blast" / "more", "x", b"x")
    use = cache.use(f"file://{store}/blast/")
    assert os.path.basename(use.path) == "blast"
    assert sorted(
        str(each.relative_to(use.path)) for each in Path(use.path).rglob("*") if each.is_file()
    ) == [
        "db.nin",
        "db.nsq",
        "more/x",
    ]
    cache.use(f"file://{store}/blast/")
    assert len(fetches) == 3
    put(store / "blast", "db.nto", b"another one")
    cache.use(f"file://{store}/blast/")
    assert len(fetches) == 7


def test_a_folder_without_its_slash_and_an_empty_one_are_refused(cache: Cache, store: Path) -> None:
    (store / "empty").mkdir()
    with pytest.raises(IsADirectoryError, match="slash"):
        cache.use(f"file://{store}/empty")
    with pytest.raises(FileNotFoundError):
        cache.use(f"file://{store}/empty/")


def test_what_was_not_used_for_longest_makes_room(cache: Cache, store: Path, fetches: list[str]) -> None:
    urls = [put(store, f"{at}", b"x" * 400) for at in range(3)]
    get(cache, urls[0])
    get(cache, urls[1])
    get(cache, urls[0])
    get(cache, urls[2])  # 1 has to go
    assert size_of(cache) == 800
    get(cache, urls[0])
    assert fetches == ["0", "1", "2"]
    get(cache, urls[1])
    assert fetches == ["0", "1", "2", "1"]


def test_what_is_in_use_stays_even_if_it_is_too_much(cache: Cache, store: Path) -> None:
    urls = [put(store, f"{at}", b"x" * 400) for at in range(4)]
    uses = [cache.use(url) for url in urls]
    assert size_of(cache) == 1600
    assert all(Path(use.path).exists() for use in uses)
    for use in uses:
        use.close()
    get(cache, put(store, "5", b"x" * 400))
    assert size_of(cache) <= 1000


def test_a_fetch_that_fails_leaves_nothing(
    cache: Cache, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(store, "db", b"whole")

    def get_file(_self: object, _path: str, target: str, **_options: object) -> None:
        Path(target).write_bytes(b"hal")

    with monkeypatch.context() as patch:
        patch.setattr(fsspec.get_filesystem_class("file"), "get_file", get_file)
        with pytest.raises(OSError, match="3 bytes came of 5"):
            cache.use(url)
    assert not list((cache.folder / "tmp").iterdir())
    assert not list((cache.folder / "entries").iterdir())
    assert get(cache, url) == b"whole"


def test_what_changes_while_it_is_fetched_is_fetched_anew(
    cache: Cache, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(store, "db", b"older")
    local = fsspec.get_filesystem_class("file")
    before = local.get_file

    def get_file(self: object, path: str, *args: object, **options: object) -> None:
        before(self, path, *args, **options)
        if Path(path).read_bytes() == b"older":
            put(store, "db", b"newer")
            os.utime(path, ns=(1, 1))

    monkeypatch.setattr(local, "get_file", get_file)
    assert get(cache, url) == b"newer"
    assert len(list((cache.folder / "entries").iterdir())) == 1


def test_what_a_killed_process_has_left_goes_with_the_next_fetch(cache: Cache, store: Path) -> None:
    left = cache.folder / "tmp" / "left"
    (left / "data").mkdir(parents=True)
    (left / "lock").write_bytes(b"500")
    lives = cache.folder / "tmp" / "lives"
    lives.mkdir()
    with open(lives / "lock", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        get(cache, put(store, "db", b"db"))
        assert not left.exists()
        assert lives.exists()


FETCH = """
import sys, time, fsspec
from mtask.worker.child.cache import Cache
local = fsspec.get_filesystem_class("file")
before = local.get_file
def get_file(self, path, target, **options):
    with open(sys.argv[1], "a") as log:
        log.write("fetched\\n")
    time.sleep(0.3)
    before(self, path, target, **options)
local.get_file = get_file
print(open(Cache.of_environment().use(sys.argv[2]).path).read())
"""


def test_many_processes_that_want_the_same_fetch_it_once(store: Path, tmp_path: Path) -> None:
    url, log = put(store, "db", b"db"), tmp_path / "log"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH, str(log), url],
            env=os.environ | {"MTASK_CACHE": str(tmp_path / "cache")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [process.communicate()[0] for process in processes] == ["db\n"] * 4
    assert log.read_text() == "fetched\n"


@pytest.mark.parametrize("key", ["ETag", "LastModified", "mtime", "size", "etag", "VersionId", "md5Hash"])
def test_a_version_is_another_one_when_the_store_says_so(key: str) -> None:
    info = {"name": "b/x", "size": 3, "type": "file", "StorageClass": "STANDARD"}
    assert version_of([info | {key: "1"}]) == version_of([info | {key: "1", "StorageClass": "GLACIER"}])
    assert version_of([info | {key: "1"}]) != version_of([info | {key: "2"}])


def test_settings_that_make_no_sense_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MTASK_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UsageError, match="set MTASK_CACHE to another folder"):
        Cache.of_environment()
    monkeypatch.setenv("MTASK_CACHE_SIZE", "much")
    with pytest.raises(UsageError, match="MTASK_CACHE_SIZE"):
        Cache.of_environment()
