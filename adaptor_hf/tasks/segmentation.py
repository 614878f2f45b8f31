"""Segmentation with a decoder on the frozen tower and Adaptor: training, and one score on the test part."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Trainer, set_seed

from ..data.boxes import same_shape
from ..data.reading import Reading
from ..embeddings.sequences import grid_of
from ..folder_lock import only_writer
from ..heads_adaptor import AdaptorForSemanticSegmentation
from ..hub.trained_card import complete_towers
from ..image_processing_adaptor import READING, image_processor_fields
from ..modeling_adaptor import AdaptorModel
from ..privacy.mode import check_private_columns, error_text
from ..privacy.vocabulary import column_list
from ..towers_adaptor import VisionTower
from ..training.base_trainer import keep_batch
from ..training.systems import System
from .arguments import DownstreamArguments
from .cached_tokens import TokenRows, cached_tokens, options_of_tokens
from .controls import systems_of
from .data import plain_rows
from .decoder_training import counts_of, mask_counts, train_decoder
from .loading import LoadedParts, cache_dir_of, load_adaptor, load_external_parts, load_parts, load_tower
from .masks import MeanMasks, ToleratedMasks, summarize_masks
from .overlap import check_copies, overlap_fields
from .protocols import SegmentationProtocol, get_segmentation_protocol
from .provenance import input_size, named_spec, tower_name, tower_saw
from .runs import RunList, runs_to_make, subgroup_columns
from .summary import summarize
from .targets import masks_hash

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.training_rows import Seen
    from ..embeddings import EmbeddingCache

logger = logging.getLogger(__name__)


class MaskCollator:
    """
    Images and masks as the tower sees them: the whole image, resized to a square, or the tower's own frame.

    Args:
        processor (`AdaptorImageProcessor`): The tower's.
        size (`int`, *optional*): Side in pixels; None: as the processor resizes and crops.
        augment (`bool`): Turn and scale image and mask together at random.
    """

    def __init__(self, processor: Any, size: int | None, augment: bool):
        self.processor, self.augment = processor, augment
        square = {"do_resize": True, "do_center_crop": False, "do_pad_to_square": False}
        self.geometry = {} if size is None else {"size": {"height": size, "width": size}} | square

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images, masks = [row["image"] for row in rows], [row["mask"] for row in rows]
        for image, mask in zip(images, masks, strict=True):
            if not same_shape(image.size, mask.size):
                raise ValueError(
                    f"A mask has {mask.size[0]} x {mask.size[1]} pixels, its image {image.size[0]} x {image.size[1]}: "
                    "another shape, so where the mask lies in the image is not known. Use masks of the images."
                )
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
        columns = column_list(dataset.column_names)
        raise ValueError(f"{source} has no masks. {columns} Name that of masks with --mask_column.")
    known = dataset.select_columns(["mask"]).with_format("arrow")[:]["mask"].is_valid().to_numpy()
    if not known.all():
        logger.info("%s: %d of %d rows have no known mask and are left out.", source, (~known).sum(), len(known))
    return dataset if known.all() else dataset.select(np.flatnonzero(known))


def segmentation_model(
    system: System, tower: VisionTower, size: int, seed: int, **config: Any
) -> AdaptorForSemanticSegmentation:
    """A new decoder on a system: on the tower's own tokens where the system has no model. `config` as of the head."""
    set_seed(seed)
    adaptor = system.model
    if adaptor is None:
        from ..configuration_adaptor import AdaptorConfig

        # The weights of this Adaptor are never used: the decoder reads the tower.
        adaptor = AdaptorModel(AdaptorConfig(vision_hidden_size=tower.hidden_size, vision_tower=tower.spec,
                                             aligner="linear"))  # fmt: skip
    adaptor.attach_towers(tower, None)
    source = "tower" if system.model is None else "adaptor"
    names = {0: "background", 1: "mask"}
    fields = {"id2label": names, "image_size": size, "feature_source": source} | config
    return AdaptorForSemanticSegmentation.from_adaptor(adaptor, **fields)


