"""Names in pages: hostile ones stay text, tables keep their shape, and no link or HTML appears."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from synthetic import synthetic_config
from test_evaluation_results import FIELDS, of_labels

from adaptor_hf.audit.checklists import write_checklists
from adaptor_hf.audit.table1 import describe_data, markdown
from adaptor_hf.evaluation import classification_predictions
from adaptor_hf.evaluation.classification import MULTI
from adaptor_hf.evaluation.report import write_report
from adaptor_hf.evaluation.results import read_results, write_run
from adaptor_hf.evaluation.tables import Table
from adaptor_hf.hub.model_card import write_model_card
from adaptor_hf.hub.results_card import add_to_card
from adaptor_hf.markdown import one_line, plain, sentence, table_row, table_rule
from adaptor_hf.tasks.compare import write_comparison
from adaptor_hf.tasks.runs import RunList
from adaptor_hf.tasks.summary import summarize
from adaptor_hf.training.controls import RetrievalResult, format_table

HOSTILE = {
    "pipe": "a|b",
    "code": "`rm`",
    "script": "<script>alert(1)</script>",
    "link": "[x](javascript:alert(1))",
    "reference": "[x][y]",
    "definition": "[x]: http://evil.example",
    "image": "![x](http://evil.example/p.png)",
    "lines": "x\n\n# y\n\n| a |\n|---|\n",
    "backslash": "x\\",
    "escaped tag": "a\\<b>c",
    "escaped pipe": "a\\|b",
    "entity": "&lt;b&gt; &#60;i&#62;",
    "emphasis": "*a* _b_ __c__ ~~d~~",
    "address": "http://evil.example www.evil.example a@evil.example mailto:a@evil.example",
    "brackets": "<http://evil.example>",
    "list": "1. x",
    "rule": "---",
    "fence": "```",
    "escape codes": "\x1b[31mred\x07",
    "reversed": "a\u202egnp.exe",
    "comment": "<!-- x -->",
    "front matter": "x\n---\nlicense: mit\n---\n",
    "mapping": "a: b",
    "template": "{{ card_data }} {% for %}",
}
ORDINARY = (
    "image_to_text_recall@10", "0.611 [0.352, 0.820] †", "adaptor on v + t, linear (run-a aaaaaaaa)", "< 5",
    "+0.012 [-0.010, +0.034]", "a/b.png", "Kein Befund (0-1)", "50 %",
)  # fmt: skip
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HARMFUL = {"link_open", "image", "html_inline", "html_block", "s_open"}


def kinds(tokens):
    return {token.type for token in tokens} | {child.type for token in tokens for child in token.children or ()}


def text_of(token):
    return "".join(child.content for child in token.children)


def check_page(page, links=()):
    """No link, image or HTML of a name; every row of a table has as many cells as its head; no bare address."""
    body = re.sub(r"\A---\n.*?\n---\n", "", page, count=1, flags=re.DOTALL)
    tokens = PARSER.parse(body.replace("&nbsp;", ""))
    found = kinds(tokens) & HARMFUL
    assert found <= set(links), found
    assert not re.search(r"https?://evil|www\.evil|\b\w+@evil\.example|\x1b|\u202e", body)
    for line in body.splitlines():
        if line.startswith("|"):
            # A row that is broken is no part of a table to the parser.
            assert line.rstrip().endswith("|")
    rows = [token for token in tokens if token.type == "tr_open"]
    source = [line for line in body.splitlines() if line.startswith("|") and not re.fullmatch(r"\|[-|]+", line)]
    assert len(rows) == len(source)
    for block in re.findall(r"(?:^\|.*\n)+", f"{body}\n", re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    headings = [token for token in tokens if token.type == "heading_open"]
    return tokens, len(headings)


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_name_is_shown_as_it_is_in_a_cell_a_list_and_a_heading(name):
    shown = one_line(name)
    page = f"{table_row(['a', 'b'])}\n{table_rule(2)}\n{table_row([name, name])}\n"
    cells = [token for token in PARSER.parse(page) if token.type == "inline"]
    assert [text_of(token) for token in cells] == ["a", "b", shown, shown]
    for before in ("* ", "# ", "", "Note: "):
        tokens = PARSER.parse(f"{before}{plain(name)}\n")
        (inline,) = [token for token in tokens if token.type == "inline"]
        assert text_of(inline) == (f"Note: {shown}" if before == "Note: " else shown)
        assert {child.type for child in inline.children} <= {"text", "text_special"}
        assert not kinds(PARSER.parse(f"{before}{sentence(name)}\n")) & HARMFUL


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_names_and_intervals_look_the_same_in_the_source(text):
    assert table_row([text]) == f"| {text} |"
    assert plain(text).lstrip("\\") == text


def result(name):
    names = ("recall@1", "recall@5", "recall@10", "median_rank")
    metrics = {f"{way}_{one}": 0.5 for way in ("image_to_text", "text_to_image") for one in names} | {
        "mean_recall": 0.5
    }
    counts = {"image_to_text": 9, "text_to_image": 9}
    return RetrievalResult(name, metrics, {}, counts, chance=dict.fromkeys(metrics, 0.1))


def test_a_model_card(tmp_path):
    for number, (kind, name) in enumerate(HOSTILE.items()):
        tower = {"library": "timm", "name_or_path": name, "revision": name, "license": name, "pretraining_data": [name]}
        folder = tmp_path / str(number)
        folder.mkdir()
        config = synthetic_config().to_dict()
        config |= {"vision_tower": tower, "text_tower": tower, "data_terms": {name: name}}
        path = write_model_card(
            folder, model_name=name, config=config, num_parameters=5, pairs={"train": 3, "test": 9},
            split_hash="h" * 12, arguments={"optim": name}, result=result(name), evaluated_on="test", dataset_name=name,
            controls=format_table([result(name)]), versions={"torch": "2"},
        )  # fmt: skip
        write_run(folder / "run", of_labels(), FIELDS | {"dataset": name, "system": name})
        add_to_card(folder, read_results(folder / "run").lines)
        page = path.read_text(encoding="utf-8")
        _, headings = check_page(page)
        assert headings == 8, kind
        card = ModelCard(page)
        assert card.data.model_name == one_line(name), kind
        assert one_line(name) in {one.dataset_name for one in card.data.eval_results}, kind
        assert card.data.license is None
        assert yaml.safe_load(page.split("\n---\n")[0].removeprefix("---\n"))["library_name"] == "transformers"


def test_pages_of_downstream_results(tmp_path):
    names, used = (
        list(HOSTILE.values()),
        ("dataset", "system", "vision_tower", "text_tower", "recipe", "checkpoint_name"),
    )
    # Each name in several of the places, three names a run.
    for first in range(0, len(names), 3):
        three = names[first : first + 3]
        folder, rng = tmp_path / str(first), np.random.default_rng(0)
        lines = []
        for turn, system in enumerate((three[1], "other")):
            fields = FIELDS | {name: three[number % 3] for number, name in enumerate(used)}
            fields |= {"system": system, "module": "adaptor", "checkpoint": system[:3], "positive_class": three[2]}
            fields |= {"fraction": 1.0, "test_set": None}
            predictions = classification_predictions(
                [str(row) for row in range(40)], [str(row // 2) for row in range(40)], np.arange(40)[:, None] % 2,
                rng.random((40, 1)), problem_type=MULTI, class_names=[three[0]], num_resamples=20,
                columns={"sex": [three[row % 3] for row in range(40)]},
            )  # fmt: skip
            lines += write_run(folder / "runs" / str(turn), predictions, fields)
        (folder / "runs" / "damaged").mkdir()
        (folder / "runs" / "damaged" / "results.jsonl").write_text(json.dumps({"run": 1, "system": three[0]}))
        check_page(write_comparison(folder, num_resamples=50))
        for page in write_report(folder / "runs", folder / "report", figures=False):
            if page.suffix == ".md":
                check_page(page.read_text(encoding="utf-8"))
        check_page(summarize(RunList(lines, failed=[f"{name}: {name}" for name in three])))
        for page in write_checklists(folder, folder / "checklists"):
            check_page(page.read_text(encoding="utf-8"))


def test_table_1_and_any_table():
    for name in HOSTILE.values():
        columns = {"split": ["train", name, name], "sex": ["F", name, "M"], "view": [name, None, "PA"]}
        rows = pd.DataFrame(columns | {"patient_id": [name, "b", None]})
        described = describe_data(rows, {name: ["positive", None, name]})
        described["notes"].append(f"Column {name} was read.")
        check_page(markdown(described))
        table = Table("t", name, [name, "b"], [[name, name]], [f"{name}: {name}"])
        _, headings = check_page(table.markdown())
        assert headings == 1
