"""Classification with a tower that trains too: end to end, or low-rank weights in its attention (LoRA by peft)."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import set_seed

from ..evaluation.aligners import system_name
from ..evaluation.controls import CONTROLS, controls_made
from ..heads_adaptor import AdaptorForImageClassification
from ..modeling_adaptor import AdaptorModel
from ..privacy.mode import error_text
from ..towers_adaptor import VisionTower
from .controls import UNREACHED, named
from .data import LabelledData, training_subset
from .probe import check_labels
from .runs import RunList, finish_run, subgroup_columns
from .tower_training import probabilities, train_classifier

LEARNING_RATES = {key: CONTROLS[key].learning_rate for key in controls_made("fine-tuned")}
RANK = 8
_ATTENTION = ("query", "value", "q_proj", "v_proj", "qkv")


class ImageCollator:
    """Rows with `image` and `target` as `pixel_values` and `labels`."""

    def __init__(self, processor: Any, exclusive: bool):
        self.processor, self.dtype = processor, torch.long if exclusive else torch.float32

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = dict(self.processor([row["image"] for row in rows], return_tensors="pt"))
        return batch | {"labels": torch.tensor(np.array([row["target"] for row in rows]), dtype=self.dtype)}


def trainable_model(
    model: AdaptorModel, tower: VisionTower, method: str, data: LabelledData, hidden_size: int | None, seed: int
) -> AdaptorForImageClassification:
    """
    A classifier on copies of Adaptor and tower, with gradients where the method trains.

    Raises:
        ValueError: an unknown method, or a tower without attention for LoRA.
    """
    if method not in LEARNING_RATES:
        raise ValueError(f"method is {' or '.join(LEARNING_RATES)}, got {method!r}.")
    set_seed(seed)
    adaptor, tower = _without_towers(model), copy.deepcopy(tower)
    adaptor.attach_towers(tower, None)
    classifier = AdaptorForImageClassification.from_adaptor(
        adaptor,
        num_labels=data.num_logits,
        problem_type="single_label_classification" if data.exclusive else "multi_label_classification",
        classifier_hidden_size=hidden_size,
    )
    if CONTROLS[method].low_rank:
        from peft import LoraConfig, inject_adapter_in_model

        names = {name.rpartition(".")[2] for name, part in tower.model.named_modules() if isinstance(part, nn.Linear)}
        targets = sorted(names & set(_ATTENTION))
        if not targets:
            raise ValueError("LoRA needs a tower with attention layers; this one has none. Use a vision transformer.")
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, init_lora_weights=True)
        inject_adapter_in_model(config, tower.model)
    else:
        classifier.adaptor.requires_grad_(True)
        # What images never reach must not count as trained.
        for name, parameter in classifier.adaptor.named_parameters():
            if name.startswith(UNREACHED):
                parameter.requires_grad_(False)
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
    text_tower: str | None = None,
    num_resamples: int = 1000,
    device: str = "cpu",
) -> RunList:
    """
    Train for each fraction and seed and score once on the test part; the best epoch is that of the highest macro AUROC
    on validation.

    Args:
        data ([`LabelledData`]): With `train`, `validation` and `test`.
        model (`AdaptorModel`), tower (`VisionTower`): Copied for each run; they stay as they are.
        method (`str`): `finetune` or `lora`.
        hidden_size (`int`, *optional*): Of the head; `None` for a linear one.
        learning_rate (`float`, *optional*): By default 2e-5 end to end and 2e-4 for LoRA.
        fractions, seeds, epochs, batch_size, text_tower, num_resamples, device: As for frozen heads.

    Raises:
        ValueError: a part is missing, or as of `trainable_model`.
    """
    from ..evaluation import classification_predictions
    from ..evaluation.classification import MULTI, SINGLE
    from ..evaluation.naming import weights_digest
    from ..evaluation.notes import reading_notes
    from .frozen_heads import class_frequencies, decisions
    from .overlap import overlap_fields
    from .provenance import input_size, tower_name, tower_saw
    from .targets import labels_hash

    for part in ("train", "validation", "test"):
        if part not in data.parts:
            raise ValueError(f"{data.name} has no {part} part with labels; it has {', '.join(data.parts)}.")
    found, rows, targets = RunList(), data.rows("test"), labels_hash(data)
    images = {
        part: dataset.select_columns(["image"]).add_column("target", data.labels[part].tolist())
        for part, dataset in data.parts.items()
    }
    rate, checkpoint = learning_rate or LEARNING_RATES[method], named(model.name_or_path)
    for fraction in fractions:
        for seed in seeds:
            kept = training_subset(data, fraction, "nested", seed)
            fields = {
                "system": system_name(method, model.config.aligner),
                "module": method,
                "checkpoint": weights_digest(model),
                "checkpoint_name": checkpoint["name"],
                "checkpoint_check": checkpoint["check"],
                "vision_tower": tower_name(tower.spec),
                "text_tower": text_tower,
                "task": "classification",
                "dataset": data.name,
                "split_hash": data.split_hash,
                "protocol": method,
                "recipe": f"{epochs} epochs, lr {rate:g}",
                "input_size": input_size(tower.spec),
                "fraction": float(fraction),
                "seed": int(seed),
                "tower_saw_dataset": tower_saw(tower.spec, data.name),
                "positive_class": data.positive_class,
                "targets_hash": targets,
            } | overlap_fields(data.seen, method)
            outcome = {"n_train": len(kept), "lr": rate, "selected_on": "validation"}

            def score(kept=kept, seed=seed, outcome=outcome) -> Any:
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
                trainer = train_classifier(
                    classifier, train, validation, collator, exclusive=data.exclusive, learning_rate=rate,
                    epochs=epochs, batch_size=batch_size, seed=seed, device=device,
                )  # fmt: skip
                chosen = decisions(probabilities(trainer, images["validation"], data.exclusive), data)
                return classification_predictions(
                    rows["image_id"], rows["patient_id"], data.labels["test"],
                    probabilities(trainer, images["test"], data.exclusive),
                    problem_type=SINGLE if data.exclusive else MULTI, class_names=data.class_names,
                    train_frequencies=class_frequencies(labels, data), columns=subgroup_columns(rows),
                    num_resamples=num_resamples, **chosen,
                )  # fmt: skip

            try:
                finish_run(found, Path(output_dir), fields, score, outcome, reading_notes(model.config))
            except (ValueError, FloatingPointError) as error:
                found.failed.append(f"{fields['system']}, {100 * fraction:g} %, seed {seed}: {error_text(error)}")
    return found


__all__ = ["LEARNING_RATES", "RANK", "run_finetune", "trainable_model"]
