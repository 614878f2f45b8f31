"""Every command under private mode: it runs privately or not at all, whatever its options, data and libraries say."""

import argparse
import sys
from pathlib import Path

import private_commands as plants
import pytest
from private_commands import CANARY, Command

from adaptor_hf.privacy import mode as private_mode

COMMANDS = plants.commands()
TITLES = [command.title for command in COMMANDS]
SCRIPTS = ("train_pretrain", "train_downstream")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    table, bare = plants.plant_table(folder / "a"), plants.plant_table(folder / "b", header=False)
    export, reports = plants.plant_export(folder)
    headless = reports.with_name(f"{CANARY} headless.csv")
    headless.write_text("".join(reports.read_text().splitlines(keepends=True)[1:]))
    key = folder / f"{CANARY}.key"
    return {"table": table, "bare": bare, "export": export, "reports": reports, "headless": headless, "key": key}


@pytest.fixture
def private(monkeypatch, tmp_path, capfd, planted):
    """Runs a command as a process would, in a folder of its own under `ADAPTOR_PRIVATE=1`; gives what it said."""
    import datasets

    monkeypatch.setenv("ADAPTOR_PRIVATE", "1")
    monkeypatch.setattr(private_mode, "_key", None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.chdir(tmp_path)

    def run(command: Command, *words: str) -> str:
        from adaptor_hf.training.interruption import run_script

        capfd.readouterr()
        try:
            if command.title in SCRIPTS:
                run_script(lambda: command.main(list(words)))
            else:
                command.main(command.words(*words))
        except SystemExit as stop:
            # As the interpreter does.
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            private_mode._set_key(None)
            private_mode.stop_filter()
            said = capfd.readouterr()
        return said.out + said.err

    return run


def no_canary(said: str, folder: Path | None = None, but: tuple[str, ...] = ()) -> None:
    assert CANARY.lower() not in said.lower(), said
    for path in folder.rglob("*") if folder else ():
        if path.is_file() and path.name not in but:
            assert CANARY.lower().encode() not in path.read_bytes().lower(), path


def base_words(command: Command, planted) -> list[str]:
    """Words with which a command has all that it needs, from the planted data."""
    table = str(planted["table"])
    special = {
        "data check": ["--table", table, "--image_column", "image"],
        "data index_dicom": [
            str(planted["export"]), "--to", "index", "--key_file", str(planted["key"]), "--reports",
            str(planted["reports"]),
        ],
        "audit table1": [table, "--to", "t1", "--label_column", "diagnosis"],
        "phantom": ["phantoms", "--n", "2", "--image_size", "32"],
        "train_pretrain": [
            "--train_file", str(planted["bare"]), "--vision_tower", "lite0", "--text_tower", "minilm", "--use_cpu",
            "--output_dir", "out", "--key_file", str(planted["key"]),
        ],
        "train_downstream": [
            "--task", "classification", "--model", "none", "--table", str(planted["bare"]), "--label_column",
            "effusion", "--output_dir", "out", "--key_file", str(planted["key"]),
        ],
    }  # fmt: skip
    if command.title in special:
        return special[command.title]
    words = []
    for action in command.parser._actions:
        if not action.option_strings and action.nargs != "?" and not isinstance(action, argparse._SubParsersAction):
            words.append(table)
        elif action.required and action.option_strings:
            words += [action.option_strings[0], str(next(iter(action.choices), "")) if action.choices else table]
    return words


def option_words(command: Command) -> list[tuple[str, ...]]:
    """A canary as the value of each option, and where none or another is expected."""
    found = [(f"--{CANARY}",), (f"--{CANARY}=/patients/{CANARY}",), (CANARY, f"/patients/{CANARY}/x y")]
    for action in command.parser._actions:
        for name in action.option_strings[:1]:
            if name.startswith("--") and "help" not in name and name not in ("--private", "--end-of-recipe"):
                found += [(name, CANARY), (f"{name}={CANARY}/{CANARY} 1931",)]
    return found


class TestEntries:
    def test_every_command_declares_how_it_stands_to_private_mode(self):
        assert len(TITLES) == len(set(TITLES)) >= 28
        assert {command.declared.kind for command in COMMANDS} == {"knows", "harmless", "refuses"}
        assert all(len(command.declared.why) > 5 for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=TITLES)
def test_no_option_of_a_command_is_echoed(command, private, planted, tmp_path):
    base = base_words(command, planted)
    failed = []
    for words in option_words(command):
        said = private(command, *base, *words)
        if CANARY.lower() in said.lower():
            failed.append((words, said[:600]))
    assert not failed, "\n\n".join(map(str, failed))
