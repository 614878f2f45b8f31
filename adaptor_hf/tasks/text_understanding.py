"""
Does the text tower read? Reports are changed in one word that turns their meaning (no effusion - effusion, left -
right, small - large), and we look whether the embedding, and the score of the report's own image, notice it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..evaluation.aligners import system_name
from ..evaluation.baselines import MARK, above_baseline
from ..evaluation.overlap import overlap_sentences
from ..files import read_json, write_aside
from ..markdown import table_row, table_rule
from ..modeling_adaptor import AdaptorModel
from ..towers_adaptor import TextTower
from ..training.systems import System
from .arguments import DownstreamArguments
from .controls import systems_of
from .loading import load_adaptor, load_checkpoint_text_tower
from .overlap import overlap_fields
from .retrieval import load_test_pairs
from .zero_shot import tower_text_features

if TYPE_CHECKING:
    from ..data.training_rows import Seen

RESULT_FILE = "text_understanding.json"
# One set of random weights prefers one side of a swap by chance: measured, from .28 to .77 of the images.
NUM_UNTRAINED = 10
LEGEND = (
    "Own report wins: share of images whose own report scores above its changed form. An untrained Adaptor is no coin: "
    f"its random weights prefer one form. So {NUM_UNTRAINED} of them are the baseline: mean, and lowest to highest.\n\n"
    f"{MARK} Not above its best trivial baseline: the 95 % interval does not lie above the highest of the untrained "
    "Adaptors and of 0.5, or there is no interval."
)

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
            with its interval over patients; ties count as errors. NaN for a text tower alone.
        untrained (`list[float]`): The same share for untrained Adaptors; empty for a text tower alone.
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
    untrained: list[float] = field(default_factory=list)

    @property
    def baseline(self) -> float:
        """The best that an Adaptor that has learned nothing scores: the highest of `untrained` and of 0.5."""
        return max([0.5, *self.untrained]) if self.untrained else float("nan")

    @property
    def above_baseline(self) -> bool:
        """Whether the interval lies above `baseline`."""
        return above_baseline("accuracy", self.ci_lo, self.ci_hi, self.baseline)


def run_text_understanding(
    texts: Sequence[str],
    patients: Sequence[Any],
    image_embeds: torch.Tensor,
    systems: Sequence[System],
    text_tower: TextTower,
    output_dir: str | os.PathLike,
    *,
    dataset: str,
    seen: Mapping[str, Seen] | None = None,
    num_resamples: int = 1000,
) -> list[SwapResult]:
    """
    Every swap for the text tower alone (before the Adaptor) and for each system with a model (after it), beside
    untrained Adaptors, which are always made.

    Args:
        texts (`Sequence[str]` of length N), patients (`Sequence`): Report and patient of each image.
        image_embeds (`torch.Tensor` of shape `(N, D)`): Of the vision tower.
        systems (`Sequence[System]`): Others than those with a model are left out. The first of them has the shape of
            the untrained ones.
        text_tower (`TextTower`): The Adaptor's.
        output_dir (`str` or `PathLike`): For `text_understanding.json`, which holds numbers and no report.
        dataset (`str`), seen (`Mapping[str, Seen]`, *optional*): For the file.
        num_resamples (`int`, defaults to 1000): Of the bootstrap over patients.
    """
    from ..evaluation.naming import checkpoint_label

    codes = np.unique([str(patient) for patient in patients], return_inverse=True)[1]
    systems = [system for system in systems if system.model is not None]
    images = {system.key: system.features(image_embeds) for system in systems}
    untrained = [System("untrained", model) for model in untrained_models(systems[0].model)] if systems else []
    untrained_images = [system.features(image_embeds) for system in untrained]
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
        reference = [
            float(_own_report_wins(image[rows], adapted_texts(system.model, pooled), of_row).mean())
            for system, image in zip(untrained, untrained_images, strict=True)
        ]
        for system in systems:
            embeds = adapted_texts(system.model, pooled)
            hits = _own_report_wins(images[system.key][rows], embeds, of_row)
            interval = _interval(hits, codes[rows], num_resamples)
            fields, cosines = system.fields(), _cosines(embeds)
            result = SwapResult(
                swap, fields["system"], len(changed), len(rows), *cosines, float(hits.mean()), *interval,
                checkpoint=checkpoint_label(fields), untrained=reference,
            )  # fmt: skip
            found.append(result)
    path = Path(output_dir) / RESULT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [{name: None if value != value else value for name, value in vars(result).items()} for result in found]
    plain = [*_other_results(path, dataset, plain), *plain]
    overlap = {system.key: overlap_fields(seen, system.key) for system in systems}
    written = {"dataset": dataset, "pretraining_overlap": overlap, "results": plain}
    write_aside(path, json.dumps(written, indent=1) + "\n")
    return found


def _other_results(path: Path, dataset: str, new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a file holds of other checkpoints on the same data set; a damaged file holds nothing."""
    try:
        known = read_json(path)
        replaced = {(one["swap"], one["system"], one["checkpoint"]) for one in new}
        kept = [one for one in known["results"] if (one["swap"], one["system"], one.get("checkpoint")) not in replaced]
        return kept if known["dataset"] == dataset else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def untrained_models(model: AdaptorModel, count: int = NUM_UNTRAINED) -> list[AdaptorModel]:
    """Adaptors of the same shape with new weights, of seeds 0 to `count` - 1, in evaluation mode."""
    found = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(count):
            torch.manual_seed(seed)
            found.append(AdaptorModel(model.config).to(model.device).eval())
    return found


