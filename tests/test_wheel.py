"""The source archive and the wheel are whole, and README's first commands run where only the wheel is installed."""

import csv
import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from test_docs import ROOT, blocks, commands

README = ROOT / "README.md"
MODULES = ("configuration_adaptor", "modeling_adaptor", "train_downstream", "train_pretrain")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Folder of a source archive, made of a copy of the sources, and of the wheel made of that archive, offline."""
    sources = tmp_path_factory.mktemp("sources")
    for path in (*ROOT.glob("*.py"), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))):
        shutil.copy(path, sources)
    shutil.copytree(ROOT / "adaptor_hf", sources / "adaptor_hf", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path_factory.mktemp("built")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, sources], folder)
    return folder


def run(command: list, folder: Path, **variables: str) -> str:
    """Standard output of a command, which must succeed, in another folder than the clone's."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(list(map(str, command)), cwd=folder, env=environment | variables, text=True,
                            capture_output=True, check=False)  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel_names(built) -> set[str]:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def files_of_the_package() -> set[str]:
    files = [path for path in (ROOT / "adaptor_hf").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(ROOT).as_posix() for path in files} | {f"{name}.py" for name in MODULES}


def test_wheel_and_source_archive_hold_every_module_and_data_file(built, wheel_names):
    expected = files_of_the_package()
    assert {Path(name).suffix for name in expected} >= {".py", ".json", ".md", ".yaml"}
    assert expected - wheel_names == set()
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        held = {name.partition("/")[2] for name in content.getnames()}
    assert {*expected, "LICENSE", "README.md", "pyproject.toml"} - held == set()


def test_wheel_holds_nothing_else(wheel_names):
    others = {name.split("/")[0] for name in wheel_names if ".dist-info/" not in name}
    assert others == {"adaptor_hf", *(f"{name}.py" for name in MODULES)}


def test_wheel_names_the_licence(wheel_names):
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_names)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """
    Runs a command in a folder of its own with an environment that has the wheel, and the libraries of this one but not
    what is installed here of the project.
    """
    environment = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", environment], environment)
    python = environment / "bin" / "python"
    (packages,) = environment.glob("lib/python*/site-packages")
    # As lines of a .pth file these are places only: an editable install's own .pth files there are not read.
    (packages / "libraries.pth").write_text("\n".join([*site.getsitepackages(), site.getusersitepackages()]))
    (wheel,) = built.glob("*.whl")
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    run([sys.executable, "-m", "pip", "--python", python, "install", *options, wheel], environment)
    folder = tmp_path_factory.mktemp("elsewhere")
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"

    def start(*command: str) -> str:
        # Found as a shell finds it.
        return run([shutil.which(command[0], path=path), *command[1:]], folder, PATH=path, HF_HUB_OFFLINE="1")

    start.folder, start.environment = folder, environment
    return start


WHERE = """
import runpy, sys
from pathlib import Path
for name in ("adaptor-pretrain", "adaptor-downstream", "adaptor-predict"):
    for words in (["--help"], ["--recipe", "unknown.yaml"]):
        command = Path(sys.executable).parent / name
        sys.argv = [str(command), *words]
        try:
            runpy.run_path(str(command), run_name="__main__")
        except SystemExit as stopped:
            print("stopped", stopped.code)
from adaptor_hf.configs.__main__ import main
main([])
main(["two_t4"])
for name, module in sorted(sys.modules.items()):
    if name.split(".")[0].endswith(("adaptor", "adaptor_hf", "train_pretrain", "train_downstream")):
        print("imported", module.__file__)
"""


def test_the_commands_are_those_of_the_wheel_and_say_their_names(installed):
    said = installed("python", "-c", WHERE)
    for command, kind in (("adaptor-pretrain", "pretrain"), ("adaptor-downstream", "downstream")):
        assert f"usage: {command} [" in said
        assert f"\nstopped error: There is no file unknown.yaml for the {kind} recipe." in said
    assert "usage: adaptor-predict --model" in said
    assert said.count("\nstopped 0\n") == 3
    assert "train_pretrain.py" not in said.partition("\nimported ")[0]
    assert "\n  small " in said
    assert f"\n{installed.environment}/" in said
    files = [line.partition(" ")[2] for line in said.splitlines() if line.startswith("imported ")]
    assert len(files) > 100
    assert {"train_pretrain.py", "train_downstream.py"} <= {Path(file).name for file in files}
    assert [file for file in files if not file.startswith(f"{installed.environment}/")] == []


def test_the_first_commands_of_the_readme_run(installed):
    """As the page says them, on fewer pairs and for one epoch."""
    draw = "python -m adaptor_hf.phantom phantom --n 200"
    assert f"`{draw}`" in README.read_text(encoding="utf-8")
    installed(*draw.replace("200", "30").split(), "--image_size", "64")
    with open(installed.folder / "phantom/metadata.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(installed.folder / "pairs.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "report", "subject_id"])
        table.writerows([f"phantom/{row['image']}", row["text"], row["patient_id"]] for row in rows)
    train = next(command for command in commands(README) if command[0] == "adaptor-pretrain")
    assert "--recipe" in train
    said = installed(*train, "--num_train_epochs", "1", "--use_cpu")
    assert "Retrieval on the test split" in said
    (installed.folder / "demo-output").mkdir()
    (installed.folder / "demo-output/model").symlink_to(installed.folder / train[train.index("--output_dir") + 1])
    code = blocks(README, "python", marked=False)[0]
    said = installed("python", "-c", code)
    assert "tensor([[" in said
    assert "'label': 'The heart is enlarged.'" in said
