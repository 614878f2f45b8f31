"""What `import adaptor_hf` loads, and what the wheel holds."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = (
    "transformers.trainer",
    "datasets",
    "evaluate",
    "timm",
    "torchxrayvision",
    "sklearn",
    "pandas",
    "matplotlib",
    "pydicom",
)


def run_python(code: str, *arguments: str) -> str:
    """Standard output of `code` in a fresh process."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_import_leaves_heavy_packages_alone():
    # Some versions of transformers import scikit-learn by themselves: that is no doing of ours.
    code = """
import sys
from transformers import AutoModel, PreTrainedModel, ProcessorMixin
before = set(sys.modules)
import adaptor_hf
print(*[name for name in sys.argv[1:] if name in sys.modules and name not in before])
"""
    assert run_python(code, *HEAVY).split() == []


def test_top_level_modules_hold_the_same_objects():
    import adaptor_hf
    import configuration_adaptor
    import modeling_adaptor

    assert configuration_adaptor.AdaptorConfig is adaptor_hf.AdaptorConfig
    assert modeling_adaptor.AdaptorModel is adaptor_hf.AdaptorModel
    assert modeling_adaptor.AdaptorOutput is adaptor_hf.AdaptorOutput
    assert modeling_adaptor.AdaptorPreTrainedModel is adaptor_hf.AdaptorPreTrainedModel


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory) -> set[str]:
    """Names of the files in a wheel that was built from a copy of the sources, without network."""
    import shutil

    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, sources)
    for module in ROOT.glob("*.py"):
        shutil.copy(module, sources)
    shutil.copytree(ROOT / "adaptor_hf", sources / "adaptor_hf", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(sources)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_the_top_level_modules(wheel_names):
    names = ("configuration_adaptor", "modeling_adaptor", "train_downstream", "train_pretrain")
    assert {f"{name}.py" for name in names} <= wheel_names


def test_wheel_holds_every_module_and_data_file_of_the_package(wheel_names):
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "adaptor_hf").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected
    assert expected - wheel_names == set()


def test_wheel_holds_nothing_else(wheel_names):
    others = {name.split("/")[0] for name in wheel_names if ".dist-info/" not in name}
    assert others - {path.name for path in ROOT.glob("*.py")} == {"adaptor_hf"}


def test_wheel_names_the_licence(wheel_names):
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_names)
