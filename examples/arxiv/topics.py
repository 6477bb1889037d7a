"""The topics and their sub-topics, as the literature has them: groups of arXiv's categories."""

from __future__ import annotations

ARCHIVES = {
    "bio": "q-bio",
    "compsci": "cs",
    "finance": "q-fin",
    "math": "math nlin stat",
    "physics": "astro-ph cond-mat gr-qc hep-ex hep-lat hep-ph hep-th math-ph nucl-ex nucl-th physics quant-ph",
}
TOPICS = sorted(ARCHIVES)

SUB_TOPICS = {
    "bio": {
        "Neuro": "q-bio.NC",
        "Cell behavior": "q-bio.CB",
        "Genomics": "q-bio.GN",
        "Evolution": "q-bio.PE",
        "Subcellular": "q-bio.SC",
        "Health, tissue & organs": "q-bio.TO q-bio.OT",
        "Molecular networks": "q-bio.MN q-bio.BM",
        "Modeling": "q-bio.QM",
    },
    "compsci": {
        "AI & learning": "cs.AI cs.CV cs.RO cs.LG cs.CL cs.CY cs.NE cs.ET stat.ML",
        "Engineering software": "cs.CE cs.MS cs.NA",
        "Games": "cs.GT",
        "Theory": "cs.DS cs.CC cs.CG cs.DM cs.FL cs.LO",
        "Systems": "cs.AR cs.DC cs.OS cs.MA cs.PL cs.SE cs.SY",
        "Interaction & graphics": "cs.HC cs.GR cs.MM cs.SD",
        "Databases & retrieval": "cs.IT cs.DB cs.IR cs.DL",
        "Networks & society": "cs.CR cs.SI cs.NI cs.OH",
    },
    "finance": {
        "Computational finance": "q-fin.CP q-fin.MF",
        "Economics": "q-fin.EC",
        "Statistical finance": "q-fin.ST",
        "Portfolio management": "q-fin.PM",
        "Markets": "q-fin.TR q-fin.PR",
        "Risk management": "q-fin.RM",
        "General finance": "q-fin.GN",
    },
    "math": {
        "Algebra": "math.AG math.GR math.KT math.RA math.CT math.LO math.OA math.RT math.QA math.AC",
        "Topology": "math.AT math.GN math.GT math.MG math.SG math.DG",
        "Analysis": "math.DS math.AP math.CA math.CV math.CO math.OC math.SP math.FA "
        "nlin.AO nlin.CD nlin.PS nlin.SI",
        "Other": "math.GM math.NT math.ST math.HO math.PR math.NA stat.AP stat.CO stat.ME stat.OT",
    },
    "physics": {
        "Astro": "astro-ph.CO astro-ph.EP astro-ph.GA astro-ph.HE astro-ph.IM astro-ph.SR astro-ph physics.space-ph",
        "General Relativity": "gr-qc",
        "Condensed matter": "cond-mat.other cond-mat.mes-hall cond-mat.quant-gas cond-mat.soft cond-mat.stat-mech "
        "cond-mat.str-el cond-mat.mtrl-sci cond-mat.supr-con physics.plasm-ph",
        "High energy": "hep-ex hep-ph hep-th nucl-th "
        "physics.acc-ph physics.ao-ph physics.atm-clus physics.atom-ph",
        "Mathematical physics": "math-ph physics.comp-ph physics.data-an physics.flu-dyn",
        "Quantum": "quant-ph",
        "Education & society": "physics.pop-ph physics.soc-ph physics.hist-ph physics.ed-ph physics.ins-det physics.gen-ph",
        "Other physics": "physics.med-ph physics.bio-ph physics.chem-ph physics.geo-ph physics.optics physics.class-ph",
    },
}
"""As published, but for the names, and for astro-ph, which was divided later. Other categories have no sub-topic."""

_TOPICS = {archive: topic for topic, archives in ARCHIVES.items() for archive in archives.split()}
_SUB_TOPICS = {
    category: name
    for groups in SUB_TOPICS.values()
    for name, categories in groups.items()
    for category in categories.split()
}


def topic_of(category: str) -> str | None:
    """The topic of a primary category such as `q-bio.NC`; None: of none of the five (`eess`, `econ`)."""
    return "compsci" if category == "stat.ML" else _TOPICS.get(category.partition(".")[0])


def sub_topic_of(category: str) -> str | None:
    """None: of none, as `q-bio`, which doesn't say which part of biology."""
    return _SUB_TOPICS.get(category)
