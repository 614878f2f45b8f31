"""Options of the `python -m adaptor_hf.*` commands: those that the scripts have too are the scripts' own."""

import argparse
import json
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path

import pytest

import adaptor_hf
from adaptor_hf.audit.checklists import CHECKLISTS, load_checklist
from adaptor_hf.data.__main__ import main as data_main
from adaptor_hf.data.labels import LABEL_POLICIES
from adaptor_hf.data.table_arguments import TableArguments, TowerArguments
from adaptor_hf.evaluation.tasks import TASKS
from adaptor_hf.options.fields import HIDDEN, PATH, option
from adaptor_hf.options.parser import add_options
from adaptor_hf.privacy import messages
from adaptor_hf.tasks import arguments as downstream
from adaptor_hf.tasks.prompts import list_prompt_sets
from adaptor_hf.training import script_arguments as pretraining

PACKAGE = Path(adaptor_hf.__file__).parent
MODULES = sorted(path.parent.name for path in PACKAGE.glob("*/__main__.py"))
# Something else, or without the script's default, and so with a help of its own.
OWN = {
    ("data index_dicom", "text_column"): "columns of the table of reports, joined",
    ("data check", "private"): "nothing is written that could hold ids",
    ("data views", "private"): "nothing is written that could hold ids",
    ("embeddings build", "cache_dir"): "there is no output_dir to keep it beside",
    ("tasks compare", "dataset"): "one of those that were evaluated",
}
COLUMNS = ("image_column", "text_column", "patient_column", "study_column", "split_column", "id_column", "view_column")
SPLIT = {"validation_fraction": 0.1, "test_fraction": 0.1, "split_seed": 42}
# What a command does where an option is not given.
DEFAULTS = {
    "data check": dict.fromkeys((*COLUMNS, "image_root", "ids")) | SPLIT
    | {"filter": [], "missing_word": [], "split_alias": [], "dataset_option": [], "split_scheme": "official",
       "image_mode": "auto", "label_policy": "raw"},
    "data index_dicom": SPLIT | {"private": False, "key_file": None},
    "embeddings build": dict.fromkeys((*COLUMNS[2:], "image_root", "ids", "vision_tower", "text_tower", "image_store"))
    | SPLIT
    | {"image_column": "image", "text_column": "text", "filter": [], "missing_word": [], "image_mode": "auto",
       "voi_lut": False, "extraction_batch_size": None, "max_text_length": 112, "image_store_size": 256,
       "embedding_dtype": "float16", "cache_dir": None, "rebuild": False},
    "audit table1": dict.fromkeys(COLUMNS[1:3] + COLUMNS[4:6] + ("image_root", "label_spelling", "label_separator"))
    | {"image_column": "image", "filter": [], "missing_word": [], "label_column": []},
}  # fmt: skip
NEEDED = {"data index_dicom": ["r", "--to", "t"], "embeddings build": ["s"], "audit table1": ["s"]}


class _StartError(Exception):
    pass


def commands() -> dict[str, argparse.ArgumentParser]:
    """Parser of each command of each module, as its `main` makes it."""

    def stop(parser, *arguments, **more):
        raise _StartError(parser)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        for module in MODULES:
            with pytest.raises(_StartError) as started:
                import_module(f"adaptor_hf.{module}.__main__").main([])
            (parser,) = started.value.args
            inner = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
            found |= {f"{module} {name}": one for name, one in inner[0].items()} if inner else {module: parser}
    return found


COMMANDS = commands()


def described(action: argparse.Action) -> tuple:
    # What is on or off takes no value in a command.
    return (action.help, list(action.choices or []), action.type if action.nargs not in (0, "?") else bool)


def shared() -> dict[tuple[str, str], tuple[argparse.Action, argparse.Action]]:
    """Options of commands that a script has under the same name, with the script's."""
    names = {item.name for group in (TableArguments, TowerArguments) for item in fields(group)}
    names |= {"view_column", "max_text_length", "image_store", "image_store_size"}
    names |= {"label_column", "label_spelling", "label_separator", "private", "key_file"}
    parsers = (downstream.option_parser(), pretraining.option_parser())
    scripts = {action.dest: action for parser in parsers for action in parser._actions}
    return {
        (command, action.dest): (action, scripts[action.dest])
        for command, parser in COMMANDS.items()
        for action in parser._actions
        if action.dest in names and action.option_strings
    }


