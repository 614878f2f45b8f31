"""Figures of a report: n in each title, equal bytes when drawn again, none where nothing is shown to be learned."""

import numpy as np
import pytest

from adaptor_hf.evaluation import curves as curves_module
from adaptor_hf.evaluation import report_figures
from adaptor_hf.evaluation.curves import Curve, draw_curves
from adaptor_hf.evaluation.figures import COLOURS, LINES, MARKERS, line_style, marker_style
from adaptor_hf.evaluation.predictions import classification_predictions
from adaptor_hf.evaluation.report import write_report
from adaptor_hf.evaluation.results import read_results, write_run


def write(folder, strengths, seed=0, **fields) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (90, 2)).astype(float)
    labels[:5, 1] = np.nan
    noise = np.random.default_rng(seed).normal(size=labels.shape)
    scores = 1 / (1 + np.exp(-(np.nan_to_num(labels) - 0.5) * strengths - noise))
    predictions = classification_predictions(
        [f"secret{row}" for row in range(90)], [f"person{row // 2}" for row in range(90)], labels, scores,
        problem_type="multi_label_classification", class_names=["effusion", "edema"], num_resamples=60,
    )  # fmt: skip
    write_run(
        folder,
        predictions,
        {
            "system": "Adaptor",
            "module": "adaptor",
            "task": "classification",
            "dataset": "set",
            "split_hash": "h",
            "protocol": "linear",
            "tower_saw_dataset": "no",
            "fraction": 1.0,
            "seed": seed,
            "trainable_params": 7,
        }
        | fields,
    )


def test_a_label_that_no_run_has_learned_has_a_sentence_and_no_curves(tmp_path):
    write(tmp_path / "runs" / "a", np.array([3.0, 0.0]))
    write(tmp_path / "runs" / "b", np.array([0.0, 0.0]), system="raw tower", module="tower")
    write_report(tmp_path / "runs", tmp_path / "out")
    drawn = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    page = (tmp_path / "out" / "report.md").read_text()
    for ending in ("png", "pdf"):
        assert f"curves_set_h_classification_effusion.{ending}" in drawn
        assert f"curves_set_h_classification_edema.{ending}" not in drawn
    assert "curves of edema on set, classification, split h: no run's AUROC has an interval above 0.5." in page
    assert "curves_set_h_classification_effusion.png)" in page


def test_where_nothing_is_learned_there_is_no_figure_at_all(tmp_path):
    write(tmp_path / "runs" / "a", np.array([0.0, 0.0]))
    write_report(tmp_path / "runs", tmp_path / "out")
    assert not list((tmp_path / "out" / "figures").iterdir())
    page = (tmp_path / "out" / "report.md").read_text()
    assert page.count("* curves of") == 2
    assert "* reliability on set" in page
    assert "* parameters against auroc on set" in page


def test_titles_say_rows_patients_and_positives_and_legends_the_values_of_the_drawn_seed(tmp_path, monkeypatch):
    for seed in (0, 1):
        write(tmp_path / "a" / str(seed), np.array([3.0, 3.0]), seed=seed, checkpoint="c" * 12, checkpoint_name="run-a")
    seen = []
    monkeypatch.setattr(report_figures, "draw_curves", lambda *call: seen.append(call) or [])
    lines = read_results(tmp_path).lines
    report_figures.draw_all(lines, [], tmp_path / "figures", None)
    (found, title, _) = seen[1]
    known = ~np.isnan(found[0].truth)
    assert known.sum() == 85
    assert "edema on set" in title
    assert "100 % of the training rows, seed 0" in title
    # Of the first five rows, without label, two pairs and one image of a third patient.
    assert f"85 images of 43 patients, {int(found[0].truth[known].sum())} positive" in title
    (line,) = [one for one in lines if one["metric"] == "auroc/edema" and one["seed"] == 0]
    assert found[0].area == f"{line['value']:.3f} [{line['ci_lo']:.3f}, {line['ci_hi']:.3f}]"
    assert found[0].name == "Adaptor, run-a cccccccc"


def test_curves_are_those_of_the_scores_with_both_chance_lines(tmp_path, monkeypatch):
    truth = np.array([0, 0, 1, 0, 1, 1, np.nan])
    scores = np.array([0.1, 0.4, 0.35, 0.2, 0.8, 0.7, 0.9])
    kept = []
    monkeypatch.setattr(curves_module, "save", lambda figure, path: kept.append(figure))
    draw_curves([Curve("a", scores, truth, "1", "1")], "title", tmp_path / "x")
    left, right = kept[0].axes
    false, true = left.lines[0].get_xydata().T
    # The area by counting pairs: 8 of 9 are in order.
    assert np.trapezoid(true, false) == pytest.approx(8 / 9)
    np.testing.assert_array_equal(left.lines[1].get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(right.lines[1].get_ydata(), [0.5, 0.5])
    with pytest.raises(ValueError, match="both classes"):
        draw_curves([Curve("a", scores, np.zeros(7), "1", "1")], "title", tmp_path / "x")


def test_figures_have_equal_bytes_when_drawn_again_and_hold_no_id_or_place(tmp_path):
    write(tmp_path / "runs" / "a", np.array([3.0, 2.0]))
    for name in ("one", "two"):
        write_report(tmp_path / "runs", tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert sum(path.suffix == ".pdf" for path in files) == 5
    for path in files:
        data = (tmp_path / "one" / path).read_bytes()
        assert data == (tmp_path / "two" / path).read_bytes(), path
        for word in (b"secret", b"person", str(tmp_path).encode(), b"CreationDate", b"Matplotlib"):
            assert word not in data, (path, word)


def test_a_fault_on_a_page_names_no_place_of_this_machine(tmp_path):
    write(tmp_path / "runs" / "a", np.array([3.0, 2.0]))
    path = tmp_path / "runs" / "a" / "results.jsonl"
    path.write_text(path.read_text()[:-40])
    write_report(tmp_path / "runs", tmp_path / "out", figures=False)
    page = (tmp_path / "out" / "report.md").read_text()
    assert "a/results.jsonl, line" in page
    assert str(tmp_path) not in page


def test_ten_points_and_seven_curves_all_look_different():
    assert len({(line_style(number)["color"], str(line_style(number)["linestyle"])) for number in range(7)}) == 7
    assert len({str(line) for line in LINES}) == len(LINES) == len(set(COLOURS)) == 7
    assert len({tuple(marker_style(number).values()) for number in range(70)}) == 7 * len(MARKERS) == 70
