"""Checklists and Table 1: counts against a second count, small cells that stay hidden, nothing that was not known."""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_images import write_labelled_images

from adaptor_hf.audit.__main__ import main
from adaptor_hf.audit.checklists import CHECKLISTS, TO_BE_CHECKED, TO_BE_FILLED, fill, load_checklist, write_checklists
from adaptor_hf.audit.facts import run_facts
from adaptor_hf.audit.suppression import hidden_totals, suppress
from adaptor_hf.audit.table1 import describe_data, markdown

ROOT = Path(__file__).parents[1]


class TestTable1:
    @pytest.fixture(scope="class")
    def table(self, tmp_path_factory):
        path = write_labelled_images(tmp_path_factory.mktemp("table") / "set", 60)
        frame = pd.read_csv(path)
        frame.loc[[0, 1], ["sex", "age"]] = None
        frame["study_id"] = [f"s{row // 2}" for row in range(len(frame))]
        frame.to_csv(path, index=False)
        return path

    def test_counts_are_those_of_pandas(self, table, tmp_path, capsys):
        arguments = ["table1", str(table), "--label_column", "effusion", "edema", "--text_column", "text"]
        assert main([*arguments, "--to", str(tmp_path)]) == 0
        found = json.loads((tmp_path / "table1.json").read_text())
        frame = pd.read_csv(table)
        assert found["splits"] == ["train", "validation", "test", "all"]
        for part in found["splits"]:
            rows = frame if part == "all" else frame[frame["split"] == part]
            firsts = rows.drop_duplicates("patient_id")
            totals = {name: counts[part] for name, counts in found["totals"].items()}
            assert totals == {
                "patients": rows["patient_id"].nunique(), "studies": rows["study_id"].nunique(), "images": len(rows),
                "images with a report": len(rows),
            }  # fmt: skip
            sex = found["levels"]["sex (patients)"]
            assert {level: counts[part] for level, counts in sex.items()} == {
                "F": int((firsts["sex"] == "F").sum()),
                "M": int((firsts["sex"] == "M").sum()),
                "missing": int(firsts["sex"].isna().sum()),
            }
            age = found["age"][part]
            assert [age["q1"], age["median"], age["q3"]] == firsts["age"].quantile([0.25, 0.5, 0.75]).tolist()
            assert age["missing"] == firsts["age"].isna().sum()
            effusion = found["levels"]["effusion (images)"]
            assert effusion["positive"][part] == (rows["effusion"] == 1).sum()
            assert effusion["negative"][part] == (rows["effusion"] == 0).sum()
        assert "view is not known." in found["notes"]
        page = capsys.readouterr().out
        assert page.strip() == (tmp_path / "table1.md").read_text().strip()
        positive = (frame["effusion"] == 1).sum()
        assert f"{positive} ({100 * positive / len(frame):.1f} %)" in page

    def test_uncertain_and_missing_labels_are_counted_and_classes_are_levels(self, table, tmp_path):
        frame = pd.read_csv(table).astype({"effusion": object})
        frame.loc[:4, "effusion"] = -1
        frame.loc[5:7, "effusion"] = None
        frame.to_csv(table.with_name("raw.csv"), index=False)
        assert (
            main(["table1", str(table.with_name("raw.csv")), "--label_column", "effusion", "--to", str(tmp_path)]) == 0
        )
        counts = json.loads((tmp_path / "table1.json").read_text())["levels"]["effusion (images)"]
        assert (counts["uncertain"]["all"], counts["missing"]["all"]) == (5, 3)
        assert main(["table1", str(table), "--label_column", "kind", "--to", str(tmp_path)]) == 0
        counts = json.loads((tmp_path / "table1.json").read_text())["levels"]["class (images)"]
        assert {level: c["all"] for level, c in counts.items()} == frame["kind"].value_counts().to_dict()

    def test_rows_without_patient_count_as_their_own_and_are_named(self):
        rows = pd.DataFrame(
            {"patient_id": ["a", "a", None, None], "split": ["train"] * 4, "view": ["PA", None, "", "AP"]}
        )
        found = describe_data(rows)
        assert found["totals"]["patients"] == {"train": 3, "all": 3}
        assert found["totals"]["studies"]["all"] == "missing"
        assert found["levels"]["view (images)"]["missing"]["all"] == 2
        assert "2 rows have no patient id and count as a patient each." in found["notes"]

    def test_a_cache_gives_what_it_knows_and_a_table_takes_the_split_of_a_cache(self, tmp_path, table, pretrained_run):
        assert main(["table1", str(pretrained_run / "embeddings"), "--to", str(tmp_path)]) == 0
        found = json.loads((tmp_path / "table1.json").read_text())
        assert found["totals"]["images"]["all"] == 160
        assert found["totals"]["patients"]["all"] == 60
        assert "sex is not known." in found["notes"]
        cache = str(pretrained_run / "embeddings")
        assert main(["table1", str(table), "--cache", cache, "--to", str(tmp_path)]) == 0
        found = json.loads((tmp_path / "table1.json").read_text())
        # Source rows 0 to 59 of the cache are its training patients of the first 60 texts.
        assert found["totals"]["images"]["all"] == 60
        assert found["splits"] == ["train", "all"]

    def test_small_cells_are_hidden_everywhere(self):
        generator = np.random.default_rng(0)
        rows = pd.DataFrame(
            {
                "patient_id": [f"p{row}" for row in range(60)],
                "split": ["train"] * 40 + ["test"] * 17 + ["validation"] * 3,
                "sex": generator.choice(["F", "M"], 60),
                "age": generator.integers(20, 90, 60).astype(float),
            }
        )
        rows.loc[[1, 45], "sex"] = None
        found = describe_data(rows, {"nodule": ["positive"] * 2 + ["negative"] * 58}, min_count=5)
        page = markdown(found, 5)
        shown = [int(number) for line in page.splitlines() if line.startswith("|") and "age" not in line
                 for number in re.findall(r"(?<![<.\d])\b(\d+)\b(?!\.\d| %)", line)]  # fmt: skip
        assert all(number == 0 or number >= 5 for number in shown), page
        assert found["totals"]["patients"]["validation"] == "<5"
        assert found["age"]["validation"]["median"] is None
        assert "<5" in page
        assert "Counts below 5 are hidden" in page

    @settings(max_examples=200, deadline=None)
    @given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31), st.integers(2, 6))
    def test_no_small_count_comes_back_by_subtraction(self, levels, splits, seed, min_count):
        grid = np.random.default_rng(seed).integers(0, 3 * min_count, (levels, splits))
        totals = hidden_totals(grid.sum(0), min_count)
        whole = np.concatenate([grid, grid.sum(1, keepdims=True)], axis=1)
        whole = np.concatenate([whole, whole.sum(0, keepdims=True)])
        hidden = np.concatenate([suppress(grid, totals, min_count), totals[None]])
        small = (whole > 0) & (whole < min_count)
        assert hidden[small].all()
        # Every line adds up to its last entry: one with a single unknown tells it, and so on until nothing is told.
        unknown, before = hidden.copy(), None
        while before is None or (unknown != before).any():
            before = unknown.copy()
            for line in [*unknown, *unknown.T]:
                if line.sum() == 1:
                    line[:] = False
        assert (unknown | ~small).all()


