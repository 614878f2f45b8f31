"""CONTRIBUTING.md: what it names exists, each kind has a recipe of at most two files, and its examples hold."""

import ast
import importlib
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from fixtures.planted import planted_datasets
from PIL import Image
from torch import nn

from adaptor_hf.objectives import Encoded, Gather, Objective, Side
from adaptor_hf.options.declared import declared_options

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
PROSE = CODE.sub("", PAGE)
SPANS = re.findall(r"`([^`\n]+)`", PROSE)
FOLDERS = ("adaptor_hf/", "tests/", "docs/", "benchmarks/", "examples/")
SECTIONS = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
KINDS = [
    *("A data set", "A tower preset", "A task", "A metric", "A control", "A protocol", "An objective", "A recipe"),
    *("A phantom layout", "A page of the documentation"),
]


def files_of(section: str) -> tuple[list[str], list[str]]:
    """Files to touch, and the test, as a section's first lines name them."""
    match = re.search(r"^Files: (?P<files>.+?)\.\sTest:\s(?P<test>.+?)\.\n\n", section, re.MULTILINE | re.DOTALL)
    assert match, "no line of the form 'Files: `a`, `b`. Test: `c`.'"
    return re.findall(r"`([^`]+)`", match["files"]), re.findall(r"`([^`]+)`", match["test"])


def example(kind: str) -> str:
    (match,) = CODE.finditer(SECTIONS[kind])
    return match["code"]


def names_in_the_package() -> set[str]:
    """All that Python files of the package and the scripts define, arguments too."""
    names = set()
    for path in [*(ROOT / "adaptor_hf").rglob("*.py"), *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def test_every_kind_has_a_recipe():
    assert list(SECTIONS) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_touches_at_most_two_files_and_a_test(kind):
    files, tests = files_of(SECTIONS[kind])
    assert 1 <= len(files) <= 2
    assert len(tests) == 1
    assert tests[0].startswith("tests/test_")
    for path in [*files, *tests]:
        others = list(ROOT.glob(path.replace("NAME", "*")))
        assert others, f"nothing is called like {path}"


def test_paths_on_the_page_exist():
    paths = [span for span in SPANS if span.startswith(FOLDERS) and " " not in span]
    assert len(paths) > 25
    assert [path for path in paths if not list(ROOT.glob(path.rstrip("/").replace("NAME", "*")))] == []


def test_commands_on_the_page_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = {span.split()[1] for span in SPANS if span.startswith("make ")}
    assert used
    assert used <= targets
    for module in re.findall(r"python -m (adaptor_hf[\w.]*)", PROSE):
        assert importlib.util.find_spec(f"{module}.__main__"), module


def test_names_on_the_page_exist():
    known = names_in_the_package()
    named = set()
    for span in SPANS:
        match = re.fullmatch(r"(?:--)?([A-Za-z_]\w*)(?:\([^()]*\))?", span)
        if match and match[1] not in ("NAME", "slow", "make") and not match[1].startswith("ADAPTOR_"):
            named.add(match[1])
    assert {"PublicDataset", "restricted", "PRESETS", "finish_run", "own_options", "LAYOUTS"} <= named | {
        "PublicDataset"
    }
    assert named - known - {"flickr8k"} == set()


@pytest.mark.parametrize(
    ("kind", "module", "declared"),
    [
        ("A tower preset", "towers.presets", lambda module: module.PRESETS),
        ("A task", "evaluation.tasks", lambda module: module.TASKS.values()),
        ("A metric", "evaluation.metrics", lambda module: module.METRICS.values()),
        ("A control", "evaluation.controls", lambda module: module.CONTROLS.values()),
        ("A protocol", "tasks.protocols", lambda module: module.PROTOCOLS.values()),
        ("A phantom layout", "phantom.layouts", lambda module: module.LAYOUTS.values()),
    ],
)
def test_an_example_is_what_the_file_declares(kind, module, declared):
    files, _ = files_of(SECTIONS[kind])
    assert f"adaptor_hf/{module.replace('.', '/')}.py" in files
    module = importlib.import_module(f"adaptor_hf.{module}")
    assert eval(example(kind), vars(module)) in list(declared(module))


def test_the_example_of_a_recipe_is_one_of_the_package():
    folder = ROOT / files_of(SECTIONS["A recipe"])[0][0]
    recipes = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in folder.parent.glob("*.yaml")]
    assert yaml.safe_load(example("A recipe")) in recipes


def test_the_example_of_a_data_set_loads_when_its_file_is_there(tmp_path):
    from adaptor_hf.data import load_public_dataset
    from adaptor_hf.data.terms import restricted_terms

    root = tmp_path / "images"
    root.mkdir()
    for number in range(30):
        Image.new("L", (8, 8), number).save(root / f"{number}.png")
    lines = ["file,patient,effusion", *(f"{number}.png,p{number // 2},{number % 2}" for number in range(30))]
    (root / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    code = example("A data set")
    with planted_datasets(tmp_path / "more", example_cxr=code):
        parts = load_public_dataset("example_cxr", root, cache_dir=tmp_path / "cache")
        assert restricted_terms("example_cxr") is None
    rows = [row for part in parts.values() for row in part]
    assert {row["image_id"]: row["labels"] for row in rows} == {f"{number}.png": number % 2 for number in range(30)}
    assert all(len({row["patient_id"] for row in part}) == len(part) / 2 for part in parts.values())
    with planted_datasets(tmp_path / "silent", example_cxr=code.replace("        restricted=False,\n", "")):
        assert restricted_terms("example_cxr") == {"example_cxr": "CC BY 4.0"}


def test_the_example_of_an_objective_is_what_it_says():
    namespace = {"torch": torch, "Objective": Objective, "Encoded": Encoded, "Gather": Gather}
    exec(example("An objective"), namespace)
    images, texts = nn.functional.normalize(torch.randn(2, 5, 3, dtype=torch.float64), dim=-1)
    (alpha,) = fields(declared_options(namespace["AlignmentObjective"]))
    assert (alpha.default, alpha.metadata["help"]) == (2.0, "Power of the distance.")
    objective = namespace["AlignmentObjective"](alpha=2)
    loss = {sign: objective(Encoded(Side(images), Side(sign * texts)), {}, Gather())["loss"].item() for sign in (1, -1)}
    expected = sum(2 - 2 * float(image @ text) for image, text in zip(images, texts, strict=True)) / 5
    assert loss[1] == pytest.approx(expected, rel=1e-12)
    # The squares of a chord and of the other one of its half circle.
    assert loss[1] + loss[-1] == pytest.approx(4)
