"""Figures from results and embeddings. matplotlib comes with the extra `plots`."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import written_aside
from .calibration import reliability_curve
from .classification import SINGLE
from .naming import row_label, rows_in_words
from .predictions import Predictions
from .tables import Cell

MAX_CURVES = 7
# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that is lost on white; with a line
# and a marker for each, figures are read in grey too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1)))
MARKERS = "os^DvP*X<>"


def line_style(number: int) -> dict[str, Any]:
    """Colour and line of the curve with this number."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}


def marker_style(number: int) -> dict[str, Any]:
    """Colour and marker of the point with this number: 70 differ."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def pyplot():
    """`matplotlib.pyplot`, drawing into files."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'adaptor-hf[plots]', or do without.") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_parameters(
    cells: Sequence[Cell], folder: Path, published: Mapping[str, Any] | None = None
) -> tuple[list[Path], list[str]]:
    """
    Trainable parameters against performance (the paper's figure 2), one figure a data set and metric at the largest
    fraction there is; published points, if given, beside ours.

    Returns:
        `tuple[list[Path], list[str]]`: PNG and PDF of each, and a sentence for each figure that was left out, because
        the interval of none of its points is above the trivial baseline.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.metric in ("auroc", "accuracy", "dice_reference") and isinstance(
            cell.fields.get("trainable_params"), int
        ):
            where = str(cell.fields.get("test_set") or cell.fields["dataset"]).lower()
            groups.setdefault((where, cell.metric), []).append(cell)
    written, left_out = [], []
    for (dataset, metric), members in groups.items():
        plt = pyplot()
        largest = max(cell.fields.get("fraction") or 0 for cell in members)
        shown = [cell for cell in members if (cell.fields.get("fraction") or 0) == largest]
        if not any(cell.ci_lo > cell.trivial_baseline for cell in shown):
            left_out.append(f"parameters against {metric} on {dataset}: no run is better than its trivial baseline.")
            continue
        labels = [textwrap.fill(row_label(cell.fields), 95, subsequent_indent="   ") for cell in shown]
        height = 4 + 0.18 * sum(label.count("\n") + 1 for label in labels)
        figure, axis = plt.subplots(figsize=(7, height), layout="constrained")
        sizes = [max(cell.fields["trainable_params"], 1) / 1e6 for cell in shown]
        decades = max(0.5, math.log10(max(sizes) / min(sizes)))
        for number, (cell, label) in enumerate(zip(shown, labels, strict=True)):
            # Equal numbers of parameters stand side by side.
            beside = sum(
                other.fields["trainable_params"] == cell.fields["trainable_params"] for other in shown[:number]
            )
            millions = sizes[number] * 10 ** (0.02 * beside * decades)
            ends = [[cell.value - cell.ci_lo], [cell.ci_hi - cell.value]]
            ends = None if math.isnan(cell.ci_lo) else np.maximum(ends, 0)
            axis.errorbar(millions, cell.value, yerr=ends, linestyle="", label=label, **marker_style(number))
        towers = (published or {}).get("towers", {}).get(f"{dataset}/{metric}")
        if towers and largest in published["fractions"]:
            place = published["fractions"].index(largest)
            points = [
                (published["trainable_params"][vision] / 1e6, values[place] / 100)
                for rows in towers.values()
                for vision, values in rows.items()
            ]
            axis.plot(*zip(*points, strict=True), "x", color="grey", label="Adaptor, published (no interval)")
        axis.set(
            xscale="log",
            xlabel="trainable parameters, millions (equal ones side by side)",
            ylabel=f"{metric}, 95 % interval",
        )
        rows = "; ".join(sorted({rows_in_words(cell.fields) for cell in shown}))
        axis.set_title((f"{dataset}, {largest * 100:g} % of training data" if largest else dataset) + f"\n{rows}")
        # Few points lie within a decade: its tenths get labels too, as plain numbers.
        axis.xaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
        axis.xaxis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(plt.NullFormatter())
        figure.legend(loc="outside lower left", frameon=False, fontsize="x-small")
        axis.spines[["top", "right"]].set_visible(False)
        written += save(figure, folder / f"parameters_{file_name(dataset)}_{metric}")
    return written, left_out


def draw_reliability(curves: Mapping[str, Predictions], path: Path, title: str = "") -> list[Path]:
    """
    Reliability curves: frequency against confidence in 15 bins. Of exclusive classes, of the top class; of several
    labels, all labels together.

    Args:
        curves (`Mapping[str, Predictions]`): Name of each; the first seven are drawn, named below the axes.
        path (`Path`): Of the image; a PDF is written beside it.
        title (`str`): Says the data, and how many rows and patients.
    """
    plt = pyplot()
    labels = [textwrap.fill(name, 80, subsequent_indent="   ") for name in list(curves)[:MAX_CURVES]]
    height = 5 + 0.2 * sum(label.count("\n") + 1 for label in labels)
    figure, axis = plt.subplots(figsize=(6, height), layout="constrained")
    axis.plot([0, 1], [0, 1], color="0.45", linewidth=1, linestyle=(0, (1, 2)), label="calibrated")
    for number, (label, predictions) in enumerate(zip(labels, curves.values(), strict=False)):
        confidence, right = confidences(predictions)
        curve = reliability_curve(confidence, right)
        filled = curve["count"] > 0
        axis.plot(curve["confidence"][filled], curve["frequency"][filled], markersize=4, label=label,
                  **(line_style(number) | marker_style(number)))  # fmt: skip
    axis.set(xlabel="confidence", ylabel="frequency", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    some = f"\n({MAX_CURVES} of {len(curves)} runs)" if len(curves) > MAX_CURVES else ""
    axis.set_title(title + some, fontsize="medium")
    figure.legend(loc="outside lower left", frameon=False, fontsize="small")
    return save(figure, path)


def confidences(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and whether the event came, `(M,)` each, as the calibration error of these predictions counts."""
    scores, target = predictions.columns["score"], predictions.columns["target"]
    if predictions.settings["problem_type"] == SINGLE and scores.ndim == 2 and scores.shape[1] > 1:
        return scores.max(1), (scores.argmax(1) == target).astype(np.float64)
    return scores.reshape(-1), target.reshape(-1).astype(np.float64)


