"""The scripts that docs/deviations.md names run, and print the numbers that it quotes."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROOFS = sorted((ROOT / "examples" / "proofs").glob("*.py"))


def run(name: str) -> dict:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / "proofs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main()


def test_one_token_attention():
    results = run("one_token_attention")
    assert results["change with another text"] == 0
    assert results["largest query or key gradient"] == 0
    assert results["parameters without gradient"] == 2_362_368
    assert results["reference, 16 rows or 8"] > 1e-3
    assert results["ours, 16 rows or 8"] < 1e-5


def test_losses():
    results = run("losses")
    assert results["reference code"] == pytest.approx(results["ours, image_to_text_weight=0.25"], abs=1e-5)
    assert results["paper, equation (4)"] == pytest.approx(results["ours, default"], abs=1e-5)
    assert abs(results["reference code"] - results["paper, equation (4)"]) > 1e-3
    # ln 2 on two of eight rows.
    assert results["perfect model, pair"] == pytest.approx(0.1733, abs=1e-4)
    assert results["perfect model, text"] == pytest.approx(0, abs=1e-6)
    missing = results["2048 with all negatives"] - results["2 x 1024 without gathering"]
    assert missing == pytest.approx(0.693, abs=0.01)


def test_recipe():
    results = run("recipe")
    assert results["learning rate at the end, 1 GPU"] == 0
    assert results["learning rate at the end, 2 GPUs"] == pytest.approx(0.5046, abs=1e-4)
    assert results["least learning rate of a head"] > 0.99
    assert results["text"] == "nodule of 5 cm no effusion"
    assert results["parameters that Trainer does not decay"] == 17_920
    assert results["parameters that AdaptorTrainer does not decay"] == 0


def test_padding():
    results = run("padding")
    for name in ("pooled vector", "normalised tokens"):
        assert results[f"{name}, reference, 4 or 12 positions"] > 1e-3
        assert results[f"{name}, ours, 4 or 12 positions"] < 1e-5


def test_every_proof_is_named_in_the_page_and_every_name_exists():
    page = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    for proof in PROOFS:
        assert f"examples/proofs/{proof.name}" in page
    for name in re.findall(r"examples/proofs/\w+\.py|tests/\w+\.py", page):
        assert (ROOT / name).is_file(), name
    for file, test in re.findall(r"(tests/\w+\.py) -k (\w+)", page):
        assert test in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no test {test}"