def run_segmentation(
    parts: dict[str, Dataset],
    systems: Sequence[System],
    tower: VisionTower,
    protocol: SegmentationProtocol,
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
    tokens: Callable[[Dataset], tuple[EmbeddingCache, np.ndarray]] | None = None,
    save_to: str | os.PathLike | None = None,
    text_tower: str | None = None,
    num_resamples: int = 1000,
    device: str = "cpu",
) -> RunList:
    """
    Train a decoder for each system, fraction and seed, and score it once on the test part and on each external set, in
    the frame that the model sees: the whole image as a square of `size`, a threshold of 0.5.

    Args:
        parts (`dict[str, Dataset]`): `train`, `validation` and `test` with `image` and `mask`.
        systems (`Sequence[System]`): From `load_systems`; the MLP is left out.
        tower (`VisionTower`): Frozen.
        protocol ([`SegmentationProtocol`]), output_dir: How, and where each run is a folder under `runs`.
        dataset, split_hash (`str`): For results.
        size (`int`): Side of the images in pixels, any that the tower takes.
        fractions, seeds, text_tower, num_resamples, device: As in `run_classification`.
        epochs (`int`, *optional*): Instead of the protocol's.
        seen (`Mapping[str, Seen]`, *optional*): Of each model, what of the test part was in its pre-training.
        external (`Mapping[str, LoadedParts]`, *optional*): Sets of which the `test` part is scored.
        tokens (`Callable`, *optional*): `cached_tokens` of a data set. The decoder of tokens then reads these, in the
            tower's own frame and without augmentation, and the tower does not run in training. Tokens of a coarser
            grid are enlarged by the decoder. `recipe` says it.
        save_to (`str` or `PathLike`, *optional*): Folder for the Adaptor's decoder of the first seed at the largest
            fraction; trained again if it is not there.

    Raises:
        ValueError: a part is missing, or no training image has a mask.
    """
    import pandas as pd

    from ..data.fractions import fraction_mask

    for part in ("train", "validation", "test"):
        if part not in parts:
            raise ValueError(f"{dataset} has no {part} part; it has {', '.join(parts)}.")
    parts = {part: masked_rows(rows, f"{dataset}, {part}") for part, rows in parts.items()}
    tests = {dataset: (parts["test"], split_hash)}
    seen_of = {dataset: seen}
    for name, other in (external or {}).items():
        tests[name] = (masked_rows(other.parts["test"], f"external set {name}"), f"{split_hash}-{other.split_hash}")
        seen_of[name] = other.seen
    if tokens is not None:
        parts = {part: _readable(rows, tokens) for part, rows in parts.items()}
        tests = {name: (_readable(rows, tokens), hashed) for name, (rows, hashed) in tests.items()}
    if empty := [
        name for name, rows in (parts | {name: rows for name, (rows, _) in tests.items()}).items() if not len(rows)
    ]:
        raise ValueError(f"{dataset}: no mask is known in {', '.join(empty)}.")
    targets = {
        name: masks_hash({"train": parts["train"], "validation": parts["validation"], "test": rows})
        for name, (rows, _) in tests.items()
    }
    train, validation = (parts[part].select_columns(["image", "mask"]) for part in ("train", "validation"))
    side = size if tokens is None else None
    collators = (MaskCollator(tower.processor, side, protocol.augment), MaskCollator(tower.processor, side, False))
    masks = summarize_masks(train, collators[1])
    if not masks.filled.any():
        raise ValueError(f"{dataset}: all {len(train)} masks of the training part are empty.")
    strata, rows = pd.Series(np.where(masks.filled, "mask", "negative"), dtype=object), plain_rows(parts["train"])
    metric = protocol.monitor if protocol.monitor != "loss" else "dice_pooled"
    means = MeanMasks(train, validation, collators[1], masks.mean, metric)
    tolerated = ToleratedMasks(dataset, masks, validation)
    recipe, decoder, plain = [protocol.name], {}, collators[1]
    if epochs is not None:
        recipe.append(f"{epochs} epochs")
    if tokens is not None:
        train, validation = (TokenRows(tokens(rows)[0], rows, plain) for rows in (train, validation))
        collators, decoder = (keep_batch, keep_batch), {"segmentation_decoder": "tokens"}
        recipe.append(f"cached tokens {' x '.join(map(str, grid_of(train.column)))} {train.column.dtype}")
    found, save_to = RunList(), None if save_to is None else Path(save_to)
    for system in (system for system in systems if system.hidden_size is None):
        for fraction in fractions:
            for seed in seeds:
                kept = fraction_mask(rows, strata, fraction, protocol.fraction_rule, seed)
                fields = system.fields() | {
                    "vision_tower": tower_name(named_spec(tower)),
                    "text_tower": text_tower if system.model is not None else None,
                    "task": "segmentation",
                    "dataset": dataset,
                    "protocol": "frozen",
                    "recipe": ", ".join(recipe),
                    "input_size": size,
                    "fraction": float(fraction),
                    "seed": int(seed),
                }
                runs = {
                    name: fields
                    | {"split_hash": hashed, "targets_hash": targets[name]}
                    | {"tower_saw_dataset": tower_saw(tower.spec, name)}
                    | overlap_fields(seen_of[name], system.key)
                    | ({} if name == dataset else {"test_set": name})
                    for name, (_, hashed) in tests.items()
                }
                outcome = {"n_train": int(kept.sum()), "lr": protocol.learning_rate, "selected_on": "validation"}

                def fit(system=system, kept=kept, seed=seed, outcome=outcome) -> tuple[Trainer, Any]:
                    model = segmentation_model(system, tower, size, seed, **decoder)
                    parameters = sum(value.numel() for value in model.decoder.parameters())
                    outcome |= {"head_params": parameters, "trainable_params": parameters}
                    trainer = train_decoder(model, train.select(np.flatnonzero(kept)), validation, collators, protocol,
                                            seed=seed, epochs=epochs, device=device)  # fmt: skip
                    return trainer, model

                wanted = system.key == "adaptor" and seed == seeds[0] and fraction == max(fractions)
                save = save_to if wanted else None
                mean = functools.partial(means.of, kept)
                _score(found, runs, tests, fit, outcome, Path(output_dir), num_resamples, save, plain, mean, tolerated,
                       tokens)  # fmt: skip
    return found