class TestDeclarations:
    def test_an_option_that_a_script_has_is_the_scripts(self):
        found = shared()
        differ = {key for key, (own, scripts) in found.items() if described(own) != described(scripts)}
        assert differ == OWN.keys()
        assert len(found) - len(differ) >= 50

    @pytest.mark.parametrize("command", DEFAULTS)
    def test_what_is_not_given_is_as_it_was(self, command):
        found = vars(COMMANDS[command].parse_args(NEEDED.get(command, [])))
        assert {name: found[name] for name in DEFAULTS[command]} == DEFAULTS[command]

    @pytest.mark.parametrize(
        ("command", "words", "expected"),
        [
            ("data check", ["--seed", "7", "--option", "sentences=mgca"], {"split_seed": 7}),
            ("data check", ["--option", "a=b", "c=d"], {"dataset_option": ["a=b", "c=d"]}),
            ("data index_dicom", ["--seed", "7", "--private"], {"split_seed": 7, "private": True}),
            ("embeddings build", ["--seed", "7", "--batch_size", "3"], {"split_seed": 7, "extraction_batch_size": 3}),
            ("embeddings build", ["--split-seed", "7", "--image-column", "x"], {"split_seed": 7, "image_column": "x"}),
        ],
    )
    def test_old_and_new_spellings(self, command, words, expected):
        found = vars(COMMANDS[command].parse_args([*NEEDED.get(command, []), *words]))
        assert {name: found[name] for name in expected} == expected

    @pytest.mark.parametrize("command", ["data check", "embeddings build", "audit table1"])
    def test_a_list_in_parts_is_one_list(self, command):
        words = [*NEEDED.get(command, []), "--filter", "a=1", "--filter", "b=2", "c=3"]
        assert COMMANDS[command].parse_args(words).filter == ["a=1", "b=2", "c=3"]
        assert COMMANDS[command].parse_args(NEEDED.get(command, [])).filter == []

    def test_a_flag_leaves_the_next_word_alone(self):
        found = COMMANDS["embeddings build"].parse_args(["--cache_dir", "c", "--voi_lut", "pairs.csv"])
        assert (found.voi_lut, found.source) == (True, "pairs.csv")


class TestAddOptions:
    @dataclass
    class Declared:
        folder: str | None = option(None, "A folder.", group="x", privacy=PATH)
        words_of: list[str] = option(["a"], "Words.", group="x", privacy=HIDDEN)
        share: float = option(0.5, "A share.", group="x", advanced=True, choices=[0.5, 1.0])
        full: bool = option(True, "All of it.", group="x")

    def parse(self, names, *words, **more):
        parser = argparse.ArgumentParser()
        add_options(parser, self.Declared, names, **more)
        return vars(parser.parse_args(words))

    def test_fields_become_options_with_their_types_and_defaults(self):
        names = ("folder", "words_of", "share")
        assert self.parse(names) == {"folder": None, "words_of": ["a"], "share": 0.5}
        found = self.parse(names, "--folder", "f", "--words-of", "b", "--share", "1")
        assert found == {"folder": "f", "words_of": ["a", "b"], "share": 1.0}
        with pytest.raises(SystemExit):
            self.parse(names, "--share", "0.7")
        assert self.parse(("share",), defaults={"share": None}) == {"share": None}
        assert self.parse(("share",), "--part", "1", spellings={"share": "--part"}) == {"share": 1.0}

    def test_names_that_are_not_there_are_refused(self):
        with pytest.raises(KeyError, match="wide"):
            self.parse(("wide",))
        with pytest.raises(KeyError, match="Not among the options: share"):
            self.parse(("folder",), spellings={"share": "--part"})


class TestListsAreTheDeclarations:
    def help_of(self, command: str, option: str) -> str:
        return next(action.help for action in COMMANDS[command]._actions if action.dest == option)

    def test_tasks_that_are_compared(self):
        compared = [name for name, task in TASKS.items() if task.decides_by is not None]
        assert self.help_of("tasks compare", "task").partition(";")[0].split(", ") == compared
        assert COMMANDS["tasks compare"].parse_args(["o"]).task == "classification"

    def test_prompt_sets_and_label_policies(self):
        texts = {action.dest: action.help for action in downstream.option_parser()._actions}
        assert all(f" {name}," in texts["prompts"] for name in list_prompt_sets())
        assert texts["label_policy"].rpartition(": ")[2] == f"{', '.join(LABEL_POLICIES)}."

    def test_checklists(self, capsys):
        with pytest.raises(SystemExit):
            import_module("adaptor_hf.audit.__main__").main(["--help"])
        text = capsys.readouterr().out
        assert all(load_checklist(name)["title"] in text for name in CHECKLISTS)


class TestCheck:
    @pytest.fixture(autouse=True)
    def forget_places(self):
        yield
        messages._places.clear()

    def test_words_for_missing_values_are_read_as_the_scripts_read_them(self, tmp_path, capsys):
        table = tmp_path / "pairs.csv"
        table.write_text("image,text,patient_id\na.png,x,p1\nb.png,y,unbekannt\nc.png,z,unbekannt\n")
        counted = []
        for words in ([], ["--missing_word", "unbekannt"]):
            data_main(["check", "--table", str(table), "--json", str(tmp_path / "report.json"), *words])
            counts = json.loads((tmp_path / "report.json").read_text())
            counted.append((counts["patients"], counts["rows_without_patient"]))
        assert counted == [(2, 0), (1, 2)]

    @pytest.mark.parametrize("name", ["image_column", "patient_column", "filter", "split_alias", "image_root"])
    def test_private_it_says_nothing_of_what_was_given(self, name, tmp_path, capsys):
        (tmp_path / "pairs.csv").write_text("image,text,patient_id\na.png,x,p1\nb.png,y,p2\n")
        value = {"filter": "canary-c=canary-v", "split_alias": "canary-o=canary-n"}.get(name, "canary-c")
        words = ["check", "--table", str(tmp_path / "pairs.csv"), f"--{name}", value, "--private"]
        assert data_main(words) != 0
        said = capsys.readouterr()
        assert said.out + said.err
        assert "canary" not in said.out + said.err
        assert "pairs.csv" not in said.out + said.err
