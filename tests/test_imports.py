"""What `import adaptor_hf` loads."""

import subprocess
import sys
from pathlib import Path

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
