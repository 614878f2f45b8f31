"""README and docs: Python blocks run, commands name options and files that exist, links lead somewhere."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from private_commands import parser_of

from adaptor_hf.configs import list_accelerate_configs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = "<!-- not run -->"
BLOCK = re.compile(r"(?P<marker>^<!--[^\n]*-->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDERS = ("adaptor_hf/", "benchmarks/", "configs/", "docs/", "examples/", "tests/")
page_parameter = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


def blocks(page: Path, language: str, marked: bool = True) -> list[str]:
    """Code of a page's fenced blocks of one language; without those marked as not run if `marked` is False."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [
        match["code"]
        for match in found
        if match["language"] == language and (marked or (match["marker"] or "").strip() != NOT_RUN)
    ]


def commands(page: Path) -> list[list[str]]:
    """Words of every command in a page's bash blocks, without variables set before it."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    without = [[word for word in words if not re.match(r"[A-Z_]+=", word) or words[0] == "make"] for words in found]
    return [command for command in without if command]


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory) -> Path:
    """A folder like the one that `make demo` leaves, with an untrained model."""
    from adaptor_hf import AdaptorModel, AdaptorProcessor

    folder = tmp_path_factory.mktemp("demo") / "model"
    model = AdaptorModel.from_towers("lite0", "minilm")
    model.save_pretrained(folder)
    AdaptorProcessor(model.vision_model.processor, model.text_model.processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dual_encoder(tmp_path_factory, tiny_bert) -> Path:
    """A folder like the one that a user of VisionTextDualEncoderModel has, with a small model of random weights."""
    from transformers import (
        BertModel,
        BertTokenizerFast,
        VisionTextDualEncoderModel,
        VisionTextDualEncoderProcessor,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
    )

    folder = tmp_path_factory.mktemp("dual") / "vit-bert"
    vision = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64))
    VisionTextDualEncoderModel(None, vision, BertModel.from_pretrained(tiny_bert)).save_pretrained(folder)
    tokenizer = BertTokenizerFast.from_pretrained(tiny_bert)
    VisionTextDualEncoderProcessor(ViTImageProcessor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python", marked=False)], ids=lambda page: page.name
)
def test_python_blocks_run(page, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = blocks(page, "python", marked=False)
    if any("demo-output/model" in block for block in code):
        (tmp_path / "demo-output").mkdir()
        (tmp_path / "demo-output" / "model").symlink_to(request.getfixturevalue("demo_model"))
    if any('"vit-bert"' in block for block in code):
        (tmp_path / "vit-bert").symlink_to(request.getfixturevalue("dual_encoder"))
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(code, start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


@page_parameter
def test_relative_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings], (
                target
            )


@page_parameter
def test_files_of_the_project_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    words = {word for command in commands(page) for word in command} | set(re.findall(r"`([^`\s]+)`", text))
    for word in words:
        name = word.split("::")[0]
        if name.startswith(FOLDERS) and not re.search(r"[*<{]", name) and " of that commit" not in name:
            assert (ROOT / name).exists(), f"{page.name} names {name}"


@page_parameter
def test_commands_are_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, made in set(re.findall(r"(\w+\.py):(\w+)", " ".join(blocks(page, "bash")))):
        (source,) = [code for code in blocks(page, "python") if f"class {made}(" in code]
        (tmp_path / name).write_text(source, encoding="utf-8")
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    inline = [shlex.split(span) for span in re.findall(r"`((?:make|pip|python|adaptor-\w+)\s[^`]*)`", text)]
    for command in [*commands(page), *inline]:
        if not any(word.startswith("--help") for word in command):
            check_command(command)


@page_parameter
def test_options_in_the_text_exist(page):
    parsers = (training_parser(), command_parser("adaptor_hf.embeddings", "build"))
    known = {option for parser in parsers for option in parser._option_string_actions}
    known.add("--recipe")
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for span in re.findall(r"`([^`]*)`", text):
        if (
            not re.match(r"(pip|pytest|python|accelerate|make|cp|adaptor-\w+|[\w./]+\.py)\b", span)
            and "_loss" not in span
        ):
            for option in re.findall(r"(?<!\S)--\w+", span):
                assert option in known, f"{page.name}: {option}"


def test_presets_in_the_docs_are_those_of_the_package():
    from adaptor_hf.towers import list_towers

    rows = re.findall(r"^\| `([\w-]+)` \| (?:vision|text), .*$", (ROOT / "docs/towers.md").read_text(), re.MULTILINE)
    assert rows == [tower["name"] for tower in list_towers()]
    for tower in list_towers():
        line = next(
            line for line in (ROOT / "docs/towers.md").read_text().splitlines() if f"| `{tower['name']}` |" in line
        )
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        data = ", ".join(tower["pretraining_data"])
        kind = f"{tower['kind']}, {tower['domain']}"
        expected = [kind, tower["source"], str(tower["hidden_size"]), tower["pooling"] or "auto"]
        assert cells[1:] == [*expected, tower["license"] or "not stated", data, tower["tested"]]


def training_parser():
    from adaptor_hf.training.script_arguments import option_parser

    return option_parser()


def command_parser(module: str, command: str):
    parser = import_module(f"{module}.__main__")._parser()
    return next(action for action in parser._actions if isinstance(action.choices, dict)).choices[command]


def check_command(command: list[str]) -> None:
    """Fails where a command names an option, a target, an extra or a file that does not exist."""
    if command[:2] == ["accelerate", "launch"]:
        rest = command[2:]
        if "--config_file" in rest:
            path = rest[rest.index("--config_file") + 1]
            assert path in [f"$(python -m adaptor_hf.configs {name})" for name in list_accelerate_configs()], command
        start = next(i for i, word in enumerate(rest) if word == "-m" or word.endswith(".py"))
        command = ["python", *rest[start:]]
    for script in ("train_pretrain", "train_downstream"):
        if command[:3] == ["python", "-m", script]:
            command = ["python", f"{script}.py", *command[3:]]
        elif command[0] == script.replace("train_", "adaptor-"):
            command = ["python", f"{script}.py", *command[1:]]
    if command[0] == "adaptor-predict":
        command = ["python", "-m", "adaptor_hf.prediction", *command[1:]]
    if command[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        for word in command[1:]:
            name, equals, _ = word.partition("=")
            assert f"$({name})" in makefile if equals else f"\n{name}:" in makefile, command
    elif command[:2] == ["python", "train_pretrain.py"]:
        from adaptor_hf.training.script_arguments import check_together, parse_arguments

        known = {"--recipe", *training_parser()._option_string_actions}
        assert all(word.partition("=")[0] in known for word in command if word.startswith("--")), command
        check_together(*parse_arguments(command[2:]))
    elif command[:2] == ["python", "train_downstream.py"]:
        from adaptor_hf.tasks.arguments import parse_arguments

        if "--output_dir" in command:  # a whole command, not an option in the text
            parse_arguments(command[2:])
    elif command[:3] == ["python", "-m", "adaptor_hf.embeddings"]:
        assert command[3] in ("build", "info", "repair", "verify")
        parser = command_parser(command[2], "build")
        assert all(word in parser._option_string_actions for word in command if word.startswith("--")), command
        if command[3] == "build" and len(command) > 4:
            parser.parse_args(command[4:])
    elif command[:2] == ["python", "-m"] and command[2] in ("adaptor_hf.data", "adaptor_hf.audit") and command[3:]:
        known = command_parser(command[2], command[3])._option_string_actions
        assert all(word in known for word in command if word.startswith("--")), command
    elif command[:3] == ["python", "-m", "adaptor_hf.prediction"]:
        parser = parser_of("adaptor_hf.prediction.__main__")
        assert all(word in parser._option_string_actions for word in command if word.startswith("--")), command
        if "--output_dir" in command:
            parser.parse_args(command[3:])
    elif command[:2] == ["python", "-m"]:
        source = ROOT / command[2].replace(".", "/")
        text = (
            source.with_suffix(".py") if source.with_suffix(".py").is_file() else source / "__main__.py"
        ).read_text()
        for word in command[3:]:
            assert not word.startswith("--") or f'"{word}"' in text, command
    elif command[:2] == ["pip", "install"]:
        extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
        for name in re.findall(r"\[(\w+)\]", " ".join(command)):
            assert f"\n{name} = " in extras, command
    elif command[0] == "python":
        assert (ROOT / command[1]).is_file(), command
    else:
        assert command[0] in ("git", "cd", "hf", "nvidia-smi"), f"unknown command: {command}"


def test_the_page_on_trust_names_tests_that_exist():
    page = (ROOT / "docs/trust.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| fault", "|---"))]
    assert len(rows) > 40
    for row in rows:
        named = re.findall(r"`(tests/\w+\.py)((?:::\w+)*)`", row)
        assert named, row
        for file, inside in named:
            for name in inside.split("::")[1:]:
                assert re.search(
                    rf"^ *(?:def|class) {name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE
                ), name