class TestChecklists:
    def test_all_items_are_there_once(self):
        counts = {name: [item["item"] for section in load_checklist(name)["sections"] for item in section["items"]]
                  for name in CHECKLISTS}  # fmt: skip
        assert counts["claim_2024"] == [str(number) for number in range(1, 45)]
        assert len(counts["tripod_ai"]) == len(set(counts["tripod_ai"])) == 52
        assert {re.match(r"\d+", item)[0] for item in counts["tripod_ai"]} == {str(number) for number in range(1, 28)}

    @pytest.mark.parametrize("name", CHECKLISTS)
    def test_without_facts_every_item_is_left_to_the_authors(self, name):
        page = fill(load_checklist(name), {})
        items = [line for line in page.splitlines() if re.match(r"\| \d", line)]
        assert items
        assert all(line.endswith(f"|  | {TO_BE_FILLED} |") for line in items)
        assert "DRAFT" in page.splitlines()[0]

    def test_a_pretraining_run_fills_what_its_files_say(self, pretrained_run, tmp_path, capsys):
        assert main(["checklists", str(pretrained_run), "--to", str(tmp_path)]) == 0
        page = (tmp_path / "claim_2024.md").read_text()
        lines = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if re.match(r"\| \d", line)}
        retrieval = json.loads((pretrained_run / "retrieval.json").read_text())
        record = json.loads((pretrained_run / "run.json").read_text())
        assert f"mean_recall {retrieval['metrics']['mean_recall']:.3f}" in lines["37"]
        assert f"learning_rate {record['training_arguments']['learning_rate']}" in lines["25"]
        assert "0 of 60 known patients are in more than one split" in lines["20"]
        assert f"torch {record['versions']['torch']}" in lines["23"]
        assert record["inputs"]["split_hash"] in lines["19"]
        for item in ("3", "5", "7", "11", "13", "14", "16", "33", "34", "38", "44"):
            assert lines[item].endswith(f"|  | {TO_BE_FILLED} |"), item
        assert lines["37"].endswith(f"{TO_BE_CHECKED} |")

    def test_facts_follow_the_record_and_vanish_with_it(self, pretrained_run, tmp_path):
        import shutil

        copy = shutil.copytree(
            pretrained_run, tmp_path / "run", ignore=shutil.ignore_patterns("embeddings", "checkpoint-*")
        )
        path = copy / "run.json"
        record = json.loads(path.read_text())
        record["training_arguments"] |= {"learning_rate": 0.0625, "load_best_model_at_end": False}
        path.write_text(json.dumps(record))
        (copy / "retrieval.json").unlink()
        facts = run_facts(copy)
        assert "learning_rate 0.0625" in facts["training"]
        assert facts["selection"].startswith("The last checkpoint")
        assert {"performance", "internal", "metrics", "uncertainty", "exclusions", "disjoint", "missing"}.isdisjoint(
            facts
        )

    def test_downstream_results_fill_performance_and_external_evaluation(self, tmp_path):
        from adaptor_hf.evaluation import classification_predictions
        from adaptor_hf.evaluation.results import write_run

        generator = np.random.default_rng(0)
        labels = generator.integers(0, 2, (40, 1)).astype(float)
        predictions = classification_predictions(
            [f"i{row}" for row in range(40)], [f"p{row // 2}" for row in range(40)], labels,
            np.clip(0.6 * labels + 0.4 * generator.random((40, 1)), 0, 1), problem_type="multi_label_classification",
            class_names=["effusion"], num_resamples=20,
        )  # fmt: skip
        fields = {"system": "adaptor", "task": "classification", "dataset": "boxes", "split_hash": "abc", "seed": 0,
                  "protocol": "linear", "tower_saw_dataset": "unknown", "fraction": 1.0}  # fmt: skip
        for name, more in {"one": {}, "two": {"test_set": "elsewhere"}}.items():
            written = write_run(tmp_path / "runs" / name, predictions, fields | more)
        pages = write_checklists(tmp_path, tmp_path / "drafts")
        text = pages[0].read_text()
        value = next(line["value"] for line in written if line["metric"] == "auroc")
        line37 = next(line for line in text.splitlines() if line.startswith("| 37 "))
        line33 = next(line for line in text.splitlines() if line.startswith("| 33 "))
        assert f"auroc {value:.3f}" in line37
        assert "elsewhere" in line33
        assert "elsewhere" not in line37

    def test_a_folder_without_a_run_is_an_error(self, tmp_path, capsys):
        assert main(["checklists", str(tmp_path)]) == 1
        assert "neither run.json" in capsys.readouterr().err