def _own_report_wins(images: torch.Tensor, embeds: torch.Tensor, of_row: np.ndarray) -> np.ndarray:
    """`(n,)` 1 where an image scores above the changed report; `embeds` holds the reports, then their changed forms."""
    before, after = embeds.chunk(2)
    return ((images * before[of_row]).sum(1) > (images * after[of_row]).sum(1)).double().numpy()


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
    from ..evaluation import share_interval

    return share_interval(hits, patients, num_resamples=num_resamples)


def _ends(result: SwapResult) -> str:
    return "[n/a]" if np.isnan(result.ci_lo) else f"[{result.ci_lo:.3f}, {result.ci_hi:.3f}]"


def swap_table(results: Sequence[SwapResult]) -> str:
    """Markdown of all results."""
    if not results:
        return "No report has a finding denied or stated, a side or a size: nothing to swap."
    head = [
        "swap",
        "system",
        "reports",
        "images",
        "cosine to the changed report",
        "to other reports",
        "own report wins",
    ]
    lines = [table_row(head), table_rule(len(head))]
    for number, result in enumerate(results):
        wins = "" if np.isnan(result.accuracy) else f"{result.accuracy:.3f} {_ends(result)}"
        wins += "" if result.above_baseline else f" {MARK}"
        system = ", ".join(part for part in (result.system, result.checkpoint) if part)
        cells = [result.swap, system, result.num_texts, result.num_pairs, f"{result.text_cosine:.3f}",
                 f"{result.other_cosine:.3f}", wins]  # fmt: skip
        lines.append(table_row(cells))
        scores, last = result.untrained, number + 1 == len(results) or results[number + 1].swap != result.swap
        if last and scores:
            spread = f"{np.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"
            lines.append(table_row([result.swap, f"trivial: {len(scores)} untrained Adaptors", *[""] * 4, spread]))
            lines.append(table_row([result.swap, "trivial: a coin", *[""] * 4, "0.500"]))
    return "\n".join([*lines, "", LEGEND])


def run(arguments: DownstreamArguments, device: str) -> str:
    """The task of `--task text_understanding`: embed the test pairs, swap words, and give the text to print."""
    model = load_adaptor(arguments)
    text_tower = load_checkpoint_text_tower(arguments, model, device)
    dataset, pairs, loaded = load_test_pairs(arguments, model, device, text_tower)
    results = run_text_understanding(
        dataset["text"][:],
        [patient or f"row {row}" for row, patient in enumerate(pairs.pairs["patient_id"][:])],
        pairs.image_embeddings().float(),
        systems_of(arguments, model, device),
        text_tower,
        arguments.output_dir,
        dataset=arguments.name,
        seen=loaded.seen,
        num_resamples=arguments.num_resamples,
    )
    named = {"dataset": arguments.name, "module": "adaptor", "system": system_name("adaptor", model.config.aligner)}
    return "\n\n".join([swap_table(results), *overlap_sentences([named | overlap_fields(loaded.seen, "adaptor")])])


__all__ = [
    "SWAPS",
    "SwapResult",
    "run",
    "run_text_understanding",
    "swap_laterality",
    "swap_negation",
    "swap_severity",
    "swap_table",
]
