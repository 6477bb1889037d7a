"""Where queue and table are: command line, environment, mtask.toml, default."""

from __future__ import annotations

import pytest

from mtask.errors import UsageError
from mtask.settings import DEFAULT_URL, Urls, find_urls


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MTASK_QUEUE", raising=False)
    monkeypatch.delenv("MTASK_TABLE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_default():
    assert find_urls() == (DEFAULT_URL, DEFAULT_URL)


def test_each_place_overrides_the_next(empty_folder, monkeypatch):
    (empty_folder / "mtask.toml").write_text('queue = "sqlite:///file.db"\ntable = "sqlite:///file-t.db"\n')
    assert find_urls() == ("sqlite:///file.db", "sqlite:///file-t.db")
    monkeypatch.setenv("MTASK_QUEUE", "sqlite:///env.db")
    assert find_urls() == ("sqlite:///env.db", "sqlite:///file-t.db")
    assert find_urls("sqlite:///option.db") == ("sqlite:///option.db", "sqlite:///file-t.db")
    assert find_urls(table="sqlite:///o.db") == ("sqlite:///env.db", "sqlite:///o.db")


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("MTASK_QUEUE", "")
    assert find_urls().queue == DEFAULT_URL


def test_a_queue_that_can_be_a_table_is_both():
    assert find_urls("sqlite:///q.db") == ("sqlite:///q.db", "sqlite:///q.db")
    assert find_urls(table="sqlite:///t.db") == (DEFAULT_URL, "sqlite:///t.db")


@pytest.mark.parametrize(
    ("url", "below"),
    [
        ("sqlite:///q/t.db", "sqlite:///{folder}/q/t.db"),
        ("sqlite:////data/t.db", "sqlite:////data/t.db"),
        ("sqlite:///~/t.db", "sqlite:///~/t.db"),
        ("sqs://us-west-2/reads", "sqs://us-west-2/reads"),
    ],
)
def test_a_path_in_a_file_is_relative_to_the_file(empty_folder, monkeypatch, url, below):
    (empty_folder / "mtask.toml").write_text(f'queue = "{url}"\ntable = "{url}"\n')
    assert find_urls().queue == url
    (empty_folder / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(empty_folder / "a" / "b")
    assert find_urls().queue == below.format(folder=empty_folder)


def test_the_nearest_file_counts(empty_folder, monkeypatch):
    (empty_folder / "mtask.toml").write_text('queue = "sqlite:///outer.db"\n')
    (empty_folder / "a").mkdir()
    (empty_folder / "a" / "mtask.toml").write_text('queue = "sqlite:///inner.db"\n')
    monkeypatch.chdir(empty_folder / "a")
    assert find_urls().queue == "sqlite:///inner.db"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('queue = "x"\ntable = "\n', r"mtask\.toml: .*line 2"),
        ('tabel = "sqlite:///t.db"', "unknown setting 'tabel'; did you mean 'table'"),
        ("colour = true", "unknown setting 'colour'; there are queue and table"),
        ("queue = 3", "queue must be a URL in quotes"),
        ('table = "t.db"', "mtask.toml: table: 't.db' is not the URL"),
    ],
)
def test_wrong_file(empty_folder, content, problem):
    (empty_folder / "mtask.toml").write_text(content)
    with pytest.raises(UsageError, match=problem):
        find_urls()


def test_wrong_variable(monkeypatch):
    monkeypatch.setenv("MTASK_TABLE", "t.db")
    with pytest.raises(UsageError, match=r"MTASK_TABLE: 't.db' is not the URL"):
        find_urls()


def test_place_for_people():
    assert Urls(DEFAULT_URL, DEFAULT_URL).place == ".mtask/mtask.db"
    assert Urls("amqp://me:secret@host/q", "sqlite:////t.db").place == "amqp://me:…@host/q (results in /t.db)"
