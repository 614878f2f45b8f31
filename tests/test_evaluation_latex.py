"""LaTeX tables: what a page holds, the best in bold with its interval, every special escaped."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from adaptor_hf.evaluation.latex import WIDTH_CM, latex_table
from adaptor_hf.evaluation.predictions import classification_predictions
from adaptor_hf.evaluation.report import metric_tables
from adaptor_hf.evaluation.results import read_results, write_run
from adaptor_hf.evaluation.tables import Table, aggregate

FIELDS = {
    "system": "Adaptor", "vision_tower": "v", "task": "classification", "dataset": "a_b & c%", "split_hash": "h",
    "protocol": "linear", "tower_saw_dataset": "no", "selected_on": "validation", "fraction": 1.0, "seed": 0,
}  # fmt: skip


def write(folder, strength: float, **fields) -> None:
    labels = np.arange(80) % 2
    scores = 1 / (1 + np.exp(-strength * (labels - 0.5) - np.random.default_rng(0).normal(size=80)))
    predictions = classification_predictions(
        map(str, range(80)), [None] * 80, labels, scores, problem_type="single_label_classification", num_resamples=50
    )
    write_run(folder, predictions, FIELDS | fields)


def table_of(folder, metrics=()) -> Table:
    (table,) = metric_tables(aggregate(read_results(folder).lines), metrics)
    return table


def bold_rows(latex: str) -> list[str]:
    return [line for line in latex.splitlines() if r"\textbf" in line]


def test_specials_are_escaped_in_names_cells_titles_and_notes():
    special = "\\ & % $ # _ { } ~ ^ < > | ± † →"
    text = latex_table(Table("a_b", special, ["x", special], [[special, special]], [special]))
    escaped = r"\textbackslash{} \& \% \$ \# \_ \{ \} \textasciitilde{} \textasciicircum{} $<$ $>$ $|$ $\pm$ $\dagger$"
    assert text.count(escaped + r" $\to$") == 5
    assert r"\label{tab:a-b}" in text
    # A bracket after the end of a row would be its option.
    assert r"{[}" in latex_table(Table("a", "a", ["x", "y"], [["[a]", "1"]]))


def test_the_best_of_a_column_is_bold_with_its_interval_and_a_note_says_what_that_means(tmp_path):
    write(tmp_path / "a", 2.0, system="good")
    write(tmp_path / "b", 1.0, system="fair")
    write(tmp_path / "c", 3.0, system="cheat")
    path = tmp_path / "c" / "results.jsonl"
    path.write_text(path.read_text().replace('"selected_on": "validation"', '"selected_on": "test"'))
    table = table_of(tmp_path, ["auroc"])
    text = latex_table(table)
    (row,) = bold_rows(text)
    assert row.startswith("good")
    cell = {line["system"]: line for line in read_results(tmp_path).lines if line["metric"] == "auroc"}["good"]
    assert rf"\textbf{{{cell['value']:.3f}}}" in row
    assert rf"\textbf{{{{[}}{cell['ci_lo']:.3f}, {cell['ci_hi']:.3f}{{]}}}}" in row
    assert "Bold: the highest value" in text
    assert "CHOSEN ON THE TEST SPLIT" in text
    assert "Tested on 80 images" in text


def test_rows_alone_of_other_splits_or_not_above_chance_are_not_bold(tmp_path):
    write(tmp_path / "a", 2.0)
    write(tmp_path / "b", 1.5, split_hash="other")
    write(tmp_path / "c", 1.0, fraction=0.1)
    assert not bold_rows(latex_table(table_of(tmp_path)))
    for number, strength in enumerate((0.0, 0.05)):
        write(tmp_path / "chance" / str(number), strength, system=str(number))
    assert not bold_rows(latex_table(table_of(tmp_path / "chance", ["auroc"])))


def test_chosen_metrics_are_columns_and_an_unknown_one_is_refused(tmp_path):
    write(tmp_path / "a", 2.0)
    text = latex_table(table_of(tmp_path, ["brier", "ece"]))
    assert "brier & ECE" in text
    assert "AUROC" not in text
    with pytest.raises(ValueError, match=r"No result has the metric auc\. There are: auroc"):
        metric_tables(aggregate(read_results(tmp_path).lines), ["auc"])


def wide() -> Table:
    columns = ["run", *(f"data set {number} AUROC" for number in range(12))]
    rows = [[f"an Adaptor_with-a_long_name_{row}", *["0.812 ± 0.010 [0.775, 0.850] †"] * 12] for row in range(40)]
    bold = {(row, column) for row in range(0, 40, 3) for column in range(1, 13)}
    parts = [f"{row // 10} % of the training rows" for row in range(40)]
    return Table("wide", "Many & more", columns, rows, ["A note that is long enough to be broken. " * 4] * 5, bold=bold,
                 parts=parts)  # fmt: skip


def test_no_column_or_row_is_lost_over_the_parts_and_no_part_is_wider_than_it_may():
    table = wide()
    text = latex_table(table)
    assert text.count("0.812") == 12 * 40
    for panel in text.split(r"\begin{table}")[1:]:
        widths = [float(width) for width in re.findall(r"p\{([\d.]+)cm\}", panel)]
        # 3 points on each side of a column, but not at the ends.
        assert sum(widths) + 2 * 3 / 28.45 * (len(widths) - 1) <= WIDTH_CM + 0.05
        assert widths[0] > 2.5
    assert len(set(re.findall(r"\\label\{(.*?)\}", text))) == text.count(r"\begin{table}") > 3


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_pdflatex_sets_a_wide_table_without_an_overfull_box_or_a_float_higher_than_a_page(tmp_path):
    groups = "; ".join(f"group_{number} 0.812 [0.775, 0.850] (n 40, 12 positive)" for number in range(6))
    sentences = Table(
        "subgroups", "By group", ["run", "seeds", "groups", "gap"], [["a long run " * 8, "3", groups, "0.1"]] * 9
    )
    text = latex_table(wide()) + latex_table(sentences)
    (tmp_path / "table.tex").write_text(text, encoding="utf-8")
    (tmp_path / "page.tex").write_text(
        "\\documentclass[letterpaper]{article}\\usepackage{array,booktabs}\n"
        "\\begin{document}\\input{table}\\clearpage\\end{document}\n"
    )
    made = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"], cwd=tmp_path, capture_output=True,
        text=True, errors="replace",
    )  # fmt: skip
    assert made.returncode == 0, made.stdout[-2000:]
    assert "Overfull" not in made.stdout
    assert "too large for page" not in made.stdout
