"""Segmentation with a decoder on the frozen tower and Adaptor: training, and one score on the test part."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Trainer, set_seed

from ..heads_adaptor import AdaptorForSemanticSegmentation
from ..image_processing_adaptor import READING, image_processor_fields
from ..modeling_adaptor import AdaptorModel
from ..towers_adaptor import VisionTower
from .data import plain_rows
from .decoder_training import counts_of, mask_counts, train_decoder
from .masks import GreyMasks, MeanMasks, summarize_masks

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.training_rows import Seen
    from .classification import RunList
    from .controls import Module
    from .loading import LoadedParts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentationRecipe:
    """
    Training of a decoder, with AdamW and the loss of MGCA (`mixed_loss`).

    Args:
        name (`str`): In results.
        learning_rate, weight_decay (`float`): Of AdamW.
        batch_size, epochs (`int`): Images a step; passes over the training images.
        patience (`int`): Evaluations without a better `monitor` after which training stops; one an epoch.
        min_delta (`float`): What counts as better for `patience`.
        monitor (`str`): Metric on validation that keeps the best epoch.
        cosine_epochs (`int`, *optional*): The rate falls as a half cosine that reaches 0 after so many epochs, even if
            training is shorter (the reference: 100). By default it is constant.
        augment (`bool`): Rotation up to 10 degrees and scale up to 10 %, half of the time (MGCA, Adaptor).
        fraction_rule (`str`): Of `adaptor_hf.data.fractions`.
    """

    name: str
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    batch_size: int = 8
    epochs: int = 50
    patience: int = 10
    min_delta: float = 0.0
    monitor: str = "dice_pooled"
    cosine_epochs: int | None = None
    augment: bool = True
    fraction_rule: str = "nested"


SEGMENTATION_RECIPES = {
    "rigorous": SegmentationRecipe("rigorous"),
    "adaptor": SegmentationRecipe(
        "adaptor", min_delta=1e-3, monitor="dice_reference", cosine_epochs=100, fraction_rule="mgca_detection"
    ),
    "mgca": SegmentationRecipe("mgca", 5e-4, 0.05, 16, monitor="loss", fraction_rule="mgca_detection"),
}
"""`rigorous` (ours), and the values of Adaptor and MGCA for RSNA; see docs/downstream.md."""

# What the references change from one data set to another.
_BY_DATASET = {
    ("adaptor", "siim"): {"epochs": 100, "fraction_rule": "mgca_balanced"},
    ("mgca", "siim"): {"batch_size": 8, "fraction_rule": "mgca_balanced"},
}


def get_segmentation_recipe(name: str, dataset: str | None = None) -> SegmentationRecipe:
    """
    A recipe by name, with the values that its authors used for a data set.

    Raises:
        ValueError: no such recipe.
    """
    if name not in SEGMENTATION_RECIPES:
        known = ", ".join(SEGMENTATION_RECIPES)
        raise ValueError(f"--task segmentation has no recipe {name!r}. Choose one of: {known}.")
    return replace(SEGMENTATION_RECIPES[name], **_BY_DATASET.get((name, dataset), {}))


class MaskCollator:
    """
    Images and masks as the tower sees them: the whole image, resized to a square.

    Args:
        processor (`AdaptorImageProcessor`): The tower's.
        size (`int`): Side in pixels.
        augment (`bool`): Turn and scale image and mask together at random.
    """

    def __init__(self, processor: Any, size: int, augment: bool):
        self.processor, self.augment = processor, augment
        self.geometry = {
            "size": {"height": size, "width": size},
            "do_resize": True,
            "do_center_crop": False,
            "do_pad_to_square": False,
        }

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images, masks = [row["image"] for row in rows], [row["mask"] for row in rows]
        if self.augment:
            images, masks = zip(*(augmented(*pair) for pair in zip(images, masks, strict=True)), strict=True)
        return dict(self.processor(list(images), segmentation_maps=list(masks), return_tensors="pt", **self.geometry))


def augmented(image: Any, mask: Any) -> tuple[Any, Any]:
    """Image and mask turned and scaled alike, half of the time; black where there was nothing."""
    from PIL import Image

    chance, angle, scale = torch.rand(3).tolist()
    if chance < 0.5:
        return image, mask
    angle, scale = np.deg2rad(20 * angle - 10), 1 / (0.9 + 0.2 * scale)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    x, y = image.size[0] / 2, image.size[1] / 2
    matrix = (cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y)
    return (
        image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR),
        mask.transform(mask.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST),
    )


def masked_rows(dataset: Dataset, source: str) -> Dataset:
    """Rows whose mask is known, empty ones among them; the others are counted in the log."""
    if "mask" not in dataset.column_names:
        columns = ", ".join(map(repr, dataset.column_names))
        raise ValueError(f"{source} has no masks (columns: {columns}). Name their column with --mask_column.")
    known = dataset.select_columns(["mask"]).with_format("arrow")[:]["mask"].is_valid().to_numpy()
    if not known.all():
        logger.info("%s: %d of %d rows have no known mask and are left out.", source, (~known).sum(), len(known))
    return dataset if known.all() else dataset.select(np.flatnonzero(known))


def segmentation_model(module: Module, tower: VisionTower, size: int, seed: int) -> AdaptorForSemanticSegmentation:
    """A new decoder on a module: on the tower's own tokens where the module has no model."""
    set_seed(seed)
    adaptor = module.model
    if adaptor is None:
        from ..configuration_adaptor import AdaptorConfig

        # The weights of this Adaptor are never used: the decoder reads the tower.
        adaptor = AdaptorModel(AdaptorConfig(vision_hidden_size=tower.hidden_size, vision_tower=tower.spec,
                                             num_hidden_layers=0))  # fmt: skip
    adaptor.attach_towers(tower, None)
    source = "tower" if module.model is None else "adaptor"
    names = {0: "background", 1: "mask"}
    return AdaptorForSemanticSegmentation.from_adaptor(adaptor, id2label=names, image_size=size, feature_source=source)


