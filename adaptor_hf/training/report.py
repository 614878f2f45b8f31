"""The end of a run: retrieval beside its controls, printed and written into the model card."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration_adaptor import AdaptorConfig
from ..data.reading import Reading
from ..data.sources import describe_terms, public_label
from ..data.splits import split_hash
from ..evaluation.aligners import system_name
from ..evaluation.controls import CONTROLS
from ..evaluation.results import RETRIEVAL_FILE
from ..files import write_aside
from ..hub import write_model_card
from ..hub.trained_card import complete_towers
from ..image_processing_adaptor import processor_of_tower
from ..markdown import table_row, table_rule
from ..modeling_adaptor import AdaptorModel
from ..objectives import AdaptorObjective, Objective
from ..privacy.mode import is_private
from ..processing_adaptor import AdaptorProcessor
from ..towers.words import describe_training
from ..towers_adaptor import load_text_processor
from .arguments import AdaptorTrainingArguments
from .controls import (
    CONTROLS_FOLDER,
    FROZEN,
    RetrievalResult,
    compare_retrieval,
    evaluate_retrieval,
    format_table,
    same_as_run,
    save_controls,
    train_controls,
)
from .curves import CURVES_FILE
from .pair_cache import next_run
from .trained_towers import TrainedTowers, trained_tower_lines

if TYPE_CHECKING:
    from ..embeddings import EmbeddingCache

logger = logging.getLogger(__name__)


def report_run(
    model: AdaptorModel,
    arguments: AdaptorTrainingArguments,
    cache: "EmbeddingCache",
    views: dict[str, "EmbeddingCache"],
    *,
    dataset_name: str | None = None,
    learning_rates: list[float] | None = None,
    objective: Mapping[str, Any] | None = None,
    make_objective: Callable[[], Objective] = AdaptorObjective,
    recipe: str | None = None,
    towers: TrainedTowers | None = None,
) -> Path | None:
    """
    Score a trained model once, on the test split if there is one, print the table and write the model card. Control
    models that were trained are saved in `controls`, where `train_downstream.py` finds them; of a run whose towers
    trained in `frozen_towers`, a checkpoint of the Adaptor on frozen towers with its own `controls`.

    Every process must call it: all of them train the controls, the first one does the rest.

    Args:
        model (`AdaptorModel`): The trained model.
        arguments (`AdaptorTrainingArguments`): Its arguments.
        cache (`EmbeddingCache`): The whole cache.
        views (`dict[str, EmbeddingCache]`): Its splits, from `contrastive_splits`.
        dataset_name (`str`, *optional*): What the card calls the data.
        learning_rates (`list[float]`, *optional*): Train the controls too, over this grid.
        objective (`Mapping`, *optional*): What was minimised, as of `ModelArguments.objective_record`; by default the
            paper's.
        make_objective (`Callable`): Gives it anew, for the controls.
        recipe (`str`, *optional*): Name of the packaged recipe that the arguments are of.
        towers (`TrainedTowers`, *optional*): Of a run whose towers trained. The model is scored on their embeddings,
            the controls are trained and scored on those of `views`, by the towers as they started.

    Returns:
        `Path | None`: The card; `None` on other processes than the first one.

    Raises:
        ValueError: if controls are asked for and there is no validation split to choose on.
    """
    evaluated_on = next((name for name in ("test", "validation") if name in views), None)
    if learning_rates and "validation" not in views:
        raise ValueError("--controls chooses on a validation split, and there is none.")
    systems = []
    if learning_rates:
        config, key = (model.config, "adaptor") if towers is None else (towers.frozen_config, FROZEN)
        systems = train_controls(
            config, views["train"], views["validation"], arguments, learning_rates, make_objective, key
        )
    if arguments.process_index > 0:
        return None
    if systems:
        folder = Path(arguments.output_dir) / ("" if towers is None else FROZEN)
        save_controls(systems, folder / CONTROLS_FOLDER)
        if towers is not None:
            # A checkpoint of its own, on the same rows: it carries their digests on.
            systems[0].model.loaded_from = arguments.output_dir
            systems[0].model.save_pretrained(folder)
    result = table = None
    of_sources: dict[str, RetrievalResult] = {}
    if evaluated_on is not None:
        name = f"{system_name('adaptor', model.config.aligner)}, this run"
        own = views[evaluated_on]
        if towers is not None:
            own = towers.held_out.with_columns(*own.columns, sequences=own.sequences)
            name = f"{name} ({towers.describe()})"
        result = evaluate_retrieval(model, own, name)
        if towers is not None and systems:
            result = replace(result, learning_rate=arguments.learning_rate)
        results = [result, *(compare_retrieval(systems, views[evaluated_on]) if systems else [])]
        table = format_table(results)
        if evaluated_on == "validation":
            table += "\n\nThere is no test split: these rows also chose the epoch and the learning rate."
        if systems and (same := [CONTROLS[key].name for key in same_as_run(model.config)]):
            table += f"\n\nThere is no control {' and '.join(same)}: this run's aligner is that already."
        if towers is not None:
            table += f"\n\n{note_on_frozen_towers(bool(systems))}"
        of_sources = retrieval_of_sources(model, own)
        write_retrieval(arguments.output_dir, result, evaluated_on, results[1:], of_sources)
        print(f"\nRetrieval on the {evaluated_on} split ({len(views[evaluated_on]):,} pairs):\n\n{table}\n")
        if of_sources:
            print(f"Each source among its own images and texts:\n\n{format_sources(of_sources)}\n")
    kinds = () if towers is None else tuple(towers.trainable)
    told = card_arguments(arguments, objective)
    shown = (card_of_training(towers, arguments, *kinds) if kinds else {}) | told
    complete_towers(arguments.output_dir, {kind: card_of_training(towers, arguments, kind) | told for kind in kinds})
    return write_model_card(
        arguments.output_dir,
        # A folder may be named after anything.
        model_name="Adaptor" if is_private() else Path(arguments.output_dir).resolve().name,
        config=model.config.to_dict(),
        num_parameters=model.num_parameters(only_trainable=True),
        pairs={name: len(view) for name, view in views.items()},
        split_hash=split_hash(cache.pairs),
        arguments=({"recipe": recipe} if recipe else {}) | {"aligner": model.config.aligner} | shown,
        result=result,
        evaluated_on=evaluated_on,
        dataset_name=dataset_name,
        controls=table if learning_rates else (note_on_frozen_towers(False) if towers else None),
        versions=package_versions(),
        sources=sources_of_card(cache, views, arguments, of_sources),
        objective=objective["name"] if objective else "adaptor",
    )


def note_on_frozen_towers(controls: bool) -> str:
    """What a table of a run whose towers trained shows of the gain of training them, or does not."""
    if controls:
        return (
            f"{CONTROLS[FROZEN].name}, and the other controls, read the towers as they were before this run: what "
            "training the towers adds is the difference to it. Their learning rates are of the grid and were chosen on "
            "validation; this run has the one that it was given."
        )
    return (
        "What training the towers adds is not shown: the same Adaptor was not trained on the towers as they were. "
        "--controls does that, on embeddings that are there."
    )


def card_of_training(towers: TrainedTowers, arguments: AdaptorTrainingArguments, *kinds: str) -> dict[str, str]:
    """Rows of a card on how towers of these kinds trained."""
    trainable = {kind: towers.trainable[kind] for kind in kinds}
    rows = {f"{kind} tower": describe_training(how) for kind, how in trainable.items()}
    others = {"image_recipe": "vision" not in kinds, "sentence_recipe": "text" not in kinds}
    others |= dict.fromkeys(("lora_rank", "merge_lora"), "lora" not in trainable.values())
    options = {name: value for name, value in towers.options.items() if not others.get(name)}
    rate = arguments.tower_learning_rate
    rows["tower_learning_rate"] = str(arguments.learning_rate if rate is None else rate)
    return rows | {"layer_decay": str(arguments.layer_decay)} | options


def retrieval_of_sources(model: AdaptorModel, view: "EmbeddingCache") -> dict[str, RetrievalResult]:
    """Retrieval in each source of a split, among its own images and texts; nothing of one source."""
    return {name: evaluate_retrieval(model, view.source(name), name) for name in view.sources}


def format_sources(results: Mapping[str, RetrievalResult]) -> str:
    """A table of the retrieval in each source, beside what chance scores there."""
    head = ["source", "queries", "i2t R@1", "t2i R@1", "mean recall", "95 % interval", "chance"]
    lines = [table_row(head), table_rule(len(head))]
    for name, result in results.items():
        shown = [f"{result.metrics[metric]:.3f}" for metric in
                 ("image_to_text_recall@1", "text_to_image_recall@1", "mean_recall")]  # fmt: skip
        ends = result.intervals.get("mean_recall")
        interval = "n/a" if ends is None else "[{:.3f}, {:.3f}]".format(*ends)
        chance = f"{result.chance['mean_recall']:.3f}"
        lines.append(table_row([name, result.num_queries["image_to_text"], *shown, interval, chance]))
    return "\n".join(lines)


def rows_of_sources(cache: "EmbeddingCache") -> dict[str, dict[str, dict[str, int]]]:
    """Of each source its rows and its known patients, by split; empty of one source."""
    found = {}
    for name in cache.sources:
        source = cache.source(name)
        parts = {split: source.split(split) for split in source.splits}
        patients = {split: len(set(part.pairs["patient_id"][:]) - {None}) for split, part in parts.items()}
        found[name] = {"rows": source.splits, "patients": patients}
    return found


def sources_of_card(
    cache: "EmbeddingCache",
    views: dict[str, "EmbeddingCache"],
    arguments: AdaptorTrainingArguments,
    results: dict[str, RetrievalResult],
) -> list[dict[str, Any]]:
    """Of each of several sources what a card says: a public data set by name, others by number."""
    names = cache.source_names
    if not names:
        return []
    counts = rows_of_sources(cache)
    trained = views["train"].sources
    given = arguments.dataset_weights or [trained.get(name, 0) for name in names]
    found = []
    for number, (name, weight) in enumerate(zip(names, given, strict=True), 1):
        result = results.get(name)
        found.append(
            {
                "name": public_label(name, number),
                "pairs": {part: view.sources.get(name, 0) for part, view in views.items()},
                "patients": sum(counts.get(name, {}).get("patients", {}).values()),
                "share": weight / math.fsum(given),
                "mean_recall": None if result is None else result.metrics["mean_recall"],
                "interval": None if result is None else result.intervals.get("mean_recall"),
                "terms": describe_terms(name),
            }
        )
    return found


def last_words(
    folder: str,
    cache: "EmbeddingCache",
    *,
    built: bool,
    address: str | None = None,
    more: Mapping[str, str] | None = None,
    kept: str | None = None,
    towers: TrainedTowers | None = None,
) -> str:
    """
    Which epoch a run has kept, and where it has left what others can go on from: its model, its curves, and the
    embeddings it has built.

    Args:
        folder (`str`): Output folder.
        cache (`EmbeddingCache`): That was trained on.
        built (`bool`): By this run, and so of use to another one.
        address (`str`, *optional*): Where the model was pushed to.
        more (`Mapping`, *optional*): Options by name that the next run on these embeddings needs.
        kept (`str`, *optional*): A line on the epoch, from `describe_kept`.
        towers (`TrainedTowers`, *optional*): Of a run whose towers trained.
    """
    lines = [*([kept] if kept else []), f"Model: {folder}"]
    if towers is not None:
        lines += trained_tower_lines(towers.trainable, folder)
    if address:
        lines.append(f"Pushed: {address}")
    if (Path(folder) / CURVES_FILE).is_file():
        lines.append(f"Curves: {Path(folder) / CURVES_FILE}")
    if built and is_private():
        lines.append(
            "Embeddings: in --cache_dir, by default private-embeddings beside --output_dir. Another run with "
            "--private and the same key takes them with --cache, instead of the table and the towers."
        )
    elif built:
        of = "" if towers is None else " (by the towers as they were before this run)"
        lines += [f"Embeddings: {cache.path}{of}", next_run(cache.path, f"{folder}-2", more)]
    return "\n".join(lines)


def write_retrieval(
    folder: str,
    result: RetrievalResult,
    split: str,
    controls: Sequence[RetrievalResult] = (),
    sources: Mapping[str, RetrievalResult] | None = None,
) -> Path:
    """`retrieval.json`: the unrounded numbers of the card and its controls, for `python -m adaptor_hf.verify`."""
    path = Path(folder) / RETRIEVAL_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {"split": split} | asdict(result)
    if controls:
        written["controls"] = [asdict(control) for control in controls]
    if sources:
        written["sources"] = {name: asdict(one) for name, one in sources.items()}
    write_aside(path, json.dumps(written, indent=1) + "\n")
    return path


def card_arguments(arguments: AdaptorTrainingArguments, objective: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The arguments that a model card lists: those that determine the result, none that names a place."""
    names = (
        "learning_rate num_train_epochs max_steps global_batch_size world_size weight_decay warmup_steps "
        "lr_scheduler_type max_grad_norm positives optim fp16 bf16 seed gradient_accumulation_steps"
    )
    values = {name: getattr(arguments, name) for name in names.split()}
    if arguments.dataset_weights is not None or arguments.source_batches != "mixed":
        values |= {name: getattr(arguments, name) for name in ("dataset_weights", "source_batches")}
    if objective is not None and "positives" not in objective["options"]:
        del values["positives"]
    listed = {name: str(value.value if isinstance(value, Enum) else value) for name, value in values.items()}
    named = {"objective": objective["name"] if objective else "adaptor"}
    options = {} if objective is None else _card_options(objective["options"])
    if options.get("objective.positives") == listed.get("positives"):
        options.pop("objective.positives", None)  # its row is there
    return named | options | listed


