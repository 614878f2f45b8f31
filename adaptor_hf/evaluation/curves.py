"""ROC and precision-recall curves of runs on the same test rows, one figure a label."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .figures import line_style, pyplot, save

MAX_CURVES = 7
WIDTH_INCHES = 4.72  # 12 cm: text in the figure is as large on paper as here
_POINTS = 7


@dataclass
class Curve:
    """
    One run.

    Args:
        name (`str`): In the legend.
        scores, truth (`np.ndarray` of shape `(N,)`): Higher means positive; 1, 0, or NaN (unknown: left out).
        area, precision (`str`): AUROC and average precision with their intervals, as tables show them.
    """

    name: str
    scores: np.ndarray
    truth: np.ndarray
    area: str
    precision: str


def draw_curves(curves: Sequence[Curve], title: str, path: Path) -> list[Path]:
    """
    Both curves of each run beside each other, with chance: the diagonal, and the share of positives.

    Args:
        curves (`Sequence[Curve]`): On the same rows; the first seven are drawn.
        title (`str`): Says what is positive, and how many rows, patients and positives there are.
        path (`Path`): Without ending; PDF and PNG are written.

    Returns:
        `list[Path]`: The PNG and the PDF.

    Raises:
        ValueError: one class alone.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    plt = pyplot()
    entries = [
        textwrap.fill(f"{curve.name}: AUROC {curve.area}; AP {curve.precision}", 82, subsequent_indent="   ")
        for curve in curves[:MAX_CURVES]
    ]
    lines = sum(entry.count("\n") + 1 for entry in entries) + 1
    heading = "\n".join(textwrap.fill(part, 82) for part in title.split("\n"))
    if len(curves) > MAX_CURVES:
        heading += f"\n({MAX_CURVES} of {len(curves)} runs)"
    height = 2.75 + 0.14 * (lines + heading.count("\n") + 1)
    with plt.rc_context({"font.size": _POINTS}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH_INCHES, height), layout="constrained")
        handles = []
        for number, (curve, entry) in enumerate(zip(curves, entries, strict=False)):
            known = ~np.isnan(curve.truth)
            truth, scores = curve.truth[known], curve.scores[known]
            if not 0 < truth.sum() < len(truth):
                raise ValueError(f"Curves need both classes, got {int(truth.sum())} positives among {len(truth)} rows.")
            false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
            handles += left.plot(false, true, label=entry, linewidth=1.2, **line_style(number))
            precision, recall, _ = precision_recall_curve(truth, scores)
            right.plot(recall, precision, linewidth=1.2, drawstyle="steps-pre", **line_style(number))
        chance = {"color": "0.45", "linewidth": 0.8, "linestyle": (0, (1, 2)), "zorder": 0}
        prevalence = float(truth.mean())
        handles += left.plot([0, 1], [0, 1], label=f"chance: AUROC 0.5; AP about {prevalence:.3f}", **chance)
        right.plot([0, 1], [prevalence, prevalence], **chance)
        left.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC")
        right.set(xlabel="recall (sensitivity)", ylabel="precision", title="Precision-recall")
        for axis in (left, right):
            axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), box_aspect=1)
            axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle(heading, fontsize=_POINTS + 1)
        figure.get_layout_engine().set(h_pad=0.08)
        figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=_POINTS, handlelength=2.6)
        return save(figure, path)


__all__ = ["MAX_CURVES", "Curve", "draw_curves"]
