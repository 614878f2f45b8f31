"""Rooms depend downwards only, and no imports go round in a circle, not even inside functions."""

import re
import shutil
from pathlib import Path

import pytest
from rooms import BY_NAME, ROOMS, faults_of

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
        ("data/splits.py", "import_module('adaptor_hf.tasks.run')", "climbs from data to adaptor_hf.tasks.run"),
        ("data/splits.py", "import_module(f'{__package__}.public.rsna')", "climbs from data to adaptor_hf.data.public"),
        ("hub/push.py", "resolve_name('adaptor_hf.tasks.run:run_job')", "climbs from hub to adaptor_hf.tasks.run"),
    ],
)
def test_a_planted_climb_is_found_inside_a_function_too(copy, file, line, fault):
    plant(copy / file, line)
    assert [found for found in faults_of(copy) if fault in found]


def test_a_planted_cycle_inside_a_room_is_found(copy):
    plant(copy / "evaluation/predictions.py", "from .scoring import score_predictions")
    names = ("adaptor_hf.evaluation.predictions", "adaptor_hf.evaluation.scoring")
    found = faults_of(copy)
    assert found
    assert all(fault.startswith("cycle: ") and all(name in fault for name in names) for fault in found)


def test_a_new_room_needs_a_place(copy):
    (copy / "attic").mkdir()
    (copy / "attic/old.py").write_text("", encoding="utf-8")
    assert [found for found in faults_of(copy) if "room attic, which has no place" in found]


def test_every_place_has_a_room():
    names = {path.stem for path in PACKAGE.glob("*.py")} | {
        ".".join(path.relative_to(PACKAGE).parts) for path in PACKAGE.rglob("*") if path.is_dir()
    }
    assert set(ROOMS) - {"flat"} <= names


def test_the_page_on_architecture_shows_what_the_test_says(copy):
    page = (PACKAGE.parent / "docs/architecture.md").read_text(encoding="utf-8")
    plant(copy / "data/splits.py", "from ..training.trainer import AdaptorTrainer")
    plant(copy / "evaluation/predictions.py", "from .results import write_run")
    shown = page.partition("stops the tests with file and line:\n\n```\n")[2].partition("```")[0].splitlines()
    assert shown == [re.sub(r":\d+", ":LINE", fault) for fault in faults_of(copy)]
    assert all(f"`{a}`" in page and f"`{b}`" in page for a, b in BY_NAME)


def test_the_page_on_architecture_has_a_line_for_each_room_and_flat_file_in_their_order():
    page = (PACKAGE.parent / "docs/architecture.md").read_text(encoding="utf-8")
    tree = page.partition("adaptor_hf/\n")[2].partition("benchmarks/")[0]
    names = [line.split()[0].rstrip("/").removesuffix(".py") for line in tree.splitlines()]
    flat = {path.stem for path in PACKAGE.glob("*_adaptor.py")}
    assert {name for name in names if name in flat} == flat
    rooms = [name.replace("/", ".") for name in names if name not in flat and name != "*_adaptor"]
    assert rooms == [room for room in ROOMS if room != "flat"]
    assert all(len(line.split()) > 2 for line in tree.splitlines()), "a line says what is there"
