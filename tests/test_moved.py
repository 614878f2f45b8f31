"""Modules and names that have moved: the old ones work for one release, with a warning, and nothing here uses them."""

import ast
import importlib
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rooms import targets_of

from adaptor_hf.moved import MOVED, MOVED_NAMES, REPLACED_NAMES, install, new_name

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(old for old, new in MOVED.items() if (ROOT / new.replace(".", "/") / "__main__.py").is_file())


@pytest.fixture(autouse=True)
def forgotten():
    """Each test imports old names as if for the first time, and leaves none behind."""

    def forget() -> None:
        for name in [name for name in sys.modules if new_name(name) is not None]:
            parent, _, last = name.rpartition(".")
            del sys.modules[name]
            if parent in sys.modules:  # else it went a moment ago, and its names with it
                vars(sys.modules[parent]).pop(last, None)

    forget()
    yield
    forget()


def imported(name: str) -> tuple[object, list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = importlib.import_module(name)
    return module, [one for one in caught if issubclass(one.category, FutureWarning) and " is now " in str(one.message)]


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_name_is_the_module_itself_and_says_so_once(old, new):
    expected = importlib.import_module(new)
    imported(old.rpartition(".")[0])
    module, said = imported(old)
    assert module is expected
    assert [str(one.message) for one in said] == [f"{old} is now {new}; the old name goes with the next release."]
    assert module.__name__ == module.__spec__.name == new
    assert imported(old) == (expected, [])
    assert importlib.import_module(new) is expected


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_what_lies_below_an_old_name_is_the_same_too(old, new):
    below = sorted(path.stem for path in (ROOT / new.replace(".", "/")).glob("[a-z]*.py"))
    for name in below:
        own = new_name(f"{old}.{name}")
        if own == f"{new}.{name}":
            module, said = imported(f"{old}.{name}")
            assert module is importlib.import_module(own)
            assert module.__spec__.name == own
            assert f"{old}.{name} is now {own};" in str(said[-1].message)


def test_the_warning_points_to_the_line_that_uses_the_old_name():
    with pytest.warns(FutureWarning, match="adaptor_hf.data.local is now") as caught:
        import adaptor_hf.data.local  # noqa: F401
    (said,) = [one for one in caught if "adaptor_hf.data.local is now" in str(one.message)]
    assert said.filename == __file__


@pytest.mark.parametrize("old", MOVED)
def test_a_module_that_never_was_is_missing_as_any_other(old):
    imported(old)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ModuleNotFoundError, match=re.escape(f"No module named '{old}.nothing'")) as raised:
            importlib.import_module(f"{old}.nothing")
    assert raised.value.name == f"{old}.nothing"
    assert f"{old}.nothing" not in sys.modules


def test_a_name_that_only_begins_like_an_old_one_has_not_moved():
    assert new_name("adaptor_hf.downstreams") is None
    assert new_name("adaptor_hf.data.locals") is None
    assert new_name("other.downstream") is None
    assert new_name("adaptor_hf.downstream.probe") == "adaptor_hf.tasks.probe"
    assert new_name("adaptor_hf.downstream.recipes") == "adaptor_hf.tasks.protocols"


def test_no_new_name_is_an_old_one():
    assert [new for new in MOVED.values() if new_name(new) is not None] == []
    for old, new in MOVED.items():
        path = ROOT / old.replace(".", "/")
        assert not path.with_suffix(".py").exists(), f"{old} is there, and is said to be {new}"
        assert not (path / "__init__.py").exists(), f"{old} is there, and is said to be {new}"


def test_installed_twice_is_once():
    before = list(sys.meta_path)
    install()
    assert sys.meta_path == before


@pytest.mark.parametrize("old", COMMANDS)
def test_an_old_command_runs_and_names_the_new_one(old, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [old, "--help"])
    with pytest.warns(FutureWarning) as caught, pytest.raises(SystemExit) as stopped:
        # As `python -m` does it.
        runpy.run_module(old, run_name="__main__", alter_sys=True)
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage:")
    assert any(f"{old} is now {MOVED[old]};" in str(one.message) for one in caught)


@pytest.mark.slow
def test_an_old_command_runs_in_a_process_of_its_own():
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-m", "adaptor_hf.data.phantom", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage:")
    assert "adaptor_hf.data.phantom is now adaptor_hf.phantom;" in result.stderr


