"""Zero-shot classification: is an image closer to texts that name a finding than to texts that deny it?"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluation.zero_shot import embed_prompts, embed_texts, prompt_features, prompt_scores, tower_text_features
from ..modeling_adaptor import AdaptorModel
from ..towers_adaptor import TextTower
from ..training.systems import System
from .arguments import DownstreamArguments
from .controls import systems_of
from .embedded import EmbeddedData, load_embedded
from .loading import load_adaptor, load_checkpoint_text_tower
from .overlap import overlap_fields
from .prompts import PromptSet, load_prompts
from .provenance import input_size, tower_name, tower_saw
from .runs import RunList, finish_run, subgroup_columns
from .summary import summarize
from .supervised import supervised_runs
from .targets import labels_hash

logger = logging.getLogger(__name__)


@torch.no_grad()
def zero_shot_scores(
    model: AdaptorModel,
    text_tower: TextTower,
    image_embeds: torch.Tensor,
    positive: Sequence[str],
    negative: Sequence[str],
) -> torch.Tensor:
    """
    Score of each image alone, whatever other images are scored beside it.

    Args:
        model (`AdaptorModel`): In evaluation mode.
        text_tower (`TextTower`): The tower that the model was trained with.
        image_embeds (`torch.Tensor` of shape `(N, D)`): Embeddings of the vision tower, as cached.
        positive, negative (`Sequence[str]`): Texts that say the finding is there, and that it is not.

    Returns:
        `torch.Tensor` of shape `(N,)`, in [-2, 2]: cosine to the positive class minus cosine to the negative class.
    """
    classes = [embed_prompts(model, text_tower, prompts) for prompts in (positive, negative)]
    images = model.get_image_features(image_embeds=image_embeds.to(model.device)).pooler_output
    return images @ (classes[0] - classes[1])


@torch.no_grad()
def class_scores(
    model: AdaptorModel, text_tower: TextTower, image_features: torch.Tensor, prompts: PromptSet
) -> np.ndarray:
    """
    Scores of every class for images that went through the Adaptor.

    Args:
        image_features (`torch.Tensor` of shape `(N, hidden_size)`): From `adaptor_features`.
        prompts ([`PromptSet`]): In the order of the classes.

    Returns:
        `np.ndarray` of shape `(N, C)`, float64: cosine to the class; minus that to its denial where there is one.
    """
    classes = {
        name: tuple(
            None if texts is None else prompt_features(text_tower, texts)
            for texts in (positive, prompts.negative.get(name))
        )
        for name, positive in prompts.positive.items()
    }
    return prompt_scores(model, image_features, classes)


def run_zero_shot(
    embedded: EmbeddedData,
    systems: Sequence[System],
    text_tower: TextTower,
    prompts: PromptSet,
    output_dir: str | os.PathLike,
    *,
    prompts_per_class: int | None = None,
    seeds: Sequence[int] = (0,),
    num_resamples: int = 1000,
) -> RunList:
    """
    Score the test part with the prompts, once a system and draw. Every image is scored alone, and nothing is chosen: a
    label is there if its texts are closer than those of its denial.

    Args:
        embedded ([`EmbeddedData`]): With `test`.
        systems (`Sequence[System]`): With a model; others (the raw tower) have no common space and are left out.
        text_tower (`TextTower`): The Adaptor's.
        prompts ([`PromptSet`]): For the data set's classes.
        output_dir (`str` or `PathLike`): Each run is a folder under `runs`.
        prompts_per_class (`int`, *optional*): Draw so many, anew for each seed. By default all are used, in one run.
        seeds (`Sequence[int]`): Of the draws.
        num_resamples (`int`, defaults to 1000): Of the bootstrap over patients.

    Raises:
        ValueError: no test part, or a class without prompts.
    """
    from ..evaluation import classification_predictions
    from ..evaluation.classification import MULTI, SINGLE

    data = embedded.data
    if "test" not in data.parts:
        raise ValueError(f"{data.name} has no test part; it has {', '.join(data.parts)}.")
    prompts = prompts.for_classes(data.class_names, data.exclusive)
    found, rows, targets = RunList(), data.rows("test"), labels_hash(data, parts=("test",))
    # The digest is that of the whole set: set, number and seed determine a draw, and draws are one recipe's seeds.
    drawn = "" if prompts_per_class is None else f", {prompts_per_class} a class"
    recipe = f"{prompts.name}{drawn} ({prompts.digest})"
    for system in (system for system in systems if system.model is not None):
        features = system.features(embedded.embeds["test"])
        for seed in seeds if prompts_per_class is not None else seeds[:1]:
            chosen = prompts.draw(prompts_per_class, seed)
            fields = system.fields() | {
                "recipe": recipe,
                "vision_tower": tower_name(embedded.vision_spec),
                "text_tower": tower_name(text_tower.spec),
                "task": "zero_shot",
                "dataset": data.name,
                "split_hash": data.split_hash,
                "protocol": "zeroshot",
                "input_size": input_size(embedded.vision_spec),
                "seed": int(seed),
                "positive_class": data.positive_class,
                "targets_hash": targets,
                "tower_saw_dataset": tower_saw(embedded.vision_spec, data.name),
            } | overlap_fields(data.seen, system.key)  # fmt: skip

            def score(system=system, features=features, chosen=chosen) -> Any:
                scores = class_scores(system.model, text_tower, features, chosen)
                return classification_predictions(
                    rows["image_id"], rows["patient_id"], data.labels["test"], scores,
                    problem_type=SINGLE if data.exclusive else MULTI, class_names=data.class_names,
                    probabilities=False, thresholds=None if data.exclusive else [0.0] * data.num_logits,
                    columns=subgroup_columns(rows), num_resamples=num_resamples,
                )  # fmt: skip

            outcome = {"n_train": 0, "head_params": 0, "trainable_params": 0, "selected_on": "none"}
            finish_run(found, Path(output_dir), fields, score, outcome, system.notes)
    return found


def run(arguments: DownstreamArguments, device: str) -> str:
    """The task of `--task zero_shot`: embed images and prompts, score, and give the text to print."""
    prompts = load_prompts(arguments.prompts)
    model = load_adaptor(arguments)
    embedded = load_embedded(arguments, model, device)
    runs = run_zero_shot(
        embedded,
        systems_of(arguments, model, device),
        load_checkpoint_text_tower(arguments, model, device),
        prompts,
        arguments.output_dir,
        prompts_per_class=arguments.prompts_per_class,
        seeds=arguments.seeds,
        num_resamples=arguments.num_resamples,
    )
    runs.add(supervised_runs(arguments, embedded, device))
    return summarize(runs)


__all__ = [
    "class_scores",
    "embed_prompts",
    "embed_texts",
    "run",
    "run_zero_shot",
    "tower_text_features",
    "zero_shot_scores",
]
