"""Which towers and which system? All runs of a folder on one test set, compared in pairs, and one page that says it."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.baselines import LEGEND, MARK, above_baseline, baseline_rows, lower_is_better
from ..evaluation.controls import may_be_recommended, simplicity_of
from ..evaluation.naming import CHOSEN_ON_TEST, CHOSEN_ON_TEST_NOTE, VALUES, checkpoint_label, rows_in_words, units
from ..evaluation.overlap import overlap_cell, overlap_sentences
from ..evaluation.tables import ROW_FIELDS
from ..evaluation.tasks import TASKS
from ..file_records import rewriting
from ..files import read_json, write_aside
from ..folder_lock import only_writer
from ..markdown import plain, sentence, table_row, table_rule

logger = logging.getLogger(__name__)

PAGE = "comparison.md"
COSTS_FILE = "costs.json"
ALPHA = 0.05
TARGETS = ROW_FIELDS.index("targets_hash")
MAX_RESAMPLES = 20_000


@dataclass
class Candidate:
    """
    One combination of towers and system, with its runs over seeds.

    Args:
        name (`str`): Towers and system.
        folders (`list[Path]`): Of its runs, one a seed.
        values (`list[float]`): The metric of each.
        ci_lo, ci_hi (`float`): Mean of the runs' intervals over patients.
        line (`dict`): A result line, for parameters and provenance.
    """

    name: str
    folders: list[Path]
    values: list[float]
    ci_lo: float
    ci_hi: float
    line: Mapping[str, Any]

    @property
    def value(self) -> float:
        return float(np.mean(self.values))

    @property
    def trained(self) -> int:
        """Parameters that this data set trained."""
        return int(self.line.get("trainable_params") or 0)


def candidates(lines: Sequence[Mapping[str, Any]], metric: str, fraction: float | None) -> list[Candidate]:
    """Kinds of run (they differ in the seed alone) at one fraction, on the own test set; best value first."""
    groups: dict[tuple, list] = {}
    for line in lines:
        if line["metric"] == metric and line["fraction"] == fraction and line["test_set"] is None:
            groups.setdefault(tuple(line.get(key) for key in ROW_FIELDS), []).append(line)
    plain = Counter(_name(members[0]) for members in groups.values())
    found = []
    for members in groups.values():
        members = sorted(members, key=lambda line: line["seed"])
        low, high = (float(np.mean([line[end] for line in members])) for end in ("ci_lo", "ci_hi"))
        line = max(members, key=lambda line: line.get("selected_on") == "test")
        more = [line["recipe"], f"{line['input_size']} px" if line["input_size"] else None]
        more += [_target(line)] * (len({key[TARGETS] for key in groups}) > 1)
        name = ", ".join([_name(line), *(str(part) for part in more if part and plain[_name(line)] > 1)])
        name += f", {CHOSEN_ON_TEST}" if line.get("selected_on") == "test" else ""
        values = [line["value"] for line in members]
        found.append(Candidate(name, [Path(line["folder"]) for line in members], values, low, high, line))
    sign = 1 if lower_is_better(metric) else -1
    return sorted((one for one in found if not np.isnan(one.values).any()), key=lambda one: sign * one.value)


def _target(line: Mapping[str, Any]) -> str:
    named = [line.get("positive_class"), f"targets {str(line.get('targets_hash') or 'unknown')[:8]}"]
    return ", ".join(part for part in named if part)


def _name(line: Mapping[str, Any]) -> str:
    towers = " + ".join(name for name in (line["vision_tower"], line["text_tower"]) if name)
    checkpoint = checkpoint_label(line)
    return f"{line['system']} on {towers}, {line['protocol']}" + (f" ({checkpoint})" if checkpoint else "")


def compare_pairs(found: Sequence[Candidate], metric: str, num_resamples: int = 2000) -> list[tuple[int, int, Any]]:
    """
    Every pair of candidates with its difference over patients and seeds, p-values adjusted by Holm's rule. With many
    pairs there are more resamples, up to 20,000: the smallest p-value is 2 / (resamples + 1) times the number of pairs.
    """
    from ..evaluation import holm, load_predictions
    from ..evaluation.compare import compare_all

    loaded = [[load_predictions(folder) for folder in one.folders] for one in found]
    number = len(found) * (len(found) - 1) // 2
    num_resamples = max(num_resamples, min(80 * number, MAX_RESAMPLES))
    pairs = [(*pair, one) for pair, one in compare_all(loaded, metric, num_resamples=num_resamples).items()]
    possible = [pair for pair in pairs if not np.isnan(pair[2].p_value)]
    for (*_, difference), adjusted in zip(possible, holm([pair[2].p_value for pair in possible]), strict=True):
        difference.p_value = float(adjusted)
    return pairs


def finding(difference: Any, number: int, line: Mapping[str, Any]) -> str:
    """
    One comparison in a sentence: which is better, or what difference could have been seen.

    Args:
        difference (`Difference`): With its p-value adjusted.
        number (`int`): Of comparisons: a difference has to pass the first step of Holm's rule, 0.05 / number.
        line (`Mapping`): A result line, for the number of patients.
    """
    if difference.p_value < ALPHA:
        return f"the {'first' if difference.value > 0 else 'second'} has the higher value"
    beside = " by Holm's rule" if number > 1 and not difference.ci_lo <= 0 <= difference.ci_hi else ""
    said = f"not shown to differ{beside}: {_interval(difference)}"
    if np.isnan(difference.standard_error):
        return said
    if difference.standard_error == 0:
        return f"{said}; the same value on every resample"
    count, drawn = units(line)
    least = f"{difference.detectable(alpha=ALPHA / number):.2g}"
    return f"{said}; a difference under about {least} could not have been seen with {count} {drawn}"


def _interval(difference: Any) -> str:
    if np.isnan(difference.ci_lo):
        return f"{difference.value:+.3f} (no interval)"
    return f"{difference.value:+.3f} [{difference.ci_lo:+.3f}, {difference.ci_hi:+.3f}]"


def recommend(found: Sequence[Candidate], pairs: Sequence[tuple[int, int, Any]]) -> str:
    """
    One paragraph: the best candidate if it is better than every other, else the simplest of those that the test rows
    cannot tell from the best, and what difference they could have shown. Untrained and shuffled Adaptors are controls,
    and what was chosen on the test split proves nothing: they are compared, and never recommended.
    """
    if len(found) < 2:
        return "There is one candidate: nothing to compare."
    equal = [0] + [second for first, second, difference in pairs if first == 0 and not difference.p_value < ALPHA]
    real = [found[number] for number in equal if _may_be_taken(found[number])]
    if len(equal) == 1 and real:
        return f"**Take {plain(found[0].name)}**: better than each of the other {len(found) - 1} (adjusted p < 0.05)."
    if not real:
        why = "was chosen on the test split" if may_be_recommended(found[0].line["module"]) else "is a control"
        return (
            f"**Nothing to recommend**: {plain(found[0].name)} {why}, and better than all that is none. Look for a "
            "fault in the pre-training, or in this evaluation."
        )
    others = len(found) - len(equal)
    beaten = f" {others} other{'s are' if others > 1 else ' is'} worse." if others else ""
    # Of equal ones the first, which has the best value.
    simplest = min(real, key=lambda one: (simplicity_of(one.line["module"]), one.trained))
    of_best = [
        one.detectable(alpha=ALPHA / len(pairs)) for first, second, one in pairs if first == 0 and second in equal
    ]
    seen = [f"{value:.2g}" for value in (min(of_best), max(of_best)) if value > 0]
    count, drawn = units(found[0].line)
    power = (
        f" A difference to the best under about {' to '.join(dict.fromkeys(seen))} could not have been seen with "
        f"{count} {drawn}: smaller ones are not ruled out."
        if seen
        else ""
    )
    return (
        f"**No difference** shown between {len(equal)} of {len(found)} candidates on these test rows:"
        f" {'; '.join(plain(found[number].name) for number in equal)}.{beaten}{power} Take the simplest of them: "
        f"{plain(simplest.name)}."
    )


def _may_be_taken(candidate: Candidate) -> bool:
    return may_be_recommended(candidate.line["module"]) and candidate.line.get("selected_on") != "test"


def write_comparison(
    output_dir: str | os.PathLike,
    *,
    task: str = "classification",
    dataset: str | None = None,
    metric: str | None = None,
    fraction: float | None = 1.0,
    costs: Mapping[str, Mapping[str, Any]] | None = None,
    num_resamples: int = 2000,
) -> str:
    """
    Compare the finished runs of a folder and write `comparison.md`.

    Args:
        output_dir (`str` or `PathLike`): Holds `runs`.
        task (`str`), dataset (`str`, *optional*), fraction (`float`, *optional*): Which runs. The data set may be left
            out where there is one alone.
        metric (`str`, *optional*): By which number.
        costs (`Mapping`, *optional*): By vision tower: `license`, `gigabytes` (of the embeddings of 100,000 images) and
            `minutes` (of embedding and training here); by the digest of a checkpoint, its own `minutes`. By default
            what `remember_costs` kept in the folder.
        num_resamples (`int`, defaults to 2000): Of the paired bootstrap.

    Returns:
        `str`: The page.

    Raises:
        ValueError: a task that is not compared, no such run, or runs on different test rows.
    """
    from ..evaluation.results import read_sound_results

    metric = metric or metric_of_task(task)
    root = Path(output_dir) / "runs"
    results = read_sound_results(root)
    lines = [line for line in results.lines if line["task"] == task and dataset in (None, line["dataset"])]
    if len(splits := {(line["dataset"], line["split_hash"]) for line in lines if line["test_set"] is None}) > 1:
        named = ", ".join(f"{name} (split {split})" for name, split in sorted(splits))
        raise ValueError(
            f"{output_dir} holds runs on several data sets or splits: {named}. Name one with --dataset; runs on other "
            "splits belong in a folder of their own."
        )
    targets = {line.get("targets_hash"): line for line in lines if line["test_set"] is None}
    if len(targets.keys() - {None}) > 1:
        named = ", ".join(sorted(_target(line) for line in targets.values()))
        raise ValueError(
            f"{output_dir} holds {task} runs that predict different things ({named}): other labels, classes or cells "
            "of the table. Runs on each belong in a folder of their own (--output_dir)."
        )
    found = candidates(lines, metric, fraction)
    if not found:
        shares = sorted({line["fraction"] for line in lines if line["fraction"] is not None})
        raise ValueError(f"No finished {task} run with {metric} at fraction {fraction}; fractions: {shares}.")
    pairs = compare_pairs(found, metric, num_resamples)
    costs = read_costs(output_dir) if costs is None else costs
    page = _page(
        found, pairs, metric, task, fraction, costs, [fault.replace(f"{root}{os.sep}", "") for fault in results.faults]
    )
    with rewriting(Path(output_dir) / PAGE, whole=True):
        write_aside(Path(output_dir) / PAGE, page)
    return page


def metric_of_task(task: str) -> str:
    """
    What runs of a task are compared by.

    Raises:
        ValueError: no such task, or one that is not compared.
    """
    if task not in compared_tasks():
        raise ValueError(f"Runs of {task!r} are not compared; those of {', '.join(compared_tasks())} are.")
    return TASKS[task].decides_by


def compared_tasks() -> list[str]:
    """Tasks whose declarations name the metric that their runs are compared by."""
    return [name for name, declared in TASKS.items() if declared.decides_by]


def remember_costs(output_dir: str | os.PathLike, costs: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Keep what models cost, by vision tower and by the digest of a checkpoint, for a later comparison. Of minutes the
    longest counts: a command that was run again found its embeddings and runs there.
    """
    # Jobs beside each other in one folder all keep theirs.
    with only_writer(output_dir, "costs", what="process", strict=False, timeout=60):
        known = read_costs(output_dir)
        for tower, cost in costs.items():
            known[tower] = {**cost, "minutes": max(cost["minutes"], known.get(tower, {}).get("minutes", 0.0))}
        write_aside(Path(output_dir) / COSTS_FILE, json.dumps(known, indent=1) + "\n")