def _frame_notes(collator: MaskCollator) -> list[str]:
    """What a score of the tower's own frame leaves out."""
    if collator.geometry or not collator.processor.do_center_crop:
        return []
    return ["Masks are scored within the centre crop that the tower sees, not in the whole image."]


def _readable(dataset: Dataset, tokens: Callable[[Dataset], tuple[EmbeddingCache, np.ndarray]]) -> Dataset:
    kept = tokens(dataset)[1] if len(dataset) else ()
    return dataset if len(kept) == len(dataset) else dataset.select(kept)


def _score(
    found, runs, tests, fit, outcome, output_dir, num_resamples, save_to, collator, mean, tolerated, tokens
) -> None:
    """Train and score what is not finished on each test set, and save the model, if it is to be and is not there."""
    from ..evaluation import segmentation_predictions
    from ..evaluation.results import run_key, write_run

    folders = {name: output_dir / "runs" / run_key(fields) for name, fields in runs.items()}
    with runs_to_make(found, folders) as missing:
        save = save_to is not None and not (save_to / "config.json").is_file()
        if not missing and not save:
            return
        try:
            trainer, model = fit()
        except FloatingPointError as error:
            fields = next(iter(runs.values()))
            share, seed = 100 * fields["fraction"], fields["seed"]
            found.failed.append(f"{fields['system']}, {share:g} %, seed {seed}: {error_text(error)}")
            return
        if missing:
            trainer.preprocess_logits_for_metrics = functools.partial(mask_counts, mean=mean())
        for name in missing:
            dataset = tests[name][0]
            rows = plain_rows(dataset)
            inputs = dataset.select_columns(["image", "mask"])
            if tokens is not None:
                inputs = TokenRows(tokens(dataset)[0], dataset, collator)
            counts = counts_of(trainer.predict(inputs).predictions)
            predictions = segmentation_predictions(
                rows["image_id"], rows["patient_id"], counts, columns=subgroup_columns(rows),
                num_resamples=num_resamples, data_notes=tolerated.notes(name, dataset) + _frame_notes(collator),
            )  # fmt: skip
            found.lines += write_run(folders[name], predictions, runs[name] | outcome)
        if save:
            with only_writer(output_dir, "model", what="process", strict=False, timeout=math.inf):
                save_segmenter(model, collator, save_to)


def save_segmenter(model: AdaptorForSemanticSegmentation, collator: MaskCollator, folder: str | os.PathLike) -> None:
    """Save Adaptor, decoder and the image processing of their training, for `pipeline("image-segmentation")`."""
    trained = collator.processor
    fields = image_processor_fields(trained) | collator.geometry | {name: getattr(trained, name) for name in READING}
    type(trained)(**fields).save_pretrained(folder)
    model.eval().save_pretrained(folder)
    complete_towers(folder)


def run(arguments: DownstreamArguments, device: str) -> str:
    """The task of `--task segmentation`: train and score decoders, and give the text to print."""
    protocol = get_segmentation_protocol(arguments.protocol, arguments.dataset)
    check_private_columns({"image_tokens": arguments.cached_tokens})
    saved = Path(arguments.output_dir) / "model" if arguments.save_model else None
    loaded = load_parts(arguments, "segmentation")
    if "train" in loaded.parts:
        keep = check_copies(
            loaded.parts, cache_dir_of(arguments), arguments.duplicates, known_leak=loaded.leak, check=arguments.check
        )
        loaded.parts["train"] = loaded.parts["train"].select(np.flatnonzero(keep))
    model = load_adaptor(arguments)
    tower, tokens = load_tower(arguments, model, device), None
    if arguments.cached_tokens is not None:
        from ..data.features import stated_reading

        wanted = "all" if arguments.cached_tokens == "all" else int(arguments.cached_tokens)
        reading = stated_reading(next(iter(loaded.parts.values()))) or Reading()
        tokens = functools.partial(
            cached_tokens, tower=tower, cache_dir=cache_dir_of(arguments),
            **options_of_tokens(tower, reading, cache_dir_of(arguments), wanted),
            batch_size=arguments.extraction_batch_size, device=device, check=arguments.check,
        )  # fmt: skip
    runs = run_segmentation(
        loaded.parts,
        systems_of(arguments, model, device),
        tower,
        protocol,
        arguments.output_dir,
        dataset=arguments.name,
        split_hash=loaded.split_hash,
        seen=loaded.seen,
        size=arguments.image_size or input_size(tower.spec) or 224,
        fractions=arguments.fraction,
        seeds=arguments.seeds,
        epochs=arguments.epochs,
        external=load_external_parts(arguments, "segmentation"),
        tokens=tokens,
        save_to=saved,
        text_tower=tower_name(model.config.text_tower),
        num_resamples=arguments.num_resamples,
        device=device,
    )
    return summarize(runs) + (f"\n\nModel: {saved}" if saved else "")


__all__ = [
    "MaskCollator",
    "mask_counts",
    "run",
    "run_segmentation",
    "save_segmenter",
    "segmentation_model",
    "train_decoder",
]