def run_segmentation(
    parts: dict[str, Dataset],
    modules: Sequence[Module],
    tower: VisionTower,
    recipe: SegmentationRecipe,
    output_dir: str | os.PathLike,
    *,
    dataset: str,
    split_hash: str,
    size: int,
    seen: Mapping[str, Seen] | None = None,
    fractions: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    epochs: int | None = None,
    external: Mapping[str, LoadedParts] | None = None,
    save_to: str | os.PathLike | None = None,
    text_tower: str | None = None,
    num_resamples: int = 1000,
    device: str = "cpu",
) -> RunList:
    """
    Train a decoder for each module, fraction and seed, and score it once on the test part and on each external set, in
    the frame that the model sees: the whole image as a square of `size`, a threshold of 0.5.

    Args:
        parts (`dict[str, Dataset]`): `train`, `validation` and `test` with `image` and `mask`.
        modules (`Sequence[Module]`): From `load_modules`; the MLP is left out.
        tower (`VisionTower`): Frozen.
        recipe ([`SegmentationRecipe`]), output_dir: How, and where each run is a folder under `runs`.
        dataset, split_hash (`str`): For results.
        size (`int`): Side of the images in pixels, any that the tower takes.
        fractions, seeds, text_tower, num_resamples, device: As in `run_classification`.
        epochs (`int`, *optional*): Instead of the recipe's.
        seen (`Mapping[str, Seen]`, *optional*): Of each model, what of the test part was in its pre-training.
        external (`Mapping[str, LoadedParts]`, *optional*): Sets of which the `test` part is scored.
        save_to (`str` or `PathLike`, *optional*): Folder for the Adaptor's decoder of the first seed at the largest
            fraction; trained again if it is not there.

    Raises:
        ValueError: a part is missing, or no training image has a mask.
    """
    import pandas as pd

    from ..data.fractions import fraction_mask
    from .classification import RunList
    from .overlap import overlap_fields
    from .provenance import tower_name, tower_saw
    from .targets import masks_hash

    for part in ("train", "validation", "test"):
        if part not in parts:
            raise ValueError(f"{dataset} has no {part} part; it has {', '.join(parts)}.")
    parts = {part: masked_rows(rows, f"{dataset}, {part}") for part, rows in parts.items()}
    tests = {dataset: (parts["test"], split_hash)}
    seen_of = {dataset: seen}
    for name, other in (external or {}).items():
        tests[name] = (masked_rows(other.parts["test"], f"external set {name}"), f"{split_hash}-{other.split_hash}")
        seen_of[name] = other.seen
    if empty := [
        name for name, rows in (parts | {name: rows for name, (rows, _) in tests.items()}).items() if not len(rows)
    ]:
        raise ValueError(f"{dataset}: no mask is known in {', '.join(empty)}.")
    targets = {
        name: masks_hash({"train": parts["train"], "validation": parts["validation"], "test": rows})
        for name, (rows, _) in tests.items()
    }
    train, validation = (parts[part].select_columns(["image", "mask"]) for part in ("train", "validation"))
    collators = (MaskCollator(tower.processor, size, recipe.augment), MaskCollator(tower.processor, size, False))
    masks = summarize_masks(train, collators[1])
    if not masks.filled.any():
        raise ValueError(f"{dataset}: all {len(train)} masks of the training part are empty.")
    strata, rows = pd.Series(np.where(masks.filled, "mask", "negative"), dtype=object), plain_rows(parts["train"])
    metric = recipe.monitor if recipe.monitor != "loss" else "dice_pooled"
    means, grey = MeanMasks(train, validation, collators[1], masks.mean, metric), GreyMasks(dataset, masks, validation)
    found, save_to = RunList(), None if save_to is None else Path(save_to)
    for module in (module for module in modules if module.hidden_size is None):
        for fraction in fractions:
            for seed in seeds:
                kept = fraction_mask(rows, strata, fraction, recipe.fraction_rule, seed)
                fields = module.fields() | {
                    "vision_tower": tower_name(tower.spec),
                    "text_tower": text_tower if module.model is not None else None,
                    "task": "segmentation",
                    "dataset": dataset,
                    "protocol": "frozen",
                    "recipe": recipe.name if epochs is None else f"{recipe.name}, {epochs} epochs",
                    "input_size": size,
                    "fraction": float(fraction),
                    "seed": int(seed),
                }
                runs = {
                    name: fields
                    | {"split_hash": hashed, "targets_hash": targets[name]}
                    | {"tower_saw_dataset": tower_saw(tower.spec, name)}
                    | overlap_fields(seen_of[name], module.key)
                    | ({} if name == dataset else {"test_set": name})
                    for name, (_, hashed) in tests.items()
                }
                outcome = {"n_train": int(kept.sum()), "lr": recipe.learning_rate, "selected_on": "validation"}

                def fit(module=module, kept=kept, seed=seed, outcome=outcome) -> tuple[Trainer, Any]:
                    model = segmentation_model(module, tower, size, seed)
                    parameters = sum(value.numel() for value in model.decoder.parameters())
                    outcome |= {"head_params": parameters, "trainable_params": parameters}
                    trainer = train_decoder(model, train.select(np.flatnonzero(kept)), validation, collators, recipe,
                                            seed=seed, epochs=epochs, device=device)  # fmt: skip
                    return trainer, model

                wanted = module.key == "adaptor" and seed == seeds[0] and fraction == max(fractions)
                save = save_to if wanted else None
                mean = functools.partial(means.of, kept)
                _score(
                    found, runs, tests, fit, outcome, Path(output_dir), num_resamples, save, collators[1], mean, grey
                )
    return found


