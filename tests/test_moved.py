"""Modules and names that have moved: the old ones work for one release, with a warning, and nothing here uses them."""

import importlib
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import adaptor_hf
from adaptor_hf.moved import MOVED, install, moved_names, new_name

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(old for old, new in MOVED.items() if (ROOT / new.replace(".", "/") / "__main__.py").is_file())


@pytest.fixture(autouse=True)
def forgotten():
    """Each test imports old names as if for the first time, and leaves none behind."""

    def forget() -> None:
        for name in [name for name in sys.modules if new_name(name) is not None]:
            parent, _, last = name.rpartition(".")
            del sys.modules[name]
            vars(sys.modules.get(parent, adaptor_hf)).pop(last, None)

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


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("adaptor_hf.evaluation.predictions", "digest", "adaptor_hf.files.file_sha256"),
        ("adaptor_hf.audit.run_record", "sha256", "adaptor_hf.files.file_sha256"),
        ("adaptor_hf.evaluation.classification", "f1_thresholds", "adaptor_hf.evaluation.thresholds.f1_thresholds"),
        ("adaptor_hf.evaluation.classification", "NUM_BINS", "adaptor_hf.evaluation.calibration.NUM_BINS"),
    ],
)
def test_an_old_name_in_a_module_is_the_new_one_with_a_warning(module, old, new):
    place, _, name = new.rpartition(".")
    with pytest.warns(FutureWarning, match=re.escape(f"{module}.{old} is now {new};")):
        found = getattr(importlib.import_module(module), old)
    assert found is getattr(importlib.import_module(place), name)
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        importlib.import_module(module).nothing  # noqa: B018


def test_the_warning_of_a_moved_name_points_to_its_use():
    get = moved_names("here", {"old": "adaptor_hf.moved.MOVED"})
    with pytest.warns(FutureWarning, match="here.old is now adaptor_hf.moved.MOVED") as caught:
        assert get("old") is MOVED
    assert caught[0].filename == __file__


def uses_of_old_names(text: str) -> set[str]:
    """Old names that a text mentions: as a module, as a path, or imported in two parts."""
    names = {match.group().replace("/", ".") for match in re.finditer(r"\badaptor_hf(?:[./]\w+)+", text)}
    for module, imported in re.findall(r"\bfrom (adaptor_hf[\w.]*) import (\([^)]*\)|[^\n(]+)", text):
        names |= {f"{module}.{name}" for name in re.findall(r"\w+", imported)}
    return {name for name in names if new_name(name) is not None}


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
    ],
)
def test_every_way_to_use_an_old_name_is_seen(text):
    assert uses_of_old_names(text)


def test_nothing_here_uses_an_old_name():
    found = {}
    places = [
        *ROOT.glob("*.md"), *ROOT.glob("*.py"), *ROOT.glob("*.toml"), ROOT / "Makefile",
        *(path for room in ("adaptor_hf", "benchmarks", "configs", "docs", "examples", "tests")
          for path in (ROOT / room).rglob("*")),
    ]  # fmt: skip
    excepted = {ROOT / "CHANGELOG.md", ROOT / "adaptor_hf/moved.py", Path(__file__)}
    for path in places:
        if path in excepted or path.suffix not in (".py", ".md", ".toml", ".yaml", ".yml", ".json", ".sh", ""):
            continue
        if path.is_file() and (names := uses_of_old_names(path.read_text(encoding="utf-8"))):
            found[path.relative_to(ROOT).as_posix()] = sorted(names)
    assert found == {}
