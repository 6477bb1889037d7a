"""Fetches titles and abstracts from arXiv's public API: `python -m examples.arxiv.fetch papers.jsonl`.

Writes JSON Lines: id, title, abstract, category, topic, source. The API asks for at most one request
in three seconds and one connection at a time: https://info.arxiv.org/help/api/user-manual.html
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from examples.arxiv.topics import ARCHIVES, topic_of

ENDPOINT = "https://export.arxiv.org/api/query"
USER_AGENT = "mtask-example/0.1 (titles and abstracts, one request in 3 s)"
_XML = {
    "atom": "http://www.w3.org/2005/Atom",
    "arxiv": "http://arxiv.org/schemas/atom",
    "search": "http://a9.com/-/spec/opensearch/1.1/",
}


class Page(NamedTuple):
    total: int
    """How many papers the whole query has, over all pages."""
    papers: list[dict[str, str]]


def parse(document: bytes) -> Page:
    """Read one Atom document. Raises ValueError for the API's own error message, which is an entry too."""
    feed = ElementTree.fromstring(document)
    papers = []
    for entry in feed.iterfind("atom:entry", _XML):
        url = entry.findtext("atom:id", "", _XML)
        abstract = entry.findtext("atom:summary", "", _XML).strip()
        if "/api/errors" in url:
            raise ValueError(f"arXiv answered: {abstract}")
        primary = entry.find("arxiv:primary_category", _XML)
        category = "" if primary is None else primary.get("term", "")
        papers.append(
            {
                "id": url.partition("/abs/")[2],
                "title": " ".join(entry.findtext("atom:title", "", _XML).split()),
                "abstract": abstract,
                "category": category,
                "topic": topic_of(category) or "",
                "source": "arxiv-api",
            }
        )
    return Page(int(feed.findtext("search:totalResults", "0", _XML)), papers)


class Client:
    """Asks for pages, never faster than one request in `pause_s`, and asks again after passing trouble."""

    def __init__(self, endpoint: str = ENDPOINT, *, pause_s: float = 3.0, tries: int = 5) -> None:
        self.endpoint, self.pause_s, self.tries = endpoint, pause_s, tries
        self._next = 0.0  # not before this time (monotonic)

    def page(self, query: str, start: int, size: int) -> Page:
        words = {
            "search_query": query,
            "start": start,
            "max_results": size,
            "sortBy": "submittedDate",
            "sortOrder": "descending",
        }
        request = urllib.request.Request(
            f"{self.endpoint}?{urllib.parse.urlencode(words)}", headers={"User-Agent": USER_AGENT}
        )
        for tried in range(1, self.tries + 1):
            time.sleep(max(0.0, self._next - time.monotonic()))
            wait_s = self.pause_s * 2**tried
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    page = parse(answer.read())
                if page.papers or start >= page.total:
                    return page
                trouble: Exception = ValueError("an empty page where papers should be")  # it happens
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != 429 and error.code < 500:
                    raise
                after = error.headers.get("Retry-After", "")
                trouble, wait_s = error, max(wait_s, float(after) if after.isdigit() else 0.0)
            except (OSError, http.client.HTTPException, ElementTree.ParseError) as error:
                trouble = error
            finally:
                self._next = time.monotonic() + self.pause_s
            self._next = time.monotonic() + wait_s
        raise ConnectionError(f"{request.full_url}: gave up after {self.tries} tries: {trouble}") from trouble

    def papers(self, topic: str, limit: int, *, size: int = 200) -> Iterator[dict[str, str]]:
        """The newest papers whose *primary* category is of the topic; a query finds cross-lists as well."""
        query = " OR ".join(f"cat:{archive}*" for archive in ARCHIVES[topic].split())
        start = found = 0
        while found < limit:
            page = self.page(query, start, size)
            for paper in page.papers:
                if paper["topic"] == topic and found < limit:
                    found += 1
                    yield paper
            start += len(page.papers)
            if not page.papers:
                return


def fetch(out: Path, client: Client, *, per_topic: int, size: int = 200) -> int:
    """Write `per_topic` papers of each topic; returns how many there are. All of them, or no file."""
    part, seen = out.with_name(out.name + ".part"), set()
    with part.open("w", encoding="utf-8") as file:
        for topic in ARCHIVES:
            for paper in client.papers(topic, per_topic, size=size):
                if paper["id"] not in seen:  # pages shift when a paper is added meanwhile
                    seen.add(paper["id"])
                    file.write(json.dumps(paper, ensure_ascii=False) + "\n")
            print(f"{topic}: {len(seen)} papers so far", flush=True)
    os.replace(part, out)
    return len(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON Lines file to write")
    parser.add_argument("--per-topic", type=int, default=1000, help="papers of each topic (default: 1000)")
    parser.add_argument("--endpoint", default=ENDPOINT)
    options = parser.parse_args()
    fetch(options.out, Client(options.endpoint), per_topic=options.per_topic)


if __name__ == "__main__":
    main()