OLD = {*MOVED_NAMES, *REPLACED_NAMES}
OLD |= {f"{new_name(place) or place}.{name}" for place, _, name in (old.rpartition(".") for old in OLD)}


def is_old(name: str) -> bool:
    """Whether a dotted name is, or lies in, a module or a name that has moved."""
    parts = name.split(".")
    return new_name(name) is not None or any(".".join(parts[:n]) in OLD for n in range(len(parts), 1, -1))


def uses_of_old_names(text: str, module: str | None = None) -> set[str]:
    """Old names that a text mentions: whole, as a path, imported in two parts, or, in a module, in any way."""
    names = {match.group().replace("/", ".") for match in re.finditer(r"\badaptor_hf(?:[./]\w+)+", text)}
    for source, imported in re.findall(r"\bfrom (adaptor_hf[\w.]*) import (\([^)]*\)|[^\n(]+)", text):
        names |= {f"{source}.{name}" for name in re.findall(r"\w+", imported)}
    if module is not None:
        names |= names_in_code(ast.parse(text), module)
    return {name for name in names if is_old(name)}


def names_in_code(tree: ast.AST, module: str) -> set[str]:
    """Whole names of what a module imports, and of the attributes that it takes of them."""
    nodes, places = list(ast.walk(tree)), {}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            wholes = targets_of(node, module.removesuffix(".__init__"), module.endswith(".__init__"))
            places |= {alias.asname or alias.name: whole for alias, whole in zip(node.names, wholes, strict=True)}
    found = set(places.values())
    for node in nodes:
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in places:
            found.add(".".join([places[node.id], *reversed(parts)]))
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import adaptor_hf.downstream",
        "from adaptor_hf import downstream as tasks",
        "from adaptor_hf.data.local import load",
        "from adaptor_hf.data import splits, local",
        "from adaptor_hf.data import (\n    local,\n    splits,\n)",
        "# python -m adaptor_hf.data.phantom --n 3",
        "# see adaptor_hf/downstream/probe.py",
        "from adaptor_hf.data import load_local_dataset",
        "from adaptor_hf.training.controls import (\n    Variant,\n)",
        "from .controls import Variant",
        "from ..private_mode import private_rows as rows",
        "from ..privacy.mode import private_rows as rows",
        "import adaptor_hf.evaluation.scoring as scoring\nscoring.interval_recipes()",
        "from . import controls as kept\nkept.train_variants(1)",
        "from adaptor_hf.evaluation import draws\nresiduals = draws.without(1, 2)",
        'monkeypatch.setattr("adaptor_hf.evaluation.figures.look", None)',
    ],
)
def test_every_way_to_use_an_old_name_is_seen(text):
    assert uses_of_old_names(text, "adaptor_hf.training.report")


@pytest.mark.parametrize(
    "text",
    [
        "from adaptor_hf.training.controls import train_controls",
        "from . import controls\ncontrols.Variation",
        "class Variant: pass",
        "from adaptor_hf.evaluation import draws\ndraws.gather_draws()",
    ],
)
def test_what_is_called_otherwise_is_no_use(text):
    assert uses_of_old_names(text, "adaptor_hf.training.report") == set()


def test_nothing_here_uses_an_old_name():
    found = {}
    places = [
        *ROOT.glob("*.md"), *ROOT.glob("*.py"), *ROOT.glob("*.toml"), ROOT / "Makefile",
        *(path for room in ("adaptor_hf", "benchmarks", "configs", "docs", "examples", "tests")
          for path in (ROOT / room).rglob("*")),
    ]  # fmt: skip
    excepted = {
        ROOT / "CHANGELOG.md",
        ROOT / "adaptor_hf/moved.py",
        Path(__file__),
        Path(__file__).with_name("test_old_names.py"),
    }
    for path in places:
        if path in excepted or path.suffix not in (".py", ".md", ".toml", ".yaml", ".yml", ".json", ".sh", ""):
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts) if path.suffix == ".py" else None
        if path.is_file() and (names := uses_of_old_names(path.read_text(encoding="utf-8"), module)):
            found[path.relative_to(ROOT).as_posix()] = sorted(names)
    assert found == {}
