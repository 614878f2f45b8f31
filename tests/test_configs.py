"""Recipes parse, launch configs load, and launching gives as many processes as it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from adaptor_hf.training.recipe import parse_arguments

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))
LAUNCHES = sorted((CONFIGS / "accelerate").glob("*.yaml"))


def parsed(tmp_path: Path, *recipe: str) -> dict:
    """All arguments after `recipe`, by name."""
    groups = parse_arguments([*recipe, "--train_file", "x", "--output_dir", str(tmp_path)])
    return {name: value for group in groups for name, value in vars(group).items()}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses_to_its_values(recipe, tmp_path):
    values = parsed(tmp_path, str(recipe))
    for name, expected in yaml.safe_load(recipe.read_text(encoding="utf-8")).items():
        assert values[name] == expected, name


def test_paper_recipe_is_the_default(tmp_path):
    default = parsed(tmp_path)
    for name, value in yaml.safe_load((CONFIGS / "recipes/paper.yaml").read_text(encoding="utf-8")).items():
        assert default[name] == value, name


def test_reference_recipe_swaps_the_directions_and_counts_the_batch_per_device(tmp_path):
    values = parsed(tmp_path, str(CONFIGS / "recipes/reference_code.yaml"))
    assert values["image_to_text_weight"] == 0.25
    assert values["positives"] == "pair"
    assert values["per_device_train_batch_size"] == 1024


@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda path: path.stem)
def test_launch_config_loads(launch):
    config = load_config_from_file(str(launch))
    processes = {"cpu": 1, "two_cpu": 2, "one_gpu": 1, "two_t4": 2, "multi_gpu": 4, "multi_node": 8}
    assert config.num_processes == processes[launch.stem]
    # A T4 has no bf16; elsewhere the script chooses by the GPU, which it does only where nothing was asked for.
    assert config.mixed_precision == ("fp16" if launch.stem == "two_t4" else "no")


PROBE = """
import json, sys, torch.distributed as dist
from pathlib import Path
from adaptor_hf.training import AdaptorTrainingArguments

folder = Path(sys.argv[1])
arguments = AdaptorTrainingArguments(output_dir=str(folder))
ready = dist.is_initialized()
found = {
    "world": dist.get_world_size() if ready else 1,
    "backend": dist.get_backend() if ready else None,
    "device": arguments.device.type,
    "per_device": arguments.per_device_train_batch_size,
    "world_of_arguments": arguments.world_size,
}
(folder / f"rank-{arguments.process_index}.json").write_text(json.dumps(found))
if ready:
    dist.barrier()  # a rank that leaves at once can cut off one that is still connecting
    dist.destroy_process_group()
"""


@pytest.mark.parametrize(("launch", "variables"), [("cpu", {}), ("two_cpu", {"ACCELERATE_USE_CPU": "true"})])
def test_launching_gives_the_ranks_it_says(launch, variables, tmp_path):
    script = tmp_path / "probe.py"
    script.write_text(PROBE, encoding="utf-8")
    config = CONFIGS / "accelerate" / f"{launch}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    result = subprocess.run(
        [*command, str(script), str(tmp_path)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("rank-*.json"))]
    world = 2 if launch == "two_cpu" else 1
    backend = "gloo" if world == 2 else None
    expected = {"world": world, "backend": backend, "device": "cpu", "per_device": 1024 // world}
    assert found == [{**expected, "world_of_arguments": world}] * world
