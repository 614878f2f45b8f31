"""Commands of the page on downstream evaluation are understood; its options, protocols and prompt sets are there."""

import re
import shlex
from pathlib import Path

from adaptor_hf.evaluation.metrics import METRICS
from adaptor_hf.evaluation.tasks import NEEDS, TASKS
from adaptor_hf.tasks.arguments import option_parser, parse_arguments
from adaptor_hf.tasks.prompts import list_prompt_sets
from adaptor_hf.tasks.protocols import PROTOCOLS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/downstream.md").read_text(encoding="utf-8")
METRICS_TABLE = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8").partition("## Metrics")[2].partition("##")[0]


def test_commands_are_understood():
    lines = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ").splitlines()
    commands = [words[2:] for words in map(shlex.split, lines) if words[:2] == ["python", "train_downstream.py"]]
    assert len(commands) >= 3
    for words in commands:
        recipe = [str(ROOT / words[0])] if words[0].endswith(".yaml") else []
        parse_arguments([*recipe, *words[len(recipe) :]])


def test_options_tasks_protocols_and_prompts_in_the_text_are_those_of_the_package():
    known = {name.removeprefix("--") for name in option_parser()._option_string_actions}
    named = {
        option for span in re.findall(r"`train_downstream\.py([^`]*)`", PAGE) for option in re.findall(r"--(\w+)", span)
    }
    assert named
    assert named <= known
    tasks = re.findall(rf"^\| `(\w+)` \| ((?:{'|'.join(NEEDS)})[^|]*) \|", PAGE, re.MULTILINE)
    assert tasks == [(task.name, ", ".join(task.needs)) for task in TASKS.values()]
    rows = re.findall(r"^\| `(\w+)` \| (?:linear|mlp2)", PAGE, re.MULTILINE)
    assert {"rigorous", *rows} == set(PROTOCOLS)
    sets = PAGE.partition("Sets in the package:")[2].partition("\n\n")[0].partition("JSON")[0]
    assert sorted(re.findall(r"`(\w+)`", sets)) == list_prompt_sets()


def test_the_table_of_metrics_names_each_metric_and_trivial_baseline_that_is_declared():
    for name, metric in METRICS.items():
        assert re.search(rf"`{name}[^`]*`", METRICS_TABLE), name
        assert metric.trivial_baseline in METRICS_TABLE, name
