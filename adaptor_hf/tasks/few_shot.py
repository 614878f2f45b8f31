"""Few-shot classification: logistic regression on k images a class, over many episodes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..privacy.mode import error_text
from ..training.systems import System
from .arguments import DownstreamArguments
from .controls import systems_of
from .embedded import EmbeddedData, load_embedded
from .frozen_heads import run_fields, set_aside_earlier_probes
from .loading import load_adaptor
from .logistic import STRENGTHS, logistic_path
from .overlap import overlap_fields
from .protocols import PROTOCOLS
from .provenance import tower_name, tower_saw
from .runs import RunList, finish_run, subgroup_columns
from .selection import choose_on_validation
from .summary import summarize
from .targets import labels_hash

logger = logging.getLogger(__name__)

SHOTS = (1, 2, 4, 8, 16)
EPISODES = 20


def draw_episode(labels: np.ndarray, shots: int, seed: int) -> list[np.ndarray]:
    """
    Training rows of an episode: for each label `shots` positives and as many negatives; for exclusive classes one list
    with `shots` rows a class.

    Args:
        labels (`np.ndarray`): `(n,)` int64 of exclusive classes, or `(n, C)` float32 of 0, 1 and NaN.
        shots (`int`): Rows a class.
        seed (`int`): Of the episode.

    Raises:
        ValueError: a class has fewer rows.
    """
    generator = np.random.default_rng([seed, shots])
    columns = [labels] if labels.ndim == 1 else list(labels.T)
    drawn = []
    for number, column in enumerate(columns):
        kinds = np.unique(column[~np.isnan(column)])
        rows = []
        for kind in kinds if labels.ndim == 1 else (0, 1):
            places = np.flatnonzero(column == kind)
            if len(places) < shots:
                raise ValueError(
                    f"Label number {number if labels.ndim == 2 else int(kind)} has {len(places)} training rows of "
                    f"one kind, {shots} shots need {shots}."
                )
            rows.append(generator.choice(places, shots, replace=False))
        drawn.append(np.concatenate(rows))
    return drawn


def few_shot_scores(
    features: dict[str, np.ndarray], labels: dict[str, np.ndarray], episode: Sequence[np.ndarray]
) -> tuple[np.ndarray, float]:
    """
    Probabilities of the test rows, and C, shared by all labels. Solver, grid and the rule that chooses C on validation
    are those of the linear probe.

    Args:
        features (`dict[str, np.ndarray]`): `train`, `validation` and `test`, `(n, D)`, of the length sqrt(D), so that C
            means what it means for standardised features.
        labels (`dict[str, np.ndarray]`): Of `train` and `validation`.
        episode: From [`draw_episode`].
    """
    arrays = {part: torch.from_numpy(values) for part, values in features.items()}
    exclusive = labels["train"].ndim == 1
    paths = []
    for number, rows in enumerate(episode):
        targets = labels["train"][rows] if exclusive else labels["train"][rows, number : number + 1]
        classes = int(labels["train"].max()) + 1 if exclusive else 1
        paths.append(logistic_path(arrays["train"][rows], targets, STRENGTHS, num_logits=classes))
    joined = (
        (torch.cat([fit.weight for fit in fits]), torch.cat([fit.bias for fit in fits]), fits[0].strength)
        for fits in zip(*paths, strict=True)
    )
    (weight, bias, strength), _ = choose_on_validation(
        joined, lambda fit: arrays["validation"] @ fit[0].T + fit[1], labels["validation"]
    )
    logits = arrays["test"] @ weight.T + bias
    return (logits.softmax(1) if exclusive else logits.sigmoid()).numpy(), strength


def run_few_shot(
    embedded: EmbeddedData,
    systems: Sequence[System],
    output_dir: str | os.PathLike,
    *,
    shots: Sequence[int] = SHOTS,
    episodes: int = EPISODES,
    text_tower: str | None = None,
    num_resamples: int = 1000,
) -> RunList:
    """
    Score each system, number of shots and episode on the test part; the same episodes for every system.

    Args:
        embedded ([`EmbeddedData`]): With `train`, `validation` and `test`.
        systems (`Sequence[System]`): From `load_systems`; the MLP, whose point is its size, is left out.
        output_dir (`str` or `PathLike`): Each run is a folder under `runs`.
        shots (`Sequence[int]`), episodes (`int`): Rows a class; draws of them, one seed each.
        text_tower (`str`, *optional*), num_resamples (`int`): As in `run_classification`.

    Raises:
        ValueError: a part is missing.
    """
    from ..evaluation import classification_predictions
    from ..evaluation.classification import MULTI, SINGLE

    data = embedded.data
    for part in ("train", "validation", "test"):
        if part not in data.parts:
            raise ValueError(f"{data.name} has no {part} part with labels; it has {', '.join(data.parts)}.")
    found, rows, targets = RunList(), data.rows("test"), labels_hash(data)
    set_aside_earlier_probes(Path(output_dir))
    for system in (system for system in systems if system.hidden_size is None):
        features = {}
        for part, embeds in embedded.embeds.items():
            values = system.features(embeds).numpy().astype(np.float64)
            lengths = np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
            features[part] = values / lengths * math.sqrt(values.shape[1])
        for count in shots:
            for seed in range(episodes):
                fields = run_fields(embedded, system, PROTOCOLS["rigorous"], 1.0, seed, text_tower)
                fields |= {"task": "few_shot", "protocol": "fewshot", "recipe": f"{count} shots", "fraction": None}
                fields["targets_hash"] = targets
                fields["tower_saw_dataset"] = tower_saw(embedded.vision_spec, data.name)
                fields |= overlap_fields(data.seen, system.key)
                try:
                    episode = draw_episode(data.labels["train"], count, seed)
                except ValueError as error:
                    found.failed.append(f"{fields['system']}, {count} shots: {error_text(error)}")
                    break

                parameters = (next(iter(features.values())).shape[1] + 1) * data.num_logits
                outcome = {"n_train": len(np.unique(np.concatenate(episode))), "head_params": parameters,
                           "trainable_params": parameters, "selected_on": "validation"}  # fmt: skip

                def score(features=features, episode=episode, outcome=outcome) -> Any:
                    probabilities, outcome["C"] = few_shot_scores(features, data.labels, episode)
                    return classification_predictions(
                        rows["image_id"], rows["patient_id"], data.labels["test"], probabilities,
                        problem_type=SINGLE if data.exclusive else MULTI, class_names=data.class_names,
                        columns=subgroup_columns(rows), num_resamples=num_resamples,
                    )  # fmt: skip

                finish_run(found, Path(output_dir), fields, score, outcome, system.notes)
    return found


def run(arguments: DownstreamArguments, device: str) -> str:
    """The task of `--task few_shot`: embed, draw and score episodes, and give the text to print."""
    model = load_adaptor(arguments)
    embedded = load_embedded(arguments, model, device)
    runs = run_few_shot(
        embedded,
        systems_of(arguments, model, device),
        arguments.output_dir,
        shots=arguments.shots,
        episodes=arguments.episodes,
        text_tower=tower_name(model.config.text_tower),
        num_resamples=arguments.num_resamples,
    )
    return summarize(runs)


__all__ = ["EPISODES", "SHOTS", "draw_episode", "few_shot_scores", "run", "run_few_shot"]
