"""Figures of the demo: curves of the run, and a page of retrieved reports beside their images."""

import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from adaptor_hf.evaluation import chance_recall
from adaptor_hf.training.pair_evaluation import embed_pairs


def draw_curves(log_history: list[dict], path: Path) -> Path:
    """Loss and validation recall by epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(entry["epoch"], entry[key]) for entry in log_history if key in entry]
        left.plot(*zip(*points, strict=True), label=label)
    left.set(xlabel="epoch", ylabel="contrastive loss", title="Loss (the two have different numbers of negatives)")
    for key, label in (
        ("eval_image_to_text_recall@10", "image to text, recall@10"),
        ("eval_text_to_image_recall@10", "text to image, recall@10"),
        ("eval_mean_recall", "mean recall"),
    ):
        points = [(entry["epoch"], entry[key]) for entry in log_history if key in entry]
        right.plot(*zip(*points, strict=True), label=label)
    right.set(xlabel="epoch", ylabel="recall", ylim=(0, None), title="Retrieval on validation patients")
    for axis in (left, right):
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def draw_retrieval(model, test, pairs, path: Path, rows: int = 5, top: int = 3) -> Path:
    """For a few held-out images: the report that belongs to them and the reports the model ranks first."""
    embeds = embed_pairs(model, test)
    text_ids = embeds["text_row"]
    distinct, first = [], []
    for row, text_id in enumerate(text_ids.tolist()):
        if text_id not in distinct:
            distinct.append(text_id)
            first.append(row)
    similarity = embeds["image_embeds"] @ embeds["text_embeds"][first].T
    by_row = {row: index for index, row in enumerate(pairs["source_row"])}
    table_rows = [by_row[row] for row in test.pairs["source_row"]]
    texts = pairs["text"]
    figure, axes = plt.subplots(rows, 2, figsize=(11, 2.7 * rows), width_ratios=[1, 3.2], layout="constrained")
    chosen = torch.linspace(0, len(test) - 1, rows).long().tolist()
    for (image_axis, text_axis), row in zip(axes, chosen, strict=True):
        image_axis.imshow(pairs[table_rows[row]]["image"], cmap="gray")
        order = similarity[row].argsort(descending=True).tolist()
        own = order.index(distinct.index(int(text_ids[row]))) + 1
        lines = [f"Its own report (ranked {own} of {len(first)}):", wrapped(texts[table_rows[row]]), ""]
        for place, candidate in enumerate(order[:top], start=1):
            mark = " (its own)" if candidate == order[own - 1] else ""
            lines += [
                f"{place}. cosine {similarity[row, candidate]:.2f}{mark}",
                wrapped(texts[table_rows[first[candidate]]]),
            ]
        text_axis.text(0, 1, "\n".join(lines), va="top", fontsize=7.5, family="monospace")
        for axis in (image_axis, text_axis):
            axis.axis("off")
    chance = chance_recall(text_ids)["image_to_text_recall@1"]
    figure.suptitle(f"Retrieved reports, held-out phantoms (chance of rank 1: {chance:.1%})", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def wrapped(text: str, width: int = 112, lines: int = 3) -> str:
    return "\n".join(
        textwrap.wrap(text, width, max_lines=lines, placeholder=" ...", initial_indent="   ", subsequent_indent="   ")
    )
