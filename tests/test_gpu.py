"""What holds on CUDA: bounds of the figures of benchmarks/gpu_all.py, which the CPU must hold too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from gpu_all import ROOT, SECTIONS, adaptor_differences, loss_differences, tower_cosines

CUDA = pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
])  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_outputs_gradients_and_loss_of_the_adaptor_are_those_of_float32_on_the_cpu(device):
    found = adaptor_differences(device)
    bounds = {"float32": (1 - 1e-6, 1 - 1e-5, 1e-5), "float16": (0.9999, 0.999, 1e-2), "bfloat16": (0.998, 0.99, 3e-2)}
    for precision, (outputs, gradients, loss) in bounds.items():
        assert found[f"Adaptor, {precision}: lowest cosine of outputs"] > outputs
        assert found[f"Adaptor, {precision}: cosine of gradients"] > gradients
        assert found[f"Adaptor, {precision}: relative error of the loss"] < loss
    assert found["Adaptor, bfloat16: lowest cosine of outputs"] < 1 - 1e-6, "bfloat16 did not run"


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_the_loss_in_blocks_is_the_loss(device):
    assert max(loss_differences(device).values()) < 1e-4


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("name", ["lite0", "minilm"])
def test_stored_embeddings_of_a_gpu_are_those_of_the_cpu(name, device):
    found = tower_cosines(name, device)
    assert len(found) == 2
    assert min(found.values()) > 0.999


@pytest.mark.slow
def test_the_sections_leave_one_file_and_a_failure_is_said_in_it(tmp_path):
    words = f"--device cpu --small --sections correctness extraction --output {tmp_path / 'gpu.json'}"
    subprocess.run([sys.executable, str(ROOT / "benchmarks/gpu_all.py"), *words.split()], check=True, cwd=tmp_path)
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert list(report["sections"]) == ["correctness", "extraction"]
    assert report["left_out"] == []
    assert report["sections"]["correctness"]["minilm: lowest cosine of stored text_tokens"] > 0.9999
    assert report["sections"]["extraction"]["images a second, a build from files, all tokens"] > 0
    assert set(SECTIONS) == {"correctness", "tests", "extraction", "pretrain"}
    words += " --minutes 0"
    subprocess.run([sys.executable, str(ROOT / "benchmarks/gpu_all.py"), *words.split()], check=True, cwd=tmp_path)
