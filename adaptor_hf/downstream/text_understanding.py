"""
Does the text side read? Reports are changed in one word that turns their meaning (no effusion - effusion, left - right,
small - large), and we look whether the embedding, and the score of the report's own image, notice it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..towers_adaptor import TextTower
from .zero_shot import tower_text_features

if TYPE_CHECKING:
    from .modules import Module

RESULT_FILE = "text_understanding.json"

_FINDINGS = (
    "effusions?|pleural fluid|pneumothora(?:x|ces)|consolidations?|opacit(?:y|ies)|airspace disease|pneumonia|ed?ema|"
    "oedema|atelectasis|cardiomegaly|nodules?|mass(?:es)?|fractures?"
)
_DENIED = re.compile(rf"\bno\b(?: evidence of| sign of| definite)?((?: \w+){{0,3}}? (?:{_FINDINGS}))\b", re.IGNORECASE)
_STATED = re.compile(rf"\b(there (?:is|are)|with) (?!no\b)((?:\w+ ){{0,4}}?(?:{_FINDINGS}))\b", re.IGNORECASE)
_SIDES = {"left": "right", "right": "left"}
_SIZES = {
    "small": "large", "large": "small", "mild": "severe", "severe": "mild", "mildly": "severely", "severely": "mildly",
    "tiny": "large", "minimal": "extensive", "extensive": "minimal", "trace": "massive", "massive": "trace",
}  # fmt: skip


def swap_negation(text: str) -> str | None:
    """The first denied finding becomes a stated one, else the first stated one a denied one; None without either."""
    changed, count = _DENIED.subn(lambda found: found.group(1).strip(), text, count=1)
    if not count:
        changed, count = _STATED.subn(lambda found: f"{found.group(1)} no {_bare(found.group(2))}", text, count=1)
    return changed if count else None


def swap_laterality(text: str) -> str | None:
    """Every left becomes right and the other way round; None without a side, or where swapping changes nothing."""
    return _swap_words(text, _SIDES)


def swap_severity(text: str) -> str | None:
    """Small becomes large, mild severe, and so on; None without such a word."""
    return _swap_words(text, _SIZES)


SWAPS: dict[str, Callable[[str], str | None]] = {
    "negation": swap_negation,
    "laterality": swap_laterality,
    "severity": swap_severity,
}


def _bare(phrase: str) -> str:
    """Without the article, which "no" replaces."""
    return re.sub(r"^(?:an?|the) ", "", phrase, flags=re.IGNORECASE)


def _swap_words(text: str, words: dict[str, str]) -> str | None:
    def other(found: re.Match) -> str:
        word = found.group()
        swapped = words[word.lower()]
        return swapped.capitalize() if word[0].isupper() else swapped

    changed = re.sub(rf"\b(?:{'|'.join(words)})\b", other, text, flags=re.IGNORECASE)
    return None if changed == text else changed


@dataclass
class SwapResult:
    """
    One kind of swap, one system.

    Args:
        swap, system (`str`): What was changed; whose embeddings.
        num_texts, num_pairs (`int`): Different reports that could be changed; images with such a report.
        text_cosine (`float`): Mean cosine between a report and its changed form: 1 means the change is not seen.
        other_cosine (`float`): Mean cosine between different reports, to compare that with.
        checkpoint (`str`): Name and digest of the model's weights.
        accuracy (`float`), ci_lo, ci_hi (`float`): Share of images whose own report scores above its changed form,
            with its interval over patients. Chance is 0.5; ties count as errors. NaN for a text tower alone.
    """

    swap: str
    system: str
    num_texts: int
    num_pairs: int
    text_cosine: float
    other_cosine: float
    accuracy: float = float("nan")
    ci_lo: float = float("nan")
    ci_hi: float = float("nan")
    checkpoint: str = ""


def run_text_understanding(
    texts: Sequence[str],
    patients: Sequence[Any],
    image_embeds: torch.Tensor,
    modules: Sequence[Module],
    text_tower: TextTower,
    output_dir: str | os.PathLike,
    *,
    dataset: str,
    num_resamples: int = 1000,
) -> list[SwapResult]:
    """
    Every swap for the text tower alone (before the Adaptor) and for each module with a model (after it).

    Args:
        texts (`Sequence[str]` of length N), patients (`Sequence`): Report and patient of each image.
        image_embeds (`torch.Tensor` of shape `(N, D)`): Of the vision tower.
        modules (`Sequence[Module]`): Others than those with a model are left out.
        text_tower (`TextTower`): The Adaptor's.
        output_dir (`str` or `PathLike`): For `text_understanding.json`, which holds numbers and no report.
        dataset (`str`): For the file.
        num_resamples (`int`, defaults to 1000): Of the bootstrap over patients.
    """
    from ..evaluation.naming import checkpoint_label

    codes = np.unique([str(patient) for patient in patients], return_inverse=True)[1]
    images = {module.key: module.features(image_embeds) for module in modules if module.model is not None}
    found = []
    for swap, change in SWAPS.items():
        changed = {text: other for text in dict.fromkeys(texts) if (other := change(text)) is not None}
        rows = np.array([row for row, text in enumerate(texts) if text in changed], dtype=np.int64)
        if not changed:
            continue
        place = {text: number for number, text in enumerate(changed)}
        of_row = np.array([place[texts[row]] for row in rows])
        both = [*changed, *changed.values()]
        pooled = tower_text_features(text_tower, both)
        raw = torch.nn.functional.normalize(pooled.float().cpu(), dim=1)
        found.append(SwapResult(swap, "text tower alone", len(changed), len(rows), *_cosines(raw)))
        for module in (module for module in modules if module.model is not None):
            embeds = adapted_texts(module.model, pooled)
            before, after = embeds.chunk(2)
            image = images[module.key][rows]
            hits = ((image * before[of_row]).sum(1) > (image * after[of_row]).sum(1)).double().numpy()
            interval = _interval(hits, codes[rows], num_resamples)
            fields = module.fields()
            own = checkpoint_label(fields)
            counts = len(changed), len(rows)
            result = SwapResult(swap, fields["system"], *counts, *_cosines(embeds), hits.mean(), *interval, own)
            found.append(result)
    path = Path(output_dir) / RESULT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [{name: None if value != value else value for name, value in vars(result).items()} for result in found]
    plain = [*_other_results(path, dataset, plain), *plain]
    path.write_text(json.dumps({"dataset": dataset, "results": plain}, indent=1) + "\n", encoding="utf-8")
    return found


def _other_results(path: Path, dataset: str, new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a file holds of other checkpoints on the same data set; a damaged file holds nothing."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        replaced = {(one["swap"], one["system"], one["checkpoint"]) for one in new}
        kept = [one for one in known["results"] if (one["swap"], one["system"], one.get("checkpoint")) not in replaced]
        return kept if known["dataset"] == dataset else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


@torch.no_grad()
def adapted_texts(model: Any, pooled: torch.Tensor) -> torch.Tensor:
    """`(n, hidden_size)` float32 on the CPU, L2-normalised, from a text tower's `(n, E)`."""
    return model.get_text_features(text_embeds=pooled.to(model.device, model.dtype)).pooler_output.float().cpu()


