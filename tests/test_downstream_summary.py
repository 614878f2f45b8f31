"""The terminal's table: what is marked, which baselines stand below it, what is said."""

import math

from adaptor_hf.tasks.runs import RunList
from adaptor_hf.tasks.summary import headline_table, summarize


def line(system: str, value: float, half: float = 0.05, **more):
    return {
        "system": system, "task": "classification", "metric": "auroc", "value": value, "ci_lo": value - half,
        "ci_hi": value + half, "trivial_baseline": 0.5, "trivial_name": "chance",
        "trivial_baselines": {"chance": {"value": 0.5}}, "dataset": "d", "test_set": None, "fraction": 1.0,
        "recipe": "r", "protocol": "linear", "seed": 0, "note": "", "run_notes": [], "predictions_sha256": system,
        "vision_tower": "v", "text_tower": None,
    } | more  # fmt: skip


def rows_of(lines) -> dict[str, str]:
    table = [row for row in headline_table(lines).splitlines()[2:] if row.startswith("|")]
    rows = [row.strip("| ").split(" | ") for row in table]
    return {next(cell for cell in row if cell in SYSTEMS or cell.startswith("trivial")): row[-1] for row in rows}


SYSTEMS = ("good", "poor", "unknown")


def test_only_what_is_not_above_its_best_baseline_is_marked():
    lines = [line("good", 0.7), line("poor", 0.54), line("unknown", 0.9, math.nan)]
    assert rows_of(lines) == {
        "good": "0.700 [0.650, 0.750]",
        "poor": "0.540 [0.490, 0.590] †",
        "unknown": "0.900 [n/a] †",
        "trivial: chance": "0.500",
    }


def test_each_test_set_has_its_own_baselines():
    lines = [line("good", 0.7), line("good", 0.7, test_set="e", trivial_baselines={"chance": {"value": 0.4}})]
    table = headline_table(lines).splitlines()
    assert [row for row in table if "trivial" in row] == [
        "| d |  |  | trivial: chance |  |  |  | 0.500 |",
        "| e |  |  | trivial: chance |  |  |  | 0.400 |",
    ]


def test_the_mark_is_explained_and_notes_are_said():
    said = summarize(RunList([line("good", 0.7), line("poor", 0.5, run_notes=["Odd."])]))
    assert "\n\n† Not above its best trivial baseline" in said
    assert "\n\nNote: poor, 100 %: Odd." in said
    assert "Note" not in summarize(RunList([line("good", 0.7)]))
