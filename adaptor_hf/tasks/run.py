"""Each task of the script: load, embed, run, and give back what to print."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.private_rows import private_rows, refuse_identifying_columns
from ..evaluation.overlap import overlap_sentences
from ..modeling_adaptor import AdaptorModel
from ..tower_bundles_adaptor import use_towers_dir
from .arguments import DownstreamArguments, pairs_of, table_options
from .classification import EmbeddedData, embed_labelled, run_classification
from .compare import remember_costs, write_comparison
from .controls import SYSTEMS, Module, load_modules, saved_controls
from .data import load_table
from .few_shot import run_few_shot
from .final_heads import save_and_predict
from .finetune import run_finetune
from .loading import (
    cache_dir_of,
    cost_of,
    load_adaptor,
    load_classification,
    load_external,
    load_external_parts,
    load_parts,
    load_text_side,
    load_tower,
    vision_tower_of,
    with_default_reading,
)
from .overlap import check_copies, overlap_fields
from .prompts import load_prompts
from .protocols import get_recipe
from .provenance import input_size, tower_name
from .retrieval import embed_test_pairs, run_retrieval
from .summary import summarize
from .text_understanding import run_text_understanding, swap_table
from .zero_shot import run_zero_shot

logger = logging.getLogger(__name__)


def _modules(arguments: DownstreamArguments, model: AdaptorModel, device: str, num_logits: int = 1) -> list[Module]:
    controls = pairs_of(arguments.control_model)
    if not controls and (controls := saved_controls(arguments.model)):
        logger.info("Control models found beside the checkpoint: %s.", ", ".join(SYSTEMS[name] for name in controls))
    return load_modules(model, arguments.controls, controls, num_logits=num_logits, device=device)


def _embedded(arguments: DownstreamArguments, model: AdaptorModel, device: str) -> EmbeddedData:
    options = {"batch_size": arguments.extraction_batch_size, "device": device}
    tower = vision_tower_of(arguments, model)
    embedded = embed_labelled(load_classification(arguments), tower, cache_dir_of(arguments), **options)
    if arguments.task != "zero_shot" and "train" in embedded.data.parts:
        data = embedded.data
        keep = check_copies(data.parts, cache_dir_of(arguments), arguments.duplicates, known_leak=data.leak)
        embedded = embedded.without_training_rows(~keep)
    return embedded


def classification(arguments: DownstreamArguments, device: str) -> str:
    model = load_adaptor(arguments)
    embedded = _embedded(arguments, model, device)
    options = {"batch_size": arguments.extraction_batch_size, "device": device}
    tower = vision_tower_of(arguments, model)
    external = [embed_labelled(other, tower, cache_dir_of(arguments), **options) for other in load_external(arguments)]
    runs = run_classification(
        embedded,
        _modules(arguments, model, device, embedded.data.num_logits),
        get_recipe(arguments.protocol, arguments.dataset, arguments.head),
        arguments.output_dir,
        fractions=arguments.fraction,
        seeds=arguments.seeds,
        external=external,
        text_tower=tower_name(model.config.text_tower),
        num_resamples=arguments.num_resamples,
        device=device,
    )
    for method in arguments.train_tower:
        more = run_finetune(
            embedded.data,
            model,
            load_tower(arguments, model, device),
            method,
            arguments.output_dir,
            hidden_size=get_recipe(arguments.protocol, arguments.dataset, arguments.head).hidden_size,
            fractions=arguments.fraction,
            seeds=arguments.seeds,
            epochs=arguments.epochs or 10,
            text_tower=tower_name(model.config.text_tower),
            num_resamples=arguments.num_resamples,
            device=device,
        )
        runs.lines += more.lines
        runs.skipped += more.skipped
        runs.failed += more.failed
    said = summarize(runs)
    if arguments.do_predict or arguments.save_model:
        unlabelled = None
        if arguments.do_predict:
            columns = table_options(arguments) | {"label_columns": (), "extra_columns": (), "mask_column": None}
            refuse_identifying_columns(arguments.do_predict, arguments.image_column, arguments)
            unlabelled = private_rows(load_table(arguments.do_predict, **columns))
        said += "\n\n" + save_and_predict(
            embedded,
            model,
            get_recipe(arguments.protocol, arguments.dataset, arguments.head),
            fraction=max(arguments.fraction),
            seeds=arguments.seeds,
            tower=tower,
            cache_dir=cache_dir_of(arguments),
            output_dir=arguments.output_dir,
            unlabelled=unlabelled,
            device=device,
        )
    return said


def few_shot(arguments: DownstreamArguments, device: str) -> str:
    model = load_adaptor(arguments)
    embedded = _embedded(arguments, model, device)
    runs = run_few_shot(
        embedded,
        _modules(arguments, model, device),
        arguments.output_dir,
        shots=arguments.shots,
        episodes=arguments.episodes,
        text_tower=tower_name(model.config.text_tower),
        num_resamples=arguments.num_resamples,
    )
    return summarize(runs)


def zero_shot(arguments: DownstreamArguments, device: str) -> str:
    if arguments.prompts is None:
        raise ValueError("--task zero_shot needs --prompts: chexpert, rsna, covidx, siim, phantom, or a JSON file.")
    prompts = load_prompts(arguments.prompts)
    model = load_adaptor(arguments)
    embedded = _embedded(arguments, model, device)
    runs = run_zero_shot(
        embedded,
        _modules(arguments, model, device),
        load_text_side(arguments, model, device),
        prompts,
        arguments.output_dir,
        prompts_per_class=arguments.prompts_per_class,
        seeds=arguments.seeds,
        num_resamples=arguments.num_resamples,
    )
    return summarize(runs)


def segmentation(arguments: DownstreamArguments, device: str) -> str:
    from .segmentation import get_segmentation_recipe, run_segmentation

    recipe = get_segmentation_recipe(arguments.protocol, arguments.dataset)
    saved = Path(arguments.output_dir) / "model" if arguments.save_model else None
    loaded = load_parts(arguments, "segmentation")
    if "train" in loaded.parts:
        keep = check_copies(loaded.parts, cache_dir_of(arguments), arguments.duplicates, known_leak=loaded.leak)
        loaded.parts["train"] = loaded.parts["train"].select(np.flatnonzero(keep))
    model = load_adaptor(arguments)
    tower = load_tower(arguments, model, device)
    runs = run_segmentation(
        loaded.parts,
        _modules(arguments, model, device),
        tower,
        recipe,
        arguments.output_dir,
        dataset=arguments.name,
        split_hash=loaded.split_hash,
        seen=loaded.seen,
        size=arguments.image_size or input_size(tower.spec) or 224,
        fractions=arguments.fraction,
        seeds=arguments.seeds,
        epochs=arguments.epochs,
        external=load_external_parts(arguments, "segmentation"),
        save_to=saved,
        text_tower=tower_name(model.config.text_tower),
        num_resamples=arguments.num_resamples,
        device=device,
    )
    return summarize(runs) + (f"\n\nModel: {saved}" if saved else "")


def _test_pairs(arguments: DownstreamArguments, model: AdaptorModel, device: str, text_tower: Any) -> tuple:
    loaded = load_parts(arguments, "pretraining")
    if "test" not in loaded.parts:
        raise ValueError(f"{arguments.name} has no test part; it has {', '.join(loaded.parts)}.")
    pairs = embed_test_pairs(
        loaded.parts["test"], vision_tower_of(arguments, model), text_tower, cache_dir_of(arguments),
        batch_size=arguments.extraction_batch_size, device=device,
    )  # fmt: skip
    rows = np.asarray(pairs.pairs["source_row"][:])
    return loaded.parts["test"].select(rows), pairs, loaded


def retrieval(arguments: DownstreamArguments, device: str) -> str:
    model = load_adaptor(arguments)
    dataset, pairs, loaded = _test_pairs(arguments, model, device, load_text_side(arguments, model, device))
    classes = None
    if "labels" in dataset.column_names and hasattr(dataset.features["labels"], "num_classes"):
        classes = np.asarray(dataset["labels"][:], np.int64)
    runs = run_retrieval(
        pairs,
        _modules(arguments, model, device),
        arguments.output_dir,
        dataset=arguments.name,
        split_hash=loaded.split_hash,
        seen=loaded.seen,
        classes=classes,
        num_resamples=arguments.num_resamples,
    )
    return summarize(runs)


def text_understanding(arguments: DownstreamArguments, device: str) -> str:
    model = load_adaptor(arguments)
    text_tower = load_text_side(arguments, model, device)
    dataset, pairs, loaded = _test_pairs(arguments, model, device, text_tower)
    results = run_text_understanding(
        dataset["text"][:],
        [patient or f"row {row}" for row, patient in enumerate(pairs.pairs["patient_id"][:])],
        pairs.image_embeddings().float(),
        _modules(arguments, model, device),
        text_tower,
        arguments.output_dir,
        dataset=arguments.name,
        seen=loaded.seen,
        num_resamples=arguments.num_resamples,
    )
    named = {"dataset": arguments.name, "module": "adaptor", "system": SYSTEMS["adaptor"]}
    return "\n\n".join([swap_table(results), *overlap_sentences([named | overlap_fields(loaded.seen, "adaptor")])])


TASK_FUNCTIONS: dict[str, Callable[[DownstreamArguments, str], str]] = {
    "classification": classification,
    "few_shot": few_shot,
    "retrieval": retrieval,
    "segmentation": segmentation,
    "text_understanding": text_understanding,
    "zero_shot": zero_shot,
}
"""What `--task` runs; each gives a text to print."""


def run_job(arguments: DownstreamArguments, device: str, say: Callable[[str], Any] = print) -> None:
    """
    One command: the task for each model, and their comparison if it was asked for.

    Args:
        arguments ([`DownstreamArguments`]): Of the script.
        device (`str`): Where models run.
        say (`Callable[[str], Any]`): Gets the table of each model as it is done, and the comparison.
    """
    if arguments.towers_dir:
        use_towers_dir(arguments.towers_dir)
    for model in [arguments.model, *arguments.more_models]:
        started, job = time.monotonic(), with_default_reading(replace(arguments, model=model))
        say(TASK_FUNCTIONS[arguments.task](job, device))
        remember_costs(arguments.output_dir, cost_of(job, time.monotonic() - started))
    if arguments.compare:
        fraction = max(arguments.fraction) if arguments.task in ("classification", "segmentation") else None
        say(write_comparison(arguments.output_dir, task=arguments.task, dataset=arguments.name, fraction=fraction))


__all__ = ["TASK_FUNCTIONS", "run_job"]
