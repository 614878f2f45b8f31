"""Rooms depend downwards only, and no imports go round in a circle, not even inside functions."""

import shutil
from pathlib import Path

import pytest
from rooms import ROOMS, faults_of

import adaptor_hf

PACKAGE = Path(adaptor_hf.__file__).parent


def test_no_room_climbs_and_no_imports_go_in_circles():
    assert faults_of(PACKAGE) == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, tmp_path / "adaptor_hf", ignore=shutil.ignore_patterns("__pycache__")))


def plant(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text(encoding='utf-8')}\n\ndef planted():\n    {line}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("data/splits.py", "from ..training.trainer import AdaptorTrainer", "climbs from data to adaptor_hf.training"),
        ("data/splits.py", "import adaptor_hf.embeddings.build", "climbs from data to adaptor_hf.embeddings.build"),
        ("modeling_adaptor.py", "from .towers import presets", "climbs from flat to adaptor_hf.towers.presets"),
        ("tasks/run.py", "from .__main__ import main", "imports the entry point adaptor_hf.tasks.__main__"),
        ("data/splits.py", "from .. import AdaptorModel", "climbs from data to adaptor_hf"),
    ],
)
def test_a_planted_climb_is_found_inside_a_function_too(copy, file, line, fault):
    plant(copy / file, line)
    assert [found for found in faults_of(copy) if fault in found]


def test_a_planted_cycle_inside_a_room_is_found(copy):
    plant(copy / "evaluation/predictions.py", "from .scoring import score_predictions")
    predictions, scoring = "adaptor_hf.evaluation.predictions", "adaptor_hf.evaluation.scoring"
    assert f"cycle: {predictions} -> {scoring} -> {predictions}" in faults_of(copy)


def test_a_new_room_needs_a_place(copy):
    (copy / "attic").mkdir()
    (copy / "attic/old.py").write_text("", encoding="utf-8")
    assert [found for found in faults_of(copy) if "room attic, which has no place" in found]


def test_every_place_has_a_room():
    names = {path.stem for path in PACKAGE.glob("*.py")} | {
        ".".join(path.relative_to(PACKAGE).parts) for path in PACKAGE.rglob("*") if path.is_dir()
    }
    assert set(ROOMS) - {"flat"} <= names