class TestPages:
    def test_the_dependency_page_lists_those_of_pyproject_with_their_bounds(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        needed = {("", *split_requirement(line)) for line in project["dependencies"]}
        for extra, lines in project["optional-dependencies"].items():
            needed |= {(extra, *split_requirement(line)) for line in lines if not line.startswith(project["name"])}
        page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
        rows = [
            [cell.strip(" `") for cell in line.strip("|").split("|")] for line in page.splitlines() if "| `" in line
        ]
        assert {(extra, name, frozenset(bound.split(","))) for name, bound, extra, *_ in rows} == needed
        assert all(version and license_name for *_, version, license_name in rows)

    def test_the_command_lists_what_is_installed(self, capsys):
        assert main(["dependencies"]) == 0
        shown = capsys.readouterr().out
        assert f"| `numpy` | `>=2.0` |  | {np.__version__} | " in shown

    def test_the_threat_model_names_tests_that_exist(self):
        page = (ROOT / "docs/threat_model.md").read_text(encoding="utf-8")
        named = re.findall(r"`(tests/\w+\.py)::(?:Test\w+::)?(\w+)`", page)
        tables = [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)]
        rows = [row for table in tables if table[0].endswith("| test |") for row in table[2:]]
        assert len(named) >= len(rows) > 30  # each row has a test
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test


def split_requirement(line: str) -> tuple[str, frozenset[str]]:
    name, bound = re.match(r"([\w.-]+)(.*)", line).groups()
    return name, frozenset(bound.split(","))
