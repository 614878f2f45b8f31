"""Classification with a tower that trains too: end to end, its last blocks, or low-rank weights in its attention."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from ..evaluation.aligners import system_name
from ..evaluation.controls import CONTROLS, controls_made
from ..heads_adaptor import AdaptorForImageClassification
from ..modeling_adaptor import AdaptorModel
from ..privacy.mode import error_text
from ..tower_training_adaptor import merge_lora, parse_trainable
from ..towers_adaptor import VisionTower
from ..training.base_trainer import BaseTrainer
from .arguments import METHOD_OF_BLOCKS
from .controls import UNREACHED, named
from .data import LabelledData, training_subset
from .probe import check_labels
from .runs import RunList, runs_to_make, subgroup_columns
from .saved_classifiers import save_finetuned
from .tower_training import probabilities, train_classifier

LEARNING_RATES = {key: CONTROLS[key].learning_rate for key in controls_made("fine-tuned")}
RANK = 8

logger = logging.getLogger(__name__)


class ImageCollator:
    """Rows with `image` and `target` as `pixel_values` and `labels`."""

    def __init__(self, processor: Any, exclusive: bool):
        self.processor, self.dtype = processor, torch.long if exclusive else torch.float32

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = dict(self.processor([row["image"] for row in rows], return_tensors="pt"))
        return batch | {"labels": torch.tensor(np.array([row["target"] for row in rows]), dtype=self.dtype)}


def method_of(word: str) -> tuple[str, str | int]:
    """
    Key of the control that `--train_tower` names, and what of the tower trains then: `"full"`, `"lora"` or a number of
    last blocks.

    Raises:
        ValueError: it is neither a method nor a number.
    """
    if word in ("finetune", "lora"):
        return word, "full" if word == "finetune" else word
    try:
        return METHOD_OF_BLOCKS, int(parse_trainable(str(word)))
    except ValueError:
        raise ValueError(f"method is finetune or lora, or a number of last blocks, got {word!r}.") from None


def trainable_model(
    model: AdaptorModel, tower: VisionTower, method: str, data: LabelledData, hidden_size: int | None, seed: int
) -> AdaptorForImageClassification:
    """
    A classifier on copies of Adaptor and tower, with gradients where the method trains.

    Raises:
        ValueError: an unknown method, a tower without attention for LoRA, or one that has fewer blocks.
    """
    key, trainable = method_of(method)
    set_seed(seed)
    adaptor, tower = _without_towers(model), copy.deepcopy(tower)
    adaptor.attach_towers(tower, None)
    classifier = AdaptorForImageClassification.from_adaptor(
        adaptor,
        num_labels=data.num_logits,
        problem_type="single_label_classification" if data.exclusive else "multi_label_classification",
        classifier_hidden_size=hidden_size,
    )
    if not CONTROLS[key].low_rank:
        merge_lora(tower)
        for name, parameter in classifier.adaptor.named_parameters():
            # What images never reach must not count as trained.
            parameter.requires_grad_(not name.startswith(UNREACHED))
    tower.set_trainable(trainable, lora_rank=RANK)
    if trainable == "full":
        # It computes as the frozen tower does: without dropout, and with the batch statistics of its pre-training,
        # which batches of a few images cannot give.
        tower.trainable = "frozen"
        tower.eval()
    return classifier


def _without_towers(model: AdaptorModel) -> AdaptorModel:
    """A copy of the Adaptor alone: its own towers would be copied and trained for nothing."""
    towers = {id(tower): None for tower in (model.vision_model, model.text_model) if tower is not None}
    return copy.deepcopy(model, towers)


def run_finetune(
    data: LabelledData,
    model: AdaptorModel,
    tower: VisionTower,
    method: str,
    output_dir: str | os.PathLike,
    *,
    hidden_size: int | None = None,
    fractions: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    epochs: int = 10,
    batch_size: int = 16,
    learning_rate: float | None = None,
    layer_decay: float = 1.0,
    gradient_checkpointing: bool = False,
    text_tower: str | None = None,
    num_resamples: int = 1000,
    device: str = "cpu",
    save_to: str | os.PathLike | None = None,
    record_rows: Callable[[str | os.PathLike], Any] | None = None,
) -> RunList:
    """
    Train for each fraction and seed and score once on the test part; the best epoch is that of the highest macro AUROC
    on validation.

    Args:
        data ([`LabelledData`]): With `train`, `validation` and `test`.
        model (`AdaptorModel`), tower (`VisionTower`): Copied for each run; they stay as they are.
        method (`str`): `finetune` (end to end), `lora`, or the number of the tower's last blocks that train with the
            Adaptor.
        hidden_size (`int`, *optional*): Of the head; `None` for a linear one.
        learning_rate (`float`, *optional*): By default 2e-5, and 2e-4 for LoRA.
        layer_decay (`float`, defaults to 1.0): Factor on the learning rate from one block of the tower to the one
            before it, as of BEiT.
        gradient_checkpointing (`bool`): Compute activations of the tower's blocks twice instead of keeping them.
        fractions, seeds, epochs, batch_size, text_tower, num_resamples, device: As for frozen heads.
        save_to (`str` or `PathLike`, *optional*): Folder for the classifier of the first seed at the largest fraction,
            with its tower; trained again if it is not there.
        record_rows (`Callable`, *optional*): Writes the training rows into that folder.

    Raises:
        ValueError: a part is missing, or as of `trainable_model`.
    """
    from ..evaluation import classification_predictions
    from ..evaluation.classification import MULTI, SINGLE
    from ..evaluation.naming import weights_digest
    from ..evaluation.notes import reading_notes
    from ..evaluation.results import run_key, write_run
    from .frozen_heads import class_frequencies, decisions
    from .overlap import overlap_fields
    from .provenance import input_size, named_spec, tower_name, tower_saw
    from .targets import labels_hash

    for part in ("train", "validation", "test"):
        if part not in data.parts:
            raise ValueError(f"{data.name} has no {part} part with labels; it has {', '.join(data.parts)}.")
    found, rows, targets = RunList(), data.rows("test"), labels_hash(data)
    images = {
        part: dataset.select_columns(["image"]).add_column("target", data.labels[part].tolist())
        for part, dataset in data.parts.items()
    }
    key, trainable = method_of(method)
    if gradient_checkpointing and trainable == "full":
        logger.warning("--gradient_checkpointing saves nothing in finetune: there the tower is in evaluation mode.")
    rate, checkpoint = learning_rate or LEARNING_RATES[key], named(model.name_or_path)
    recipe = [f"last {trainable} blocks"] if isinstance(trainable, int) else []
    recipe += [f"{epochs} epochs", f"lr {rate:g}"] + ([f"layer decay {layer_decay:g}"] if layer_decay != 1.0 else [])
    spec, save_to = named_spec(tower), None if save_to is None else Path(save_to)
    for fraction in fractions:
        for seed in seeds:
            kept = training_subset(data, fraction, "nested", seed)
            fields = {
                "system": system_name(key, model.config.aligner),
                "module": key,
                "checkpoint": weights_digest(model),
                "checkpoint_name": checkpoint["name"],
                "checkpoint_check": checkpoint["check"],
                "vision_tower": tower_name(spec),
                "text_tower": text_tower,
                "task": "classification",
                "dataset": data.name,
                "split_hash": data.split_hash,
                "protocol": key,
                "recipe": ", ".join(recipe),
                "input_size": input_size(tower.spec),
                "fraction": float(fraction),
                "seed": int(seed),
                "tower_saw_dataset": tower_saw(tower.spec, data.name),
                "positive_class": data.positive_class,
                "targets_hash": targets,
            } | overlap_fields(data.seen, key)
            outcome = {"n_train": len(kept), "lr": rate, "selected_on": "validation"}

            def fit(kept=kept, seed=seed, outcome=outcome) -> BaseTrainer:
                labels = data.labels["train"][kept]
                check_labels(labels, data.num_logits, data.exclusive)
                classifier = trainable_model(model, tower, method, data, hidden_size, seed)
                trained = [value.numel() for value in classifier.parameters() if value.requires_grad]
                outcome |= {
                    "trainable_params": sum(trained),
                    "head_params": sum(value.numel() for value in classifier.classifier.parameters()),
                    "total_params": sum(value.numel() for value in classifier.parameters()),
                }
                train, validation = images["train"].select(kept), images["validation"]
                collator = ImageCollator(tower.processor, data.exclusive)
                return train_classifier(
                    classifier, train, validation, collator, exclusive=data.exclusive, learning_rate=rate,
                    epochs=epochs, batch_size=batch_size, seed=seed, device=device, layer_decay=layer_decay,
                    gradient_checkpointing=gradient_checkpointing,
                )  # fmt: skip

            def score(trainer: BaseTrainer, kept=kept) -> Any:
                chosen = decisions(probabilities(trainer, images["validation"], data.exclusive), data)
                return classification_predictions(
                    rows["image_id"], rows["patient_id"], data.labels["test"],
                    probabilities(trainer, images["test"], data.exclusive),
                    problem_type=SINGLE if data.exclusive else MULTI, class_names=data.class_names,
                    train_frequencies=class_frequencies(data.labels["train"][kept], data),
                    columns=subgroup_columns(rows), num_resamples=num_resamples, **chosen,
                )  # fmt: skip

            folder, notes = Path(output_dir) / "runs" / run_key(fields), reading_notes(model.config)
            save = save_to is not None and seed == seeds[0] and fraction == max(fractions)
            try:
                with runs_to_make(found, {"run": folder}) as missing:
                    save = save and not (save_to / "config.json").is_file()
                    if not missing and not save:
                        continue
                    trainer = fit()
                    if missing:
                        predictions = score(trainer)
                        if notes:
                            predictions.settings["data_notes"] = list(notes)
                        found.lines += write_run(folder, predictions, fields | outcome)
                    if save:
                        save_finetuned(trainer.model, data, save_to, found.lines, record_rows)
            except (ValueError, FloatingPointError) as error:
                found.failed.append(f"{fields['system']}, {100 * fraction:g} %, seed {seed}: {error_text(error)}")
    return found


__all__ = ["LEARNING_RATES", "RANK", "method_of", "run_finetune", "trainable_model"]
