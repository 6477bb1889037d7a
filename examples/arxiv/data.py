"""Where the documents come from: a file you give, the project's data set, or else made up."""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
WORK = HERE / "work"
SHARED = HERE.parents[2] / "shared/data/arxiv/arxiv_5topic.jsonl"

Document = dict[str, str]

_WORDS = {
    "Physics": "quantum photon galaxy spin lattice neutrino boson plasma superconducting magnetic laser "
    "gravitational cosmological scattering collider quark redshift stellar phonon entanglement",
    "math": "theorem manifold proof algebra cohomology conjecture operator bounded lemma polynomial "
    "topology ergodic holomorphic prime homotopy elliptic sheaf compact convex martingale",
    "bio": "protein gene cell neuron species mutation genome epidemic enzyme tumour population synaptic "
    "phylogenetic bacteria RNA ecological infection membrane evolutionary cortex",
    "compsci": "network algorithm learning software compiler dataset training complexity graph security "
    "robot database language transformer benchmark cache encryption segmentation recommender parser",
    "finance": "market portfolio volatility option price risk stock hedging credit trading return asset "
    "liquidity investor arbitrage interest bond insurance pricing default",
}
_COMMON = (
    "we show that the a of in for with and is this new model method results data paper study approach "
    "analysis using from large based problem system present by on as are time general different two "
    "structure function distribution properties dynamics between estimate theory"
)


def synthetic(count: int = 400, seed: int = 0) -> list[Document]:
    """Made-up abstracts: a tenth of the words tell the topic, one word in forty tells a wrong one.

    They hold what makes real ones hard to carry in a CSV: line ends, quotes, commas, LaTeX.
    """
    rng = random.Random(seed)
    common, vocabulary = _COMMON.split(), {topic: words.split() for topic, words in _WORDS.items()}
    topics = sorted(vocabulary)

    def word(topic: str) -> str:
        draw = rng.random()
        if draw < 0.1:
            return rng.choice(vocabulary[topic])
        return rng.choice(vocabulary[rng.choice(topics)] if draw < 0.125 else common)

    documents = []
    for number in range(count):
        topic = topics[number % len(topics)]
        words = [word(topic) for _ in range(rng.randint(60, 100))]
        words[20] += ","
        words[30] = f'"{words[30]}"'
        words[40] += f"\n$\\alpha_{{{number}}} \\to \\mathcal{{O}}(n^2)$"
        documents.append(
            {
                "id": f"synthetic-{number:05d}",
                "title": " ".join(word(topic) for _ in range(8)).capitalize(),
                "abstract": " ".join(words) + ".",
                "category": topic,
                "topic": topic,
                "source": "synthetic",
            }
        )
    return documents


def read(path: Path) -> list[Document]:
    """Read JSON Lines. A document without an id gets one from its line; an id may be there only once."""
    documents: list[Document] = []
    lines: dict[str, int] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            document: Document = json.loads(line)
            document["id"] = document["id"] or f"line-{number}"
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
