"""Which towers and which module? All runs of a folder on one test set, compared in pairs, and one page that says it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

PAGE = "comparison.md"
COSTS_FILE = "costs.json"
METRIC = {
    "classification": "auroc",
    "few_shot": "auroc",
    "zero_shot": "auroc",
    "retrieval": "mean_recall",
    "segmentation": "dice_pooled",
}
"""What each task is compared by."""

CONTROLS = ("untrained", "shuffled")
SIMPLEST_FIRST = ("tower", "projections", "mlp", "adaptor", "lora", "finetune")


@dataclass
class Candidate:
    """
    One combination of towers and module, with its runs over seeds.

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
    """Combinations of towers, module, protocol and recipe at one fraction, on the own test set; best value first."""
    groups: dict[tuple, list] = {}
    for line in lines:
        if line["metric"] == metric and line["fraction"] == fraction and line["test_set"] is None:
            keys = ("vision_tower", "text_tower", "system", "checkpoint", "protocol", "recipe")
            groups.setdefault(tuple(line[key] for key in keys), []).append(line)
    found = []
    for (vision, text, system, *_), members in groups.items():
        members = sorted(members, key=lambda line: line["seed"])
        towers = " + ".join(name for name in (vision, text) if name)
        low, high = (float(np.mean([line[end] for line in members])) for end in ("ci_lo", "ci_hi"))
        name = f"{system} on {towers}, {members[0]['protocol']}"
        values = [line["value"] for line in members]
        found.append(Candidate(name, [Path(line["folder"]) for line in members], values, low, high, members[0]))
    return sorted((one for one in found if not np.isnan(one.values).any()), key=lambda one: -one.value)


def compare_pairs(found: Sequence[Candidate], metric: str, num_resamples: int = 2000) -> list[tuple[int, int, Any]]:
    """Every pair of candidates with its difference over patients and seeds, p-values adjusted by Holm's rule."""
    from ..evaluation import holm, load_predictions
    from ..evaluation.compare import compare_predictions

    loaded = [[load_predictions(folder) for folder in one.folders] for one in found]
    pairs = [
        (first, second, compare_predictions(loaded[first], loaded[second], metric, num_resamples=num_resamples))
        for first in range(len(found))
        for second in range(first + 1, len(found))
    ]
    possible = [pair for pair in pairs if not np.isnan(pair[2].p_value)]
    for (*_, difference), adjusted in zip(possible, holm([pair[2].p_value for pair in possible]), strict=True):
        difference.p_value = float(adjusted)
    return pairs


def recommend(found: Sequence[Candidate], pairs: Sequence[tuple[int, int, Any]]) -> str:
    """
    One paragraph: the best candidate if it is better than every other, else the simplest of those that the test rows
    cannot tell from the best. Untrained and shuffled Adaptors are controls: they are compared, and never recommended.
    """
    if len(found) < 2:
        return "There is one candidate: nothing to compare."
    equal = [0] + [second for first, second, difference in pairs if first == 0 and not difference.p_value < 0.05]
    real = [found[number] for number in equal if found[number].line["module"] not in CONTROLS]
    if len(equal) == 1 and real:
        return f"**Take {found[0].name}**: better than each of the other {len(found) - 1} (adjusted p < 0.05)."
    if not real:
        return (
            f"**Nothing to recommend**: {found[0].name} is a control, and better than all that is none. Look for a "
            "fault in the pre-training, or in this evaluation."
        )
    others = len(found) - len(equal)
    beaten = f" {others} other{'s are' if others > 1 else ' is'} worse." if others else ""
    simplest = min(real, key=lambda one: (_simplicity(one), one.trained, -one.value))
    return (
        f"**No difference** between {len(equal)} of {len(found)} candidates on these test rows:"
        f" {'; '.join(found[number].name for number in equal)}.{beaten} Take the simplest of them: {simplest.name}."
    )


