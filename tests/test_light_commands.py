"""Help and wrong arguments of commands load neither torch nor transformers, and their options are the scripts' own."""

import argparse
import copy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from transformers import HfArgumentParser

from adaptor_hf.data.pair_arguments import DataArguments
from adaptor_hf.options.arguments import add_field
from adaptor_hf.options.fields import own_metadata
from adaptor_hf.privacy.mode import PrivacyArguments
from adaptor_hf.tasks.arguments import DownstreamArguments

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "datasets", "pandas", "timm", "torchxrayvision", "peft", "sklearn", "matplotlib"}


def started(*words: str) -> tuple[int, str, set[str]]:
    """Exit status of a Python process, what it said, and every module that it has imported."""
    command = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    lines = done.stderr.splitlines()
    loaded = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = "\n".join([done.stdout, *(line for line in lines if not line.startswith("import time:"))])
    return done.returncode, said, loaded


def test_modules_are_seen_at_all():
    _, _, loaded = started("-c", "import adaptor_hf")
    assert {"torch", "transformers", "adaptor_hf.modeling_adaptor"} <= loaded


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("data --help", 0, "index_dicom"),
        ("data check --help", 0, "--patient_column COLUMN"),
        ("data index_dicom --help", 0, "--key_file PATH"),
        ("data index_dicom nowhere", 2, "required: --to"),
        ("data check rsna", 2, "NAME and ROOT of a public data set"),
        ("data chek", 2, "invalid choice: 'chek'"),
        ("phantom --help", 0, "--contact_sheet"),
        ("phantom out --layout nope", 2, "invalid choice: 'nope'"),
        ("phantom out --n many", 2, "invalid int value: 'many'"),
        ("embeddings --help", 0, "info"),
        ("embeddings info --help", 0, "cache_dir"),
        ("embeddings info", 2, "required: cache_dir"),
        ("embeddings info nowhere", 1, "error: nowhere is no folder of a cache"),
        ("embeddings verify nowhere", 1, "error: nowhere is no folder of a cache"),
        ("embeddings build --help", 0, "--vision_tower TOWER"),
        ("embeddings build table.csv", 1, "Give --vision_tower, --text_tower, or both"),
        ("embeddings build --vision_tower lite0", 1, "Give a table (SOURCE), or --dataset"),
        ("embeddings build a.csv --vision_tower lite0 --words", 1, "--words would have no effect without --text_tower"),
        ("embeddings build a.csv --vision_tower lite0 --regions 3", 1, "--regions '3': expected rows and columns"),
        ("configs --help", 0, "print the path"),
        ("prediction --help", 0, "--image_folder FOLDER"),
        ("prediction --model m --output_dir o", 1, "Give one source of images: --table, --image_folder or"),
        ("prediction --model m --output_dir o --image_folder i --template x", 1, "--template is for --classes"),
    ],
)
def test_help_and_wrong_arguments_come_before_heavy_packages(words, status, message):
    found, said, loaded = started("-m", f"adaptor_hf.{words.split()[0]}", *words.split()[1:])
    assert (found, message in said) == (status, True), said
    assert not HEAVY & loaded


def test_a_command_that_works_on_towers_knows_their_names(tmp_path):
    # The classes and presets come with the package's classes, which this command leaves until they are needed.
    (tmp_path / "pairs.csv").write_text("image,text\nnone.png,a\n", encoding="utf-8")
    words = ("build", str(tmp_path / "pairs.csv"), "--cache_dir", str(tmp_path / "c"), "--vision_tower", "lite9",
             "--text_column", "text")  # fmt: skip
    status, said, loaded = started("-m", "adaptor_hf.embeddings", *words)
    assert status == 1
    assert "tower 'lite9' is no preset (" in said, said
    assert "torch" in loaded


def test_names_of_the_package_come_from_a_light_command_too():
    code = "import sys; sys.argv[0] = '-m'; sys.orig_argv.append('adaptor_hf.data'); import adaptor_hf; "
    code += "print('torch' in sys.modules, adaptor_hf.AdaptorModel.__name__, adaptor_hf.AdaptorConfig.model_type)"
    status, said, _ = started("-c", code)
    assert (status, said.split()) == (0, ["False", "AdaptorModel", "adaptor"])


@pytest.mark.parametrize("declared", [DataArguments, PrivacyArguments, DownstreamArguments])
def test_options_of_commands_are_those_that_transformers_makes_of_the_same_fields(declared):
    hints = get_type_hints(declared)
    compared = 0
    for item in fields(declared):
        if hints[item.name] in (bool, bool | None):
            continue
        one, other = copy.copy(item), copy.copy(item)
        one.type = other.type = hints[item.name]
        own = own_metadata(item)
        other.metadata = {name: value for name, value in item.metadata.items() if name not in own}
        ours, theirs = argparse.ArgumentParser(), argparse.ArgumentParser()
        action = add_field(ours, one)
        HfArgumentParser._parse_dataclass_field(theirs, other)
        (expected,) = theirs._actions[1:]
        for name in ("option_strings", "dest", "nargs", "const", "default", "type", "choices", "required", "help"):
            assert getattr(action, name) == getattr(expected, name), (item.name, name)
        compared += 1
    assert compared >= 1
