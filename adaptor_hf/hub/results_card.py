"""Results in a model card's metadata, as the Hub reads them."""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..evaluation.tables import Cell, aggregate
from ..evaluation.tasks import TASKS
from ..file_records import check_model, rewriting
from ..files import check_regular, written_aside


def card_results(cells: Iterable[Cell]) -> list:
    """
    `huggingface_hub.EvalResult` of each metric but those of single classes: value, interval, n, seeds, split, trivial
    baseline, and whether the tower saw the data.
    """
    from huggingface_hub import EvalResult

    found = []
    for cell in cells:
        if "/" in cell.metric or math.isnan(cell.value):
            continue
        dataset, fields = str(cell.fields.get("test_set") or cell.fields["dataset"]), cell.fields
        details = {"n": cell.n_test, "seeds": len(cell.values)}
        details |= {"interval_over": "images"} if cell.n_patients is None else {"patients": cell.n_patients}
        if not math.isnan(cell.ci_lo):
            details["interval_95"] = [round(cell.ci_lo, 4), round(cell.ci_hi, 4)]
        if not math.isnan(cell.trivial_baseline):
            details["trivial_baseline"] = round(cell.trivial_baseline, 4)
            details["trivial_name"] = cell.trivial_name or "trivial"
            details["above_trivial"] = cell.beats_trivial
        if not math.isnan(cell.seed_std):
            details["standard_deviation_over_seeds"] = round(cell.seed_std, 4)
        if fields.get("selected_on") == "test":
            details["selected_on"] = "test"
        if cell.run_notes:
            details["notes"] = cell.run_notes
        described = (
            "module", "protocol", "recipe", "fraction", "tower_saw_dataset", "pretraining_overlap", "seen_patients",
            "seen_images", "positive_class",
        )  # fmt: skip
        found.append(
            EvalResult(
                task_type=_hub_type(fields["task"]),
                dataset_type=dataset.lower().replace(" ", "-"),
                dataset_name=dataset,
                dataset_split="test",
                dataset_args={"split_hash": fields["split_hash"]}
                | {name: fields[name] for name in described if fields.get(name) is not None},
                metric_type=cell.metric,
                metric_value=round(cell.value, 4),
                metric_args=details,
            )
        )
    return found


def _hub_type(task: str) -> str:
    """What the Hub calls a task; of one that is not declared, its own name."""
    return (TASKS[task].hub_type if task in TASKS else None) or task


def add_to_card(model_dir: str | os.PathLike, lines: Iterable[Mapping[str, Any]]) -> Path:
    """
    Put results of a model into the metadata of its `README.md`; a result of the same name and settings is replaced.

    Args:
        model_dir (`str` or `PathLike`): Folder of the model, with its card.
        lines (`Iterable[Mapping]`): Result lines of this model alone, as of `read_results`.

    Raises:
        FileNotFoundError: the folder has no card.
    """
    from huggingface_hub import ModelCard

    path = Path(model_dir) / "README.md"
    if not path.is_file():
        raise FileNotFoundError(f"No model card at {path}. Training writes one.")
    card = ModelCard.load(check_regular(path))
    new = card_results(aggregate(lines))
    replaced = {_identity(result) for result in new}
    kept = [result for result in card.data.eval_results or [] if _identity(result) not in replaced]
    card.data.eval_results = kept + new
    if card.data.model_name is None:
        card.data.model_name = path.resolve().parent.name
    with rewriting(path), written_aside(path) as aside:
        card.save(aside)
    return path


def add_results_to_card(model_dir: str | os.PathLike, results: str | os.PathLike) -> tuple[Path, int]:
    """
    Put the results of one checkpoint, of those in a folder, into its card; those of controls stay where they are.

    Args:
        model_dir (`str` or `PathLike`): Folder of the checkpoint, with its card.
        results (`str` or `PathLike`): As of `read_results`.

    Returns:
        `tuple[Path, int]`: The card, and the number of its results that are new or replaced.

    Raises:
        FileNotFoundError: there is no card, no checkpoint or no result.
        ValueError: no result is of this checkpoint.
    """
    from ..evaluation.naming import weights_digest
    from ..evaluation.results import read_sound_results
    from ..modeling_adaptor import AdaptorModel

    check_model(model_dir)
    digest = weights_digest(AdaptorModel.from_pretrained(model_dir, load_towers=False))
    lines = read_sound_results(results).lines
    own = [line for line in lines if line.get("module") == "adaptor" and line.get("checkpoint") == digest]
    if not own:
        others = sorted({str(line.get("checkpoint")) for line in lines if line.get("module") == "adaptor"})
        raise ValueError(
            f"No result in {results} is of the checkpoint in {model_dir} (its weights have the digest {digest}; those "
            f"of results are {', '.join(others) or 'none'}). Evaluate it first, or name the folder that was evaluated."
        )
    return add_to_card(model_dir, own), len(card_results(aggregate(own)))


def _identity(result) -> tuple:
    settings = tuple(sorted((name, str(value)) for name, value in (result.dataset_args or {}).items()))
    return result.task_type, result.dataset_type, result.metric_type, settings


__all__ = ["add_results_to_card", "add_to_card", "card_results"]
