"""Reports: published rows beside ours and marked, phantoms apart, nothing averaged that does not belong together."""

import csv
import io
import json
import re

import numpy as np
import pytest

from adaptor_hf.evaluation.__main__ import main
from adaptor_hf.evaluation.predictions import classification_predictions, segmentation_predictions
from adaptor_hf.evaluation.report import metric_tables, paper_tables, published, write_report
from adaptor_hf.evaluation.results import RESULTS_FILE, read_results, write_run
from adaptor_hf.evaluation.segmentation import segmentation_counts
from adaptor_hf.evaluation.statistics import seed_interval
from adaptor_hf.evaluation.tables import Table, aggregate, lovt_csv

FIELDS = {
    "system": "adaptor_hf",
    "module": "adaptor",
    "vision_tower": "dinov2-b",
    "text_tower": "biobert",
    "task": "classification",
    "dataset": "rsna",
    "split_hash": "0123456789ab",
    "protocol": "linear",
    "recipe": "rigorous",
    "tower_saw_dataset": "no",
    "selected_on": "validation",
    "fraction": 0.1,
    "trainable_params": 12207617,
    "head_params": 769,
}


def write(folder, *, seed: int = 0, strength: float = 2.0, rows: int = 40, **fields) -> None:
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    scores = 1 / (1 + np.exp(-strength * (labels - 0.5) - generator.normal(size=rows)))
    predictions = classification_predictions(
        map(str, range(rows)), [None] * rows, labels, scores, problem_type="single_label_classification",
        num_resamples=50,
    )  # fmt: skip
    write_run(folder, predictions, FIELDS | {"seed": seed} | fields)


def write_masks(folder, seed: int = 0, **fields) -> None:
    generator = np.random.default_rng(seed)
    targets = generator.random((9, 6, 6)) > 0.6
    targets[:3] = False
    predictions = segmentation_predictions(
        map(str, range(9)), [None] * 9, segmentation_counts(generator.random(targets.shape), targets), num_resamples=50
    )
    write_run(folder, predictions, FIELDS | {"task": "segmentation", "protocol": "frozen", "seed": seed} | fields)


@pytest.fixture
def runs(tmp_path):
    for seed in range(3):
        write(tmp_path / "runs" / f"rsna-{seed}", seed=seed)
        write(tmp_path / "runs" / f"raw-{seed}", seed=seed, module="raw tower", strength=0.0, trainable_params=0)
        write(tmp_path / "runs" / f"phantom-{seed}", seed=seed, dataset="phantom", vision_tower="lite0")
    write_masks(tmp_path / "runs" / "masks")
    return tmp_path / "runs"


