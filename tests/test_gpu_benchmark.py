"""benchmarks/gpu_pretrain.py is for a GPU; on the CPU and small it must work too, or it is broken when a GPU comes."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from gpu_pretrain import ROOT, naive_steps, run_script, summarize, write_data

SMALL = ("--aligner", '{"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}')


@pytest.mark.slow
def test_a_run_of_two_processes_and_the_baseline_give_rates_and_recall(tmp_path):
    options = Namespace(rows=96, held_out=32, epochs=1, batch=32, learning_rate=1e-3, naive_steps=2, device="cpu")
    files = write_data(tmp_path, options.rows, options.held_out)
    name = "eager, float32, seed 0"
    run = run_script(tmp_path, options, name, "--ddp_backend", "gloo", *SMALL, processes=2)
    assert "failed" not in run, run
    assert run["peak_memory_bytes"]["process"] > 0
    runs = {"naive": naive_steps(files, options), name: run, "wrong": {"failed": "what it said last"}}
    summary = summarize(runs)
    assert summary["failed"] == ["wrong"]
    assert summary["times_the_naive_rate"].keys() == summary["wall_seconds"].keys() == {name}
    low, high = summary["float32_recall_over_seeds"]
    assert 0 < low == high <= 1
    json.dumps(runs)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on the CPU")
def test_one_command_leaves_one_file(tmp_path):
    words = "--device cpu --rows 96 --held_out 32 --epochs 1 --batch 32 --seeds 1 --naive_steps 2"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_pretrain.py"), *words.split()]
    subprocess.run([*command, "--output", str(tmp_path / "gpu.json")], check=True, cwd=tmp_path)
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["device"] == "cpu"
    assert report["summary"]["failed"] == [], report["runs"]
    assert set(report["summary"]["wall_seconds"]) == {"eager", "compiled", "T4-like", "eager, float32, seed 0"}
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