def _card_options(options: Mapping[str, Any]) -> dict[str, str]:
    """Options of an objective for a card: no place, and in private mode no words at all."""
    plain = {name: value for name, value in options.items() if isinstance(value, int | float | None)}
    if not is_private():
        plain = {name: value for name, value in options.items() if _is_word(str(value))}
    return {f"objective.{name}": str(value) for name, value in plain.items()}


def _is_word(text: str) -> bool:
    return text.isprintable() and not {"/", "\\"} & set(text)


def package_versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {name: version(name) for name in ("adaptor-hf", "torch", "transformers", "datasets", "accelerate", "timm")}


def processor_of(config: AdaptorConfig) -> AdaptorProcessor | None:
    """
    The towers' image processor and tokenizer in one, without the towers' weights; `None` for ready embeddings, and,
    with a warning, where the tokenizer is not on this machine.
    """
    if any(spec is None or spec["library"] == "external" for spec in (config.vision_tower, config.text_tower)):
        return None
    try:
        tokenizer = load_text_processor(config.text_tower)
    except OSError as error:
        logger.warning(f"The checkpoint gets no processor, training goes on: {error}")
        return None
    # The reading stated, also where the spec is of a version that stated none.
    spec = Reading.of_spec(config.vision_tower).in_spec(config.vision_tower)
    return AdaptorProcessor(processor_of_tower(spec), tokenizer)


__all__ = ["card_arguments", "last_words", "package_versions", "processor_of", "report_run", "rows_of_sources"]
