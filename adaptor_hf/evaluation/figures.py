"""Figures from results and embeddings. matplotlib comes with the extra `plots`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .classification import SINGLE, reliability_curve
from .predictions import Predictions
from .tables import Cell, row_label

MAX_CURVES = 8


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'adaptor-hf[plots]', or do without.") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_parameters(cells: Sequence[Cell], folder: Path, published: Mapping[str, Any] | None = None) -> list[Path]:
    """
    Trainable parameters against performance (the paper's figure 2), one figure a data set and metric at the largest
    fraction there is; published points, if given, beside ours.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.metric in ("auroc", "accuracy", "dice_reference") and isinstance(
            cell.fields.get("trainable_params"), int
        ):
            groups.setdefault((str(cell.fields["dataset"]).lower(), cell.metric), []).append(cell)
    written = []
    for (dataset, metric), members in groups.items():
        plt = _pyplot()
        largest = max(cell.fields.get("fraction") or 0 for cell in members)
        shown = sum((cell.fields.get("fraction") or 0) == largest for cell in members)
        figure, axis = plt.subplots(figsize=(7, 4 + 0.2 * shown), layout="constrained")
        for cell in members:
            if (cell.fields.get("fraction") or 0) == largest:
                millions = max(cell.fields["trainable_params"], 1) / 1e6
                ends = [[cell.value - cell.ci_lo], [cell.ci_hi - cell.value]]
                ends = None if math.isnan(cell.ci_lo) else np.maximum(ends, 0)
                axis.errorbar(millions, cell.value, yerr=ends, fmt="o", label=row_label(cell.fields))
        towers = (published or {}).get("towers", {}).get(f"{dataset}/{metric}")
        if towers and largest in published["fractions"]:
            place = published["fractions"].index(largest)
            points = [
                (published["trainable_params"][vision] / 1e6, values[place] / 100)
                for rows in towers.values()
                for vision, values in rows.items()
            ]
            axis.plot(*zip(*points, strict=True), "x", color="grey", label="Adaptor, published (no interval)")
        axis.set(xscale="log", xlabel="trainable parameters, millions", ylabel=metric)
        axis.set_title(f"{dataset}, {largest * 100:g} % of training data" if largest else dataset)
        # Few points lie within a decade: its tenths get labels too, as plain numbers.
        axis.xaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(plt.NullFormatter())
        figure.legend(loc="outside lower left", frameon=False, fontsize="x-small")
        axis.spines[["top", "right"]].set_visible(False)
        written.append(_save(figure, folder / f"parameters_{_file_name(dataset)}_{metric}.png"))
    return written


def draw_reliability(curves: Mapping[str, Predictions], path: Path) -> Path:
    """
    Reliability curves: frequency against confidence in 15 bins. Of exclusive classes, of the top class; of several
    labels, all labels together.

    Args:
        curves (`Mapping[str, Predictions]`): Name of each; the first eight are drawn, named below the axes.
        path (`Path`): Of the image.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(6, 5 + 0.2 * min(len(curves), MAX_CURVES)), layout="constrained")
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1, label="calibrated")
    for name, predictions in list(curves.items())[:MAX_CURVES]:
        confidence, right = confidences(predictions)
        curve = reliability_curve(confidence, right)
        filled = curve["count"] > 0
        axis.plot(curve["confidence"][filled], curve["frequency"][filled], marker="o", markersize=3, label=name)
    axis.set(xlabel="confidence", ylabel="frequency", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    if len(curves) > MAX_CURVES:
        axis.set_title(f"the first {MAX_CURVES} of {len(curves)}", fontsize="small")
    figure.legend(loc="outside lower left", frameon=False, fontsize="x-small")
    return _save(figure, path)


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
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(points), figsize=(4.5 * len(points), 4.2), layout="constrained", squeeze=False)
    names = sorted({str(label) for label in labels})
    classes = np.array([str(label) for label in labels])
    for axis, (title, place) in zip(axes[0], points.items(), strict=True):
        for name in names:
            axis.scatter(*place[classes == name].T, s=8, label=name)
        axis.set(title=title, xticks=[], yticks=[])
    axes[0, -1].legend(frameon=False, fontsize="small")
    return _save(figure, path)


def draw_attention(images: Sequence[np.ndarray], maps: np.ndarray, path: Path) -> Path:
    """
    Images with the attention over their patches laid over them.

    Args:
        images (`Sequence[np.ndarray]`): Grey `(H, W)` or RGB `(H, W, 3)`.
        maps (`np.ndarray` of shape `(N, h, w)`): From `attention_maps`.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(2, len(images), figsize=(3 * len(images), 6), layout="constrained", squeeze=False)
    for column, (image, weights) in enumerate(zip(images, maps, strict=True)):
        height, width = np.asarray(image).shape[:2]
        for axis in axes[:, column]:
            axis.imshow(image, cmap="gray", extent=(0, width, height, 0))
            axis.set(xticks=[], yticks=[])
        axes[1, column].imshow(weights, cmap="inferno", alpha=0.5, extent=(0, width, height, 0))
    return _save(figure, path)


def _save(figure, path: Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    _pyplot().close(figure)
    return path


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)


__all__ = ["confidences", "draw_attention", "draw_parameters", "draw_reliability", "draw_tsne"]