def draw_tsne(points: Mapping[str, np.ndarray], labels: Sequence[str], path: Path) -> Path:
    """
    Maps of [`~adaptor_hf.evaluation.analysis.tsne_map`] side by side, coloured by class (the paper's figure 3).

    Args:
        points (`Mapping[str, np.ndarray]`): Title to `(N, 2)`.
        labels (`Sequence[str]`): Class of each row.
    """
    plt = pyplot()
    figure, axes = plt.subplots(1, len(points), figsize=(4.5 * len(points), 4.2), layout="constrained", squeeze=False)
    names = sorted({str(label) for label in labels})
    classes = np.array([str(label) for label in labels])
    for axis, (title, place) in zip(axes[0], points.items(), strict=True):
        for number, name in enumerate(names):
            axis.scatter(*place[classes == name].T, s=10, label=name, **marker_style(number))
        axis.set(title=f"{title}, {len(place)} rows", xticks=[], yticks=[])
    # Beside the maps, where it covers no point.
    figure.legend(*axes[0, -1].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    return save(figure, path)[0]


def draw_attention(images: Sequence[np.ndarray], maps: np.ndarray, path: Path) -> Path:
    """
    Images with the attention over their patches laid over them.

    Args:
        images (`Sequence[np.ndarray]`): Grey `(H, W)` or RGB `(H, W, 3)`.
        maps (`np.ndarray` of shape `(N, h, w)`): From `attention_maps`.
    """
    plt = pyplot()
    figure, axes = plt.subplots(2, len(images), figsize=(3 * len(images), 6), layout="constrained", squeeze=False)
    for column, (image, weights) in enumerate(zip(images, maps, strict=True)):
        height, width = np.asarray(image).shape[:2]
        for axis in axes[:, column]:
            axis.imshow(image, cmap="gray", extent=(0, width, height, 0))
            axis.set(xticks=[], yticks=[])
        axes[1, column].imshow(weights, cmap="inferno", alpha=0.5, extent=(0, width, height, 0))
    return save(figure, path)[0]


def save(figure, path: Path) -> list[Path]:
    """PNG and PDF of a figure, equal in every byte when it is drawn again: they say no time, program or place."""
    path = Path(path)
    # A data set's name may hold a dot, which is no ending.
    stem = path.name.removesuffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = path.with_name(f"{stem}.png"), path.with_name(f"{stem}.pdf")
    plt = pyplot()
    # Letters as outlines of TrueType fonts, which journals ask for.
    with plt.rc_context({"pdf.fonttype": 42}):
        with written_aside(png) as aside:
            figure.savefig(aside, format="png", dpi=200, metadata={"Software": None})
        with written_aside(pdf) as aside:
            unknown = {"Creator": None, "Producer": None, "CreationDate": None}
            figure.savefig(aside, format="pdf", metadata=unknown)
    plt.close(figure)
    return [png, pdf]


def file_name(text: str) -> str:
    """A text as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)


__all__ = [
    "confidences",
    "draw_attention",
    "draw_parameters",
    "draw_reliability",
    "draw_tsne",
    "file_name",
    "line_style",
    "marker_style",
    "pyplot",
    "save",
]