def rows_of(table: Table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


class TestAggregate:
    def test_seeds_become_one_cell_with_both_kinds_of_interval(self, runs):
        lines = [line for line in read_results(runs).lines if line["metric"] == "auroc"]
        ours = [line for line in lines if line["module"] == "adaptor" and line["dataset"] == "rsna"]
        (cell,) = aggregate(ours)
        values = [line["value"] for line in ours]
        assert cell.values == values
        assert (cell.value, cell.seed_lo, cell.seed_hi) == pytest.approx(seed_interval(values))
        assert cell.ci_lo == pytest.approx(np.mean([line["ci_lo"] for line in ours]))
        assert cell.fields["head_params"] == 769

    def test_other_splits_fractions_and_checkpoints_are_not_averaged(self, tmp_path):
        changes = [{}, {"split_hash": "other"}, {"fraction": 1.0}, {"test_set": "siim"}]
        for number, change in enumerate([*changes, {"checkpoint": "a"}, {"checkpoint": "b"}]):
            write(tmp_path / str(number), **change)
        cells = [cell for cell in aggregate(read_results(tmp_path).lines) if cell.metric == "auroc"]
        assert len(cells) == 6
        assert all(len(cell.values) == 1 for cell in cells)

    def test_seeds_with_the_same_predictions_are_noted_and_others_are_not(self, tmp_path):
        write(tmp_path / "a", seed=0)
        text = (tmp_path / "a" / RESULTS_FILE).read_text()
        (tmp_path / "b").mkdir()
        lines = [json.loads(line) | {"seed": 1, "run": "f" * 16} for line in text.splitlines()]
        (tmp_path / "b" / RESULTS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
        (cell,) = [cell for cell in aggregate(read_results(tmp_path).lines) if cell.metric == "auroc"]
        assert "2 seeds gave 1 distinct predictions" in cell.notes[0]
        write(tmp_path / "c", seed=2, fraction=1.0)
        write(tmp_path / "d", seed=3, fraction=1.0)
        others = [cell for cell in aggregate(read_results(tmp_path).lines) if cell.fields["fraction"] == 1.0]
        assert not any("distinct predictions" in note for cell in others for note in cell.notes)


class TestPaperTables:
    def test_ours_stand_beside_published_rows_that_are_marked(self, runs):
        cells = aggregate(read_results(runs).lines)
        tables = {table.name: table for table in paper_tables(cells)}
        rows = rows_of(tables["table1_rsna_auroc"])
        assert rows["biobert (published)"]["dinov2-b 1 %"] == "84.4"
        (ours,) = [name for name in rows if "(ours" in name]
        (cell,) = [c for c in cells if c.metric == "auroc" and c.fields["dataset"] == "rsna"
                   and c.fields["module"] == "adaptor"]  # fmt: skip
        spread = np.std(cell.values, ddof=1)
        expected = f"{100 * cell.value:.1f} ± {100 * spread:.1f} [{100 * cell.ci_lo:.1f}, {100 * cell.ci_hi:.1f}]"
        assert rows[ours]["dinov2-b 10 %"] == expected
        assert rows[ours]["dinov2-b 1 %"] == ""
        second = rows_of(tables["table2"])
        assert second["MGCA R50 (published)"]["RSNA AUROC 100 %"] == "89.9"
        assert sum("(ours)" in name for name in second) == 2
        third = rows_of(tables["table3"])
        assert third["all-empty mask (computed from the published splits)"]["RSNA Dice (empty counts 1) 1 %"] == "76.6"
        assert any("(ours)" in name for name in third)
        assert all(name.endswith((" (published)", "(ours)")) or name.startswith("all-empty") for name in third)

    def test_phantoms_stand_in_none_of_them(self, tmp_path):
        write(tmp_path, dataset="phantom-rsna", test_set="rsna")
        tables = paper_tables(aggregate(read_results(tmp_path).lines))
        assert not any("ours" in row[0] for table in tables for row in table.rows)

    def test_two_checkpoints_on_the_same_towers_have_rows_of_their_own_with_name_and_digest(self, tmp_path):
        for number, name in enumerate(("first", "second")):
            write(tmp_path / name, seed=number, checkpoint=f"{number}" * 12, checkpoint_name=name)
        cells = aggregate(read_results(tmp_path).lines)
        tables = {table.name: table for table in [*paper_tables(cells), *metric_tables(cells)]}
        for table in ("table1_rsna_auroc", "table2", "metrics_rsna_classification"):
            for label in ("first 00000000", "second 11111111"):
                assert sum(label in row[0] for row in tables[table].rows) == 1, (table, label)
        assert all(len(cell.values) == 1 for cell in cells)

    def test_two_runs_for_one_place_get_two_rows(self, tmp_path):
        write(tmp_path / "a", input_size=224)
        write(tmp_path / "b", input_size=448, strength=1.0)
        (table,) = [t for t in paper_tables(aggregate(read_results(tmp_path).lines)) if t.name == "table1_rsna_auroc"]
        assert sum("(ours" in row[0] for row in table.rows) == 2

    def test_published_values_are_complete_and_plausible(self):
        known = published()
        for rows in known["towers"].values():
            assert set(rows) == {"bert", "biobert", "clinicalbert", "pubmedbert", "cxrbert"}
            assert all(set(row) == {"resnet-ae", "dinov2-s", "dinov2-b"} for row in rows.values())
            assert all(len(values) == 3 for row in rows.values() for values in row.values())
        # The row printed as the paper's result is the best text tower of each column.
        best = [max(row["dinov2-b"][i] for row in known["towers"]["rsna/auroc"].values()) for i in range(3)]
        (printed,) = [entry for entry in known["classification"] if entry["method"] == "Adaptor ViT-B"]
        assert printed["results"]["rsna/auroc"] == best == [84.4, 85.6, 86.8]


class TestMetricTables:
    def test_a_value_that_is_not_shown_to_beat_the_trivial_baseline_is_marked(self, runs):
        (table,) = [t for t in metric_tables(aggregate(read_results(runs).lines)) if t.title == "rsna: classification"]
        rows = rows_of(table)
        (raw,) = [name for name in rows if "raw tower" in name]
        (adaptor,) = [name for name in rows if name.startswith("adaptor_hf, dinov2-b")]
        assert rows[raw]["auroc"].endswith("†")
        assert not rows[adaptor]["auroc"].endswith("†")
        assert rows["trivial: chance"]["auroc"] == "0.500"
        assert rows["trivial: majority class"]["accuracy"] == "0.500"
        assert rows["trivial: always positive"]["f1"] == "0.667"
        assert any(note.startswith("† Not above its best trivial baseline") for note in table.notes)
        assert rows[adaptor]["seeds"] == "3"
        assert rows[adaptor]["images (patients)"] == "40"
        assert rows[adaptor]["tower saw it"] == "no"


class TestFormats:
    def test_lovt_columns_are_its_layout(self, runs):
        files = lovt_csv(aggregate(read_results(runs).lines))
        (row,) = [
            row
            for row in csv.DictReader(io.StringIO(files["downstream_rsna_classification_linear_0.1.csv"]))
            if row["name"].startswith("adaptor_hf, dinov2-b")
        ]
        prefix = "classification_test/auroc"
        values = [float(value) for value in row[f"{prefix}_run_results"].split(";")]
        assert len(values) == int(row[f"{prefix}_num_runs"]) == 3
        assert float(row[f"{prefix}_mean"]) == pytest.approx(np.mean(values), abs=1e-5)
        assert float(row[f"{prefix}_std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-5)
        assert float(row[f"{prefix}_95_interval"]) == pytest.approx(
            1.96 * np.std(values, ddof=1) / np.sqrt(3), abs=1e-5
        )

    def test_markdown_and_csv_escape_what_they_must(self):
        table = Table("a_b", "A & B", ["x", "50 %"], [["p|q", "1_2 ±3 †"]], ["50 % & more"])
        assert "| p\\|q | 1_2 ±3 † |" in table.markdown()
        assert table.csv() == "x,50 %\np|q,1_2 ±3 †\n"


class TestCommand:
    def test_report_writes_pages_tables_and_figures_with_phantoms_apart(self, runs, tmp_path, capsys):
        assert main(["report", str(runs), "--output_dir", str(tmp_path / "out")]) == 0
        out = tmp_path / "out"
        assert capsys.readouterr().out.split() == [str(out / "phantom.md"), str(out / "report.md")]
        report, phantom = (out / "report.md").read_text(), (out / "phantom.md").read_text()
        assert "phantom" not in report.lower()
        assert "no patients" in phantom
        assert "published" not in phantom.lower()
        assert "lite0" in phantom
        for page, text in ((out, report), (out, phantom)):
            for figure in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
                assert (page / figure).read_bytes()[:4] == b"\x89PNG"
        drawn = {path.name for path in (out / "figures").iterdir()}
        for stem in ("parameters_rsna_auroc", "reliability_rsna_0123456789ab_classification"):
            assert {f"{stem}.png", f"{stem}.pdf"} <= drawn
        assert "curves_rsna_0123456789ab_classification_positive.pdf" in drawn
        for ending in ("md", "tex", "csv"):
            assert (out / "tables" / f"table1_rsna_auroc.{ending}").is_file()
        assert (out / "lovt" / "downstream_rsna_classification_linear_0.1.csv").is_file()

    def test_a_damaged_line_is_in_the_report(self, runs, tmp_path):
        path = runs / "rsna-0" / RESULTS_FILE
        path.write_text(path.read_text()[:-50])
        page = write_report(runs, tmp_path / "out", figures=False)[0].parent / "report.md"
        assert "Lines that could not be used (2)" in page.read_text()
        assert "rsna-0" in page.read_text()

    def test_nothing_readable_is_said(self, tmp_path):
        (tmp_path / RESULTS_FILE).write_text("{\n")
        (page,) = write_report(tmp_path, tmp_path / "out", figures=False)
        assert "No result could be read" in page.read_text()

    def test_errors_are_one_line_and_status_one(self, tmp_path, capsys):
        assert main(["report", str(tmp_path)]) == 1
        assert capsys.readouterr().err.startswith("error: No results.jsonl at")

    def test_verify_tells_each_run_and_fails_on_a_difference(self, runs, capsys):
        assert main(["verify", str(runs)]) == 0
        assert capsys.readouterr().out.count(": verified") == 10
        path = runs / "masks" / RESULTS_FILE
        path.write_text(path.read_text().replace('"n_test": 9', '"n_test": 90'))
        assert main(["verify", str(runs / "masks")]) == 1
        assert "n_test is 90, the predictions have 9" in capsys.readouterr().out


class TestCard:
    def test_results_enter_the_metadata_and_come_back(self, runs, tmp_path):
        from huggingface_hub import ModelCard

        from adaptor_hf.hub.results_card import add_to_card

        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# Model\n\nText.\n")
        lines = [line for line in read_results(runs).lines if line["folder"].endswith(("rsna-0", "rsna-1"))]
        add_to_card(tmp_path, lines)
        first = (tmp_path / "README.md").read_text()
        card = ModelCard.load(tmp_path / "README.md")
        (auroc,) = [result for result in card.data.eval_results if result.metric_type == "auroc"]
        (cell,) = [cell for cell in aggregate(lines) if cell.metric == "auroc"]
        assert auroc.metric_value == round(cell.value, 4)
        assert auroc.task_type == "image-classification"
        assert auroc.metric_args == {
            "n": 40,
            "interval_over": "images",
            "seeds": 2,
            "standard_deviation_over_seeds": round(float(np.std(cell.values, ddof=1)), 4),
            "interval_95": [round(cell.ci_lo, 4), round(cell.ci_hi, 4)],
            "trivial_baseline": 0.5,
            "trivial_name": "chance",
            "above_trivial": True,
        }
        assert auroc.dataset_args["split_hash"] == FIELDS["split_hash"]
        assert auroc.dataset_args["tower_saw_dataset"] == "no"
        assert "Text." in first
        add_to_card(tmp_path, lines)
        assert (tmp_path / "README.md").read_text() == first

    def test_no_card_is_said(self, tmp_path):
        from adaptor_hf.hub.results_card import add_to_card

        with pytest.raises(FileNotFoundError, match="No model card"):
            add_to_card(tmp_path, [])
