"""Submits what is new in RSS and Atom feeds: `python -m examples.arxiv.feed URL… --every 600`.

Each entry is a task once, however often it is seen and in however many feeds: the bag stays open, and its key is the
entry's id. The exit status is 1 if a feed couldn't be read; the others are submitted all the same.
"""

from __future__ import annotations

import argparse
import html
import re
import sys
import time
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from urllib.error import HTTPError
from xml.sax import SAXException

import feedparser

import mtask
from examples.arxiv.classify import main_topic

FEEDS = (
    "https://rss.arxiv.org/atom/q-bio+q-fin",
    "https://journals.plos.org/ploscompbiol/feed/atom",
    "https://www.nature.com/nature.rss",
)
TIMEOUT_S = 30
LARGEST_BYTES = 16 << 20
_TAGS = re.compile(r"<[^>]*>")
_ARXIV = re.compile(r"^arXiv:\S+ Announce Type: \S+\s+Abstract:\s*")
_NATURE = re.compile(r"^[^;]{0,80}, Published online: [^;]*; doi:\S+\s*")

Row = dict[str, str]


class FeedError(Exception):
    """Its text says what is wrong with the feed."""

    def __init__(self, text: str, rows: Sequence[Row] = ()) -> None:
        super().__init__(text)
        self.rows = rows


def read(url: str) -> list[Row]:
    """The entries as tasks, without those that have no abstract. Raises FeedError, with those that could be read."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mtask-example/0.1"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            document = answer.read(LARGEST_BYTES)
            kind = answer.headers.get("Content-Type", "")
    except HTTPError as error:
        error.close()
        raise FeedError(f"the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise FeedError(f"can't be reached: {error}") from error
    feed = feedparser.parse(document, response_headers={"content-type": kind})
    if not feed.get("version"):
        raise FeedError(f"is neither RSS nor Atom, but begins with {document[:40]!r}")
    rows = [row for entry in feed.entries if (row := row_of(entry))["id"] and row["abstract"]]
    if isinstance(feed.get("bozo_exception"), SAXException):
        raise FeedError(f"breaks off, or isn't quite XML: {feed.bozo_exception}", rows)
    return rows


def row_of(entry: feedparser.FeedParserDict) -> Row:
    abstract = plain(entry.content[0].value if "content" in entry else entry.get("summary", ""))
    return {
        "id": entry.get("id") or entry.get("link", ""),
        "title": plain(entry.get("title", "")),
        "abstract": _NATURE.sub("", _ARXIV.sub("", abstract)),
    }


def plain(text: str) -> str:
    """Without HTML's tags and entities, and with single blanks."""
    return " ".join(html.unescape(_TAGS.sub(" ", text)).split())


def poll(mt: mtask.Manager, urls: Sequence[str], bag: str) -> int:
    """Submit what is new; returns how many of the feeds were wrong."""
    rows: list[Row] = []
    failed = 0
    for url in urls:
        try:
            rows += read(url)
        except FeedError as error:
            rows += error.rows
            failed += 1
            print(f"{url}: {error}", file=sys.stderr, flush=True)
    if rows:
        before = next((each.counts().total for each in mt.bags() if each.name == bag), 0)
        tasks = [{**row, "bag": bag} for row in rows]
        handle = mt.submit(tasks, call=main_topic, bag=bag, open=True, key="id", tags=("main",))
        print(f"{len(rows)} entries, {handle.counts().total - before} of them new", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("urls", nargs="*", metavar="URL", default=FEEDS, help="feeds (default: three)")
    parser.add_argument("--bag", default="feed", help="the topics' bags are BAG-physics, … (default: feed)")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="again and again, until Ctrl-C")
    options = parser.parse_args()
    try:
        with mtask.connect() as mt:
            failed = poll(mt, options.urls, options.bag)
            while options.every:
                time.sleep(options.every)
                failed = poll(mt, options.urls, options.bag)
    except KeyboardInterrupt:
        parser.exit(130)
    except mtask.MtaskError as error:
        parser.exit(1, f"{error}\n")
    if failed:
        parser.exit(1, f"{failed} of {len(options.urls)} feeds couldn't be read whole\n")


if __name__ == "__main__":
    main()
