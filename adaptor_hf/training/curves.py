"""`training_curves.png`: loss, retrieval on validation, learning rate and scale over the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..evaluation.aligners import system_name
from ..evaluation.figures import line_style, pyplot
from ..evaluation.retrieval import chance_retrieval
from ..files import written_aside

if TYPE_CHECKING:
    from ..embeddings import EmbeddingCache

CURVES_FILE = "training_curves.png"


def draw_curves(
    folder: str | Path,
    history: Sequence[dict[str, Any]],
    batch_size: int,
    validation: EmbeddingCache | None = None,
    name: str = system_name("adaptor"),
) -> Path | None:
    """
    Draw what a run has logged.

    Args:
        folder (`str` or `Path`): Of the run.
        history (`Sequence[dict]`): Log entries, `trainer.state.log_history`.
        batch_size (`int`): Pairs a step over all processes, on which the training loss depends.
        validation (`EmbeddingCache`, *optional*): The split that was evaluated, for what chance scores on it.
        name (`str`, *optional*): Of what was trained, as of `system_name`.

    Returns:
        `Path | None`: The picture; None where nothing was logged or matplotlib is not there, which a run says at its
            start (`describe_plan`).
    """
    panels = [panel for panel in _panels(history, batch_size, name) if panel[1]]
    if not panels:
        return None
    try:
        plt = pyplot()
    except ImportError:
        return None
    figure, axes = plt.subplots(
        len(panels), figsize=(7, 2.2 * len(panels) + 0.6), sharex=True, squeeze=False, layout="constrained"
    )
    for axis, (title, curves) in zip(axes[:, 0], panels, strict=True):
        for number, (label, points) in enumerate(curves.items()):
            marker = "o" if len(points) < 40 else None
            axis.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3, **line_style(number))
        if validation is not None and "recall" in title:
            chance = chance_retrieval(torch.from_numpy(validation.text_rows))["mean_recall"]
            axis.axhline(chance, color="grey", linewidth=1, linestyle=":", label=f"chance: {chance:.3f}")
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        axis.ticklabel_format(axis="y", useOffset=False)
        if "loss" in title or "recall" in title:
            axis.legend(fontsize="small")
    axes[-1, 0].set_xlabel("step")
    path = Path(folder) / CURVES_FILE
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=150, format="png")
    plt.close(figure)
    return path


def _panels(history: Sequence[dict[str, Any]], batch_size: int, name: str) -> list[tuple[str, dict[str, list]]]:
    """Of each panel its title and the curves that the log has: label and points (step, value)."""

    def curve(name: str) -> list[tuple[int, float]]:
        return [(entry["step"], float(entry[name])) for entry in history if entry.get(name) is not None]

    sizes = {entry["eval_loss_batch_size"] for entry in history if "eval_loss_batch_size" in entry}
    of_validation = f"validation, batches of {min(sizes):,}" if sizes else "validation"
    panels = [
        ("loss", {f"training, batches of {batch_size:,}": "loss", of_validation: "eval_loss"}),
        ("mean recall (validation)", {name: "eval_mean_recall"}),
        ("learning rate", {"learning rate": "learning_rate"}),
        ("similarity scale", {"similarity scale": "eval_logit_scale"}),
    ]
    return [
        (title, {label: points for label, name in names.items() if (points := curve(name))}) for title, names in panels
    ]


__all__ = ["CURVES_FILE", "draw_curves"]