def _score(found, runs, tests, fit, outcome, output_dir, num_resamples, save_to, collator, mean, grey) -> None:
    """Train and score what is not finished on each test set, and save the model, if it is to be and is not there."""
    from ..evaluation import segmentation_predictions
    from ..evaluation.results import run_key, write_run
    from .classification import finished_lines, subgroup_columns

    folders = {name: output_dir / "runs" / run_key(fields) for name, fields in runs.items()}
    finished = {name: finished_lines(folder) for name, folder in folders.items()}
    for lines in (lines for lines in finished.values() if lines is not None):
        found.lines += lines
        found.skipped += 1
    missing = [name for name, lines in finished.items() if lines is None]
    save = save_to is not None and not (save_to / "config.json").is_file()
    if not missing and not save:
        return
    trainer, model = fit()
    if missing:
        trainer.preprocess_logits_for_metrics = functools.partial(mask_counts, mean=mean())
    for name in missing:
        dataset = tests[name][0]
        rows = plain_rows(dataset)
        counts = counts_of(trainer.predict(dataset.select_columns(["image", "mask"])).predictions)
        predictions = segmentation_predictions(
            rows["image_id"], rows["patient_id"], counts, columns=subgroup_columns(rows), num_resamples=num_resamples,
            data_notes=grey.notes(name, dataset),
        )  # fmt: skip
        found.lines += write_run(folders[name], predictions, runs[name] | outcome)
    if save:
        save_segmenter(model, collator, save_to)


def save_segmenter(model: AdaptorForSemanticSegmentation, collator: MaskCollator, folder: str | os.PathLike) -> None:
    """Save Adaptor, decoder and the image processing of their training, for `pipeline("image-segmentation")`."""
    trained = collator.processor
    fields = image_processor_fields(trained) | collator.geometry | {name: getattr(trained, name) for name in READING}
    type(trained)(**fields).save_pretrained(folder)
    model.eval().save_pretrained(folder)


__all__ = [
    "SEGMENTATION_RECIPES",
    "MaskCollator",
    "SegmentationRecipe",
    "get_segmentation_recipe",
    "mask_counts",
    "run_segmentation",
    "save_segmenter",
    "segmentation_model",
    "train_decoder",
]