def _simplicity(candidate: Candidate) -> int:
    """Place among the modules, the simplest first; what is not known comes last."""
    module = candidate.line["module"]
    return SIMPLEST_FIRST.index(module) if module in SIMPLEST_FIRST else len(SIMPLEST_FIRST)


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
            `minutes` (of embedding and training here). By default what `remember_costs` kept in the folder.
        num_resamples (`int`, defaults to 2000): Of the paired bootstrap.

    Returns:
        `str`: The page.

    Raises:
        ValueError: no such run, or runs on different test rows.
    """
    from ..evaluation import read_results

    metric = metric or METRIC[task]
    results = read_results(Path(output_dir) / "runs")
    lines = [line for line in results.lines if line["task"] == task and dataset in (None, line["dataset"])]
    if len(splits := {(line["dataset"], line["split_hash"]) for line in lines if line["test_set"] is None}) > 1:
        named = ", ".join(f"{name} (split {split})" for name, split in sorted(splits))
        raise ValueError(
            f"{output_dir} holds runs on several data sets or splits: {named}. Name one with --dataset; runs on other "
            "splits belong in a folder of their own."
        )
    found = candidates(lines, metric, fraction)
    if not found:
        shares = sorted({line["fraction"] for line in lines if line["fraction"] is not None})
        raise ValueError(f"No finished {task} run with {metric} at fraction {fraction}; fractions: {shares}.")
    pairs = compare_pairs(found, metric, num_resamples)
    costs = read_costs(output_dir) if costs is None else costs
    page = _page(found, pairs, metric, task, fraction, costs, results.faults)
    (Path(output_dir) / PAGE).write_text(page, encoding="utf-8")
    return page


def remember_costs(output_dir: str | os.PathLike, costs: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Keep what models cost, by vision tower, for a later comparison. Of minutes the longest counts: a command that was
    run again found its embeddings and runs there.
    """
    known = read_costs(output_dir)
    for tower, cost in costs.items():
        known[tower] = {**cost, "minutes": max(cost["minutes"], known.get(tower, {}).get("minutes", 0.0))}
    path = Path(output_dir) / COSTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


def read_costs(output_dir: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """What `remember_costs` kept; nothing where there is no such file, or a damaged one."""
    path = Path(output_dir) / COSTS_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        logger.warning("%s is damaged: costs are unknown.", path)
        return {}


def _page(found, pairs, metric, task, fraction, costs, faults) -> str:
    line = found[0].line
    share = "" if fraction is None else f" at {100 * fraction:g} % of the training rows"
    parts = [f"# {metric} of {task} on {line['dataset']}{share}", recommend(found, pairs)]
    if str(line["dataset"]).startswith("phantom"):
        parts.append("These are phantoms: the page shows that the machinery works, and says nothing about patients.")
    head = [metric, "seeds", "trained here", "tower saw the data", "licence", "GB of 100,000 images", "minutes"]
    table = ["| candidate | " + " | ".join(head) + " |", "|" + "---|" * (len(head) + 1)]
    for one in found:
        spread = f" ± {np.std(one.values, ddof=1):.3f}" if len(one.values) > 1 else ""
        cost = costs.get(one.line["vision_tower"], {})
        cells = [one.name, f"{one.value:.3f}{spread} [{one.ci_lo:.3f}, {one.ci_hi:.3f}]", len(one.values)]
        cells += [f"{one.trained:,}", one.line["tower_saw_dataset"], cost.get("license") or "unknown"]
        cells += [f"{cost[name]:.2f}" if name in cost else "" for name in ("gigabytes", "minutes")]
        table.append("| " + " | ".join(map(str, cells)) + " |")
    trivial = line["trivial_baseline"]
    table.append(f"| trivial baseline | {'' if np.isnan(trivial) else f'{trivial:.3f}'} |" + " |" * (len(head) - 1))
    parts.append("\n".join(table))
    rows = ["| first | second | first - second | adjusted p |", "|---|---|---|---|"]
    for first, second, difference in pairs:
        value = f"{difference.value:+.3f} [{difference.ci_lo:+.3f}, {difference.ci_hi:+.3f}]"
        rows.append(f"| {found[first].name} | {found[second].name} | {value} | {difference.p_value:.3g} |")
    if pairs:
        parts.append("\n".join(rows))
        parts.append(
            f"Differences: {pairs[0][2].method}, 95 % intervals; p-values by Holm's rule over all {len(pairs)} pairs. "
            f"Values: mean and standard deviation over seeds, mean interval over {_counted(line)}. "
            "The choice rests on these test rows: confirm it on others."
        )
    parts += [f"Not used: {fault}" for fault in faults]
    return "\n\n".join(parts) + "\n"


def _counted(line: Mapping[str, Any]) -> str:
    if line.get("n_patients") is None:
        return f"{line['n_test']} images (no patient is known)"
    return f"{line['n_patients']} patients ({line['n_test']} images)"


__all__ = [
    "METRIC",
    "Candidate",
    "candidates",
    "compare_pairs",
    "read_costs",
    "recommend",
    "remember_costs",
    "write_comparison",
]
