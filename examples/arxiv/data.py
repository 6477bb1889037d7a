"""Where the documents come from: a file you give, the project's data set, or else made up."""

from __future__ import annotations

import json
import random
from pathlib import Path

from examples.arxiv.topics import sub_topic_of

HERE = Path(__file__).parent
WORK = HERE / "work"
SHARED = HERE.parents[2] / "shared/data/arxiv/arxiv_5topic.jsonl"

Document = dict[str, str]

_WORDS = {
    "bio": {
        "Neuro": "neuron synaptic cortex spike brain",
        "Genomics": "gene genome mutation sequencing RNA",
        "Evolution": "species population phylogenetic fitness ecological",
        "Molecular networks": "protein enzyme binding membrane folding",
    },
    "compsci": {
        "AI & learning": "network learning training dataset transformer",
        "Theory": "algorithm complexity graph approximation automata",
        "Systems": "compiler software cache robot benchmark",
        "Databases & retrieval": "database query recommender ranking index",
    },
    "finance": {
        "Computational finance": "option pricing hedging volatility bond",
        "Markets": "market trading liquidity order investor",
        "Portfolio management": "portfolio asset allocation return stock",
        "Risk management": "risk credit default insurance capital",
    },
    "math": {
        "Algebra": "algebra sheaf prime elliptic ring",
        "Topology": "manifold homotopy cohomology knot topology",
        "Analysis": "operator bounded holomorphic ergodic convex",
        "Other": "theorem proof lemma martingale conjecture",
    },
    "physics": {
        "Astro": "galaxy redshift stellar cosmological supernova",
        "Condensed matter": "lattice spin superconducting phonon magnetic",
        "High energy": "boson quark collider neutrino scattering",
        "Quantum": "quantum photon entanglement qubit laser",
    },
}
_COMMON = (
    "we show that the a of in for with and is this new model method results data paper study approach "
    "analysis using from large based problem system present by on as are time general different two "
    "structure function distribution properties dynamics between estimate theory"
)


def synthetic(count: int = 400, seed: int = 0) -> list[Document]:
    """Made-up abstracts: a tenth of the words tell the topic and its part, one word in forty tells wrong ones.

    They hold what makes real ones hard to carry in a CSV: line ends, quotes, commas, LaTeX.
    """
    rng = random.Random(seed)
    common = _COMMON.split()
    parts = [(topic, part) for topic in sorted(_WORDS) for part in sorted(_WORDS[topic])]
    documents = []
    for number in range(count):
        topic, part = parts[number % len(parts)]

        def word(topic: str = topic, part: str = part) -> str:
            draw = rng.random()
            if draw < 0.125:
                own = (topic, part) if draw < 0.1 else rng.choice(parts)
                return rng.choice(_WORDS[own[0]][own[1]].split())
            return rng.choice(common)

        words = [word() for _ in range(rng.randint(60, 100))]
        words[20] += ","
        words[30] = f'"{words[30]}"'
        words[40] += f"\n$\\alpha_{{{number}}} \\to \\mathcal{{O}}(n^2)$"
        documents.append(
            {
                "id": f"synthetic-{number:05d}",
                "title": " ".join(word() for _ in range(8)).capitalize(),
                "abstract": " ".join(words) + ".",
                "topic": topic,
                "sub_topic": part,
            }
        )
    return documents


def read(path: Path) -> list[Document]:
    """Read JSON Lines. A document without an id gets one from its line; an id may be there only once.

    Its sub-topic follows from its category, and is empty if that tells none.
    """
    documents: list[Document] = []
    lines: dict[str, int] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            document: Document = json.loads(line)
            document["id"] = document["id"] or f"line-{number}"
            document["topic"] = document.get("topic", "").lower()
            document["sub_topic"] = sub_topic_of(document.get("category", "")) or ""
            if document["id"] in lines:
                raise ValueError(
                    f"{path}:{number}: {document['id']} is on line {lines[document['id']]} already"
                )
            lines[document["id"]] = number
            documents.append(document)
    return documents


def load(path: Path | None = None) -> tuple[list[Document], str]:
    """The documents and where they are from."""
    if path is None and not SHARED.exists():
        return synthetic(), "made up (data.py)"
    path = path or SHARED
    return read(path), str(path)
