"""Commands of the page on downstream evaluation are understood, and its options, recipes and prompt sets are there."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

from adaptor_hf.tasks.arguments import DownstreamArguments, parse_arguments
from adaptor_hf.tasks.prompts import list_prompt_sets
from adaptor_hf.tasks.protocols import PROTOCOLS
from adaptor_hf.tasks.run import TASK_FUNCTIONS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/downstream.md").read_text(encoding="utf-8")


def test_commands_are_understood():
    lines = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ").splitlines()
    commands = [words[2:] for words in map(shlex.split, lines) if words[:2] == ["python", "train_downstream.py"]]
    assert len(commands) >= 3
    for words in commands:
        recipe = [str(ROOT / words[0])] if words[0].endswith(".yaml") else []
        parse_arguments([*recipe, *words[len(recipe) :]])


def test_options_tasks_recipes_and_prompts_in_the_text_are_those_of_the_package():
    known = {option.name for option in fields(DownstreamArguments)}
    named = {
        option for span in re.findall(r"`train_downstream\.py([^`]*)`", PAGE) for option in re.findall(r"--(\w+)", span)
    }
    assert named
    assert named <= known
    assert re.findall(r"^\| `(\w+)` \| (?:labels|masks|reports)", PAGE, re.MULTILINE) == [
        "classification", "segmentation", "zero_shot", "retrieval", "few_shot", "text_understanding",
    ]  # fmt: skip
    assert set(TASK_FUNCTIONS) == {"classification", "segmentation", "zero_shot", "retrieval", "few_shot",
                                   "text_understanding"}  # fmt: skip
    rows = re.findall(r"^\| `(\w+)` \| (?:linear|mlp2)", PAGE, re.MULTILINE)
    assert {"rigorous", *rows} == set(PROTOCOLS)
    sets = PAGE.partition("Sets in the package:")[2].partition("\n\n")[0].partition("JSON")[0]
    assert sorted(re.findall(r"`(\w+)`", sets)) == list_prompt_sets()