def _cosines(embeds: torch.Tensor) -> tuple[float, float]:
    """Mean cosine of a text to its changed form, and between different unchanged texts."""
    before, after = embeds.double().chunk(2)
    count = len(before)
    pairs = (before @ before.T).sum() - (before * before).sum()
    other = float(pairs / (count * (count - 1))) if count > 1 else float("nan")
    return float((before * after).sum(1).mean()), other


def _interval(hits: np.ndarray, patients: np.ndarray, num_resamples: int) -> tuple[float, float]:
    from ..evaluation import bootstrap_interval

    return bootstrap_interval(hits, patients, num_resamples=num_resamples)


def swap_table(results: Sequence[SwapResult]) -> str:
    """Markdown of all results."""
    if not results:
        return "No report has a finding denied or stated, a side or a size: nothing to swap."
    lines = ["| swap | system | reports | images | cosine to the changed report | to other reports | own report wins |"]
    lines.append("|" + "---|" * 7)
    for result in results:
        wins = "" if np.isnan(result.accuracy) else f"{result.accuracy:.3f} [{result.ci_lo:.3f}, {result.ci_hi:.3f}]"
        system = ", ".join(part for part in (result.system, result.checkpoint) if part)
        cells = [result.swap, system, result.num_texts, result.num_pairs, f"{result.text_cosine:.3f}",
                 f"{result.other_cosine:.3f}", wins]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", "Chance is 0.5."])


__all__ = [
    "SWAPS",
    "SwapResult",
    "run_text_understanding",
    "swap_laterality",
    "swap_negation",
    "swap_severity",
    "swap_table",
]
