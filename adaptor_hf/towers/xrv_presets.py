"""Facts of torchxrayvision's classifiers as presets: what each was trained on, and what these data ask for.

The data sets are those that torchxrayvision 1.5.7 names in `models.py` (descriptions, comments and the names of its
files: pc is PadChest, chex CheXpert, kaggle the RSNA challenge, google Google's labels of NIH's images, vin VinDr-CXR).
Which of their images each was trained on, and which were held out, it does not say.
"""

from typing import Any

from ..xrv_towers_adaptor import PREFIX, XRV_CLASSIFIERS, xrv_image_processor

NIH, RSNA, CHEXPERT, MIMIC = "NIH ChestX-ray14", "RSNA Pneumonia", "CheXpert", "MIMIC-CXR"
PADCHEST, OPENI, SIIM, VINDR = "PadChest", "OpenI", "SIIM", "VinDr-CXR"
TRAINED_ON = {
    "densenet121-res224-all": [NIH, PADCHEST, CHEXPERT, MIMIC, OPENI, RSNA],
    "densenet121-res224-nih": [NIH],
    "densenet121-res224-pc": [PADCHEST],
    "densenet121-res224-chex": [CHEXPERT],
    "densenet121-res224-rsna": [RSNA],
    "densenet121-res224-mimic_nb": [MIMIC],
    "densenet121-res224-mimic_ch": [MIMIC],
    "resnet50-res512-all": [PADCHEST, NIH, RSNA, SIIM, VINDR],
}
"""Data sets by the classifier's name; a public one is called as its `pretraining_name` has it."""
_TERMS = {
    NIH: "NIH ChestX-ray14: attribution and citation are asked for",
    RSNA: "RSNA Pneumonia: rules of the Kaggle competition, academic and other non-commercial use",
    CHEXPERT: "CheXpert: research use agreement, no redistribution",
    MIMIC: "MIMIC-CXR: credentialed access, no sharing; publishers of weights disagree on what follows",
    PADCHEST: "PadChest: terms of its own",
    OPENI: "OpenI: CC BY-NC-ND 4.0",
    SIIM: "SIIM: rules of the Kaggle competition",
    VINDR: "VinDr-CXR: terms of its own",
}
_NOTES = {
    "mimic_nb": "; labels by NegBio",
    "mimic_ch": "; labels by CheXpert's labeller",
}


def classifier_presets() -> list[dict[str, Any]]:
    """Fields of a `TowerPreset` for each classifier."""
    found = []
    for name, known in XRV_CLASSIFIERS.items():
        trained_on, dense = TRAINED_ON[name], known.architecture.startswith("densenet")
        found.append({
            "name": name, "kind": "vision", "library": "timm", "name_or_path": PREFIX + name, "pooling": "mean",
            "hidden_size": 1024 if dense else 2048, "grid_shape": [known.size // 32] * 2,
            "image_processor": xrv_image_processor(known.size), "pretraining_data": trained_on,
            "license": "apache-2.0", "domain": "medical",
            "note": "classifier of findings of torchxrayvision; licence of its repository, none is stated for weights"
            + _NOTES.get(name.rpartition("-")[2], ""),
            "architecture": {
                "model_type": "timm_wrapper", "architecture": known.architecture, "model_args": {"in_chans": 1}
            },
            "data_terms": "; ".join(_TERMS[data] for data in trained_on),
            "commercial": "unclear",
            "commercial_source": "Apache-2.0 of torchxrayvision's repository; terms of the data sets",
            "checked": "2026-11-30",
        })  # fmt: skip
    return found


__all__ = ["TRAINED_ON", "classifier_presets"]