def read_costs(output_dir: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """What `remember_costs` kept; nothing where there is no such file, or a damaged one."""
    path = Path(output_dir) / COSTS_FILE
    try:
        return read_json(path) if path.is_file() else {}
    except ValueError:
        logger.warning("%s is damaged: costs are unknown.", path)
        return {}


def _page(found, pairs, metric, task, fraction, costs, faults) -> str:
    line = found[0].line
    share = "" if fraction is None else f" at {100 * fraction:g} % of the training rows"
    parts = [f"# {plain(f'{metric} of {task} on ' + line['dataset'])}{share}", recommend(found, pairs)]
    if str(line["dataset"]).startswith("phantom"):
        parts.append("These are phantoms: the page shows that the machinery works, and says nothing about patients.")
    head = [
        metric,
        "seeds",
        "trained here",
        "tower saw the data",
        "pre-training saw",
        "licence",
        "GB of 100,000 images",
        "minutes",
    ]
    table = [table_row(["candidate", *head]), table_rule(len(head) + 1)]
    for one in found:
        spread = f" ± {np.std(one.values, ddof=1):.3f}" if len(one.values) > 1 else ""
        cost = costs.get(one.line["vision_tower"], {}) | costs.get(str(one.line.get("checkpoint")), {})
        mark = "" if above_baseline(metric, one.ci_lo, one.ci_hi, one.line["trivial_baseline"]) else f" {MARK}"
        cells = [one.name, f"{one.value:.3f}{spread} [{one.ci_lo:.3f}, {one.ci_hi:.3f}]{mark}", len(one.values)]
        cells += [
            f"{one.trained:,}",
            one.line["tower_saw_dataset"],
            overlap_cell(one.line),
            cost.get("license") or "unknown",
        ]
        cells += [f"{cost[name]:.2f}" if name in cost else "" for name in ("gigabytes", "minutes")]
        table.append(table_row(cells))
    for label, _, (value,) in baseline_rows([one.line for one in found], [metric]):
        table.append(table_row([label, value, *[""] * (len(head) - 1)]))
    parts += ["\n".join(table), LEGEND, *map(sentence, overlap_sentences(one.line for one in found))]
    rows = [table_row(["first", "second", "first - second", "adjusted p", "finding"]), table_rule(5)]
    for first, second, difference in pairs:
        cells = [_interval(difference), f"{difference.p_value:.3g}", finding(difference, len(pairs), line)]
        rows.append(table_row([found[first].name, found[second].name, *cells]))
    parts.append(VALUES)
    if any(one.line.get("selected_on") == "test" for one in found):
        parts.append(CHOSEN_ON_TEST_NOTE)
    if pairs:
        parts.append("\n".join(rows))
        parts.append(
            f"Differences: {pairs[0][2].method}, 95 % intervals; p-values by Holm's rule over all {len(pairs)} pairs; "
            f"tested on {rows_in_words(line)}. What could not have been seen: a true difference that a test at 0.05 / "
            f"{len(pairs)} (the first step of Holm's rule) would find with less than 80 % probability, by the standard "
            "error of the paired bootstrap. The choice rests on these test rows: confirm it on others."
        )
        if 2 * len(pairs) / (MAX_RESAMPLES + 1) >= ALPHA:
            parts.append(f"{len(pairs)} pairs are too many for {MAX_RESAMPLES} resamples: no difference can be shown. "
                         "Compare fewer candidates.")  # fmt: skip
    parts += [f"Not used: {sentence(fault)}" for fault in faults]
    return "\n\n".join(parts) + "\n"


def _counted(line: Mapping[str, Any]) -> str:
    if line.get("n_patients") is None:
        return f"{line['n_test']} images (no patient is known)"
    return f"{line['n_patients']} patients ({line['n_test']} images)"


__all__ = [
    "Candidate",
    "candidates",
    "compare_pairs",
    "compared_tasks",
    "metric_of_task",
    "read_costs",
    "recommend",
    "remember_costs",
    "write_comparison",
]
