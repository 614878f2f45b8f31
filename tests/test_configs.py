"""Packaged recipes and launch configs: found by name, parsed, and launching gives as many processes as it says."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from adaptor_hf.configs import (
    KINDS,
    accelerate_config,
    find_recipe,
    list_accelerate_configs,
    list_recipes,
    read_recipe,
)
from adaptor_hf.configs.__main__ import main
from adaptor_hf.training.script_arguments import parse_arguments

ROOT = Path(__file__).parent.parent
LAUNCHES = list_accelerate_configs()


def parsed(tmp_path: Path, *recipe: str) -> dict:
    """All arguments after `recipe`, by name."""
    groups = parse_arguments([*recipe, "--train_file", "x", "--output_dir", str(tmp_path)])
    values = {name: value for group in groups for name, value in vars(group).items()}
    return values | {name: {"name": "adaptor", **vars(values[name])} for name in ("aligner", "objective")}


@pytest.mark.parametrize("recipe", list_recipes())
def test_recipe_parses_to_its_values(recipe, tmp_path):
    values = parsed(tmp_path, "--recipe", recipe)
    for name, expected in yaml.safe_load(find_recipe(recipe).read_text(encoding="utf-8")).items():
        assert values[name] == (values[name] | expected if isinstance(expected, dict) else expected), name


def test_paper_recipe_is_the_default(tmp_path):
    default = parsed(tmp_path)
    recipe = read_recipe(find_recipe("paper"))
    assert recipe["aligner"] == default["aligner"]
    for name, value in recipe.items():
        assert default[name] == (default[name] | value if isinstance(value, dict) else value), name


def test_reference_recipe_swaps_the_directions_and_counts_the_batch_per_device(tmp_path):
    values = parsed(tmp_path, "--recipe", "reference_code")
    assert values["objective"]["image_to_text_weight"] == 0.25
    # What the trainer reads.
    assert (values["objective"]["positives"], values["positives"]) == ("pair", "pair")
    assert values["per_device_train_batch_size"] == 1024


def test_a_file_wins_over_a_packaged_recipe_of_its_name_and_options_over_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text("learning_rate: 0.5\nseed: 7\n", encoding="utf-8")
    for words in (["small.yaml"], ["--recipe", "small.yaml"], ["--recipe=small.yaml"]):
        values = parsed(tmp_path / "run", *words, "--seed", "8")
        assert (values["learning_rate"], values["seed"], values["num_train_epochs"]) == (0.5, 8, 50)
    # A name is the package's, whatever lies here.
    Path("small").mkdir()
    assert parsed(tmp_path / "run", "--recipe", "small")["num_train_epochs"] == 30


def test_what_is_not_there_is_refused_with_the_names_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ", ".join(list_recipes())
    with pytest.raises(ValueError, match=f"No pretrain recipe is called 'smal'. Packaged, by name: {names}"):
        find_recipe("smal")
    # A file that is not here is never another one.
    for path in (
        "small.yaml",
        "my/configs/recipes/small.yaml",
        "configs/recipes/smal.yaml",
        "configs/recipes/rsna.yaml",
    ):
        with pytest.raises(FileNotFoundError, match=f"no file {path} for the pretrain recipe. Packaged.*{names}"):
            find_recipe(path)
    with pytest.raises(ValueError, match="No downstream recipe is called 'small'"):
        find_recipe("small", "downstream")
    with pytest.raises(ValueError, match=f"No accelerate config is called 'two'. .*{', '.join(LAUNCHES)}"):
        accelerate_config("two")
    with pytest.raises(ValueError, match="--recipe needs a name"):
        parse_arguments(["--recipe"])
    with pytest.raises(ValueError, match="One recipe a command, got small and paper"):
        parse_arguments(["--recipe", "small", "--recipe=paper"])


@pytest.mark.parametrize(
    ("old", "kind", "name"),
    [
        ("configs/recipes/paper.yaml", "pretrain", "paper"),
        ("configs/recipes/downstream/rsna.yaml", "downstream", "rsna"),
        ("configs/recipes/downstream/sweep.yaml", "sweep", "tower_pairs"),
        ("configs/accelerate/two_t4.yaml", None, "two_t4"),
        (str(ROOT / "configs/recipes/paper.yaml"), "pretrain", "paper"),
    ],
)
def test_the_old_place_in_a_clone_leads_to_the_package_with_a_warning(old, kind, name):
    with pytest.warns(FutureWarning, match=rf"^configs/\S+ is now in the package, by the name {name};"):
        found = accelerate_config(old) if kind is None else find_recipe(old, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found == (accelerate_config(name) if kind is None else find_recipe(name, kind))


def test_the_command_lists_everything_and_prints_a_path_that_is_there(capsys):
    main([])
    shown = capsys.readouterr().out
    names = [name for kind in KINDS for name in list_recipes(kind)] + LAUNCHES
    # One name is one file, so that a name is enough.
    assert len(set(names)) == len(names)
    assert re.findall(r"^  (\w+)  +\S.*[.:]?$", shown, re.MULTILINE) == names
    for name in names:
        main([name])
        (path,) = capsys.readouterr().out.splitlines()
        assert Path(path).is_file()
        assert Path(path).stem == name
        (line,) = re.findall(rf"^  {name} +(.*)$", shown, re.MULTILINE)
        assert Path(path).read_text(encoding="utf-8").startswith(f"# {line}\n")
    with pytest.raises(SystemExit) as stopped:
        main(["two"])
    assert stopped.value.code == 1
    assert "nothing packaged is called 'two'. There are: paper, " in capsys.readouterr().err


@pytest.mark.parametrize("launch", LAUNCHES)
def test_launch_config_loads(launch):
    config = load_config_from_file(str(accelerate_config(launch)))
    processes = {"cpu": 1, "two_cpu": 2, "one_gpu": 1, "two_t4": 2, "multi_gpu": 4, "multi_node": 8}
    assert config.num_processes == processes[launch]
    # A T4 has no bf16; elsewhere the script chooses by the GPU, which it does only where nothing was asked for.
    assert config.mixed_precision == ("fp16" if launch == "two_t4" else "no")


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


@pytest.mark.parametrize(
    ("launch", "variables"),
    [pytest.param("cpu", {}, marks=pytest.mark.slow), ("two_cpu", {"ACCELERATE_USE_CPU": "true"})],
)
def test_launching_gives_the_ranks_it_says(launch, variables, tmp_path):
    script = tmp_path / "probe.py"
    script.write_text(PROBE, encoding="utf-8")
    config = accelerate_config(launch)
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
