"""Every command under private mode: it runs privately or not at all, whatever its options, data and libraries say."""

import argparse
import csv
import json
import logging
import os
import pkgutil
import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import datasets
import private_commands as plants
import pytest
from private_commands import CANARY, SCRIPTS, Command, no_canary

from adaptor_hf.data.label_columns import LabelRules, label_feature
from adaptor_hf.data.private_rows import private_rows
from adaptor_hf.options.fields import own_options
from adaptor_hf.privacy import mode as private_mode
from adaptor_hf.privacy.asked import asked_for
from adaptor_hf.privacy.class_names import names_written
from adaptor_hf.privacy.keys import keyed_hash
from adaptor_hf.privacy.messages import without_quotations
from adaptor_hf.privacy.vocabulary import listed_word
from adaptor_hf.tasks.arguments import DownstreamArguments, parse_arguments
from adaptor_hf.training.script_arguments import DataArguments, ModelArguments, RunArguments

COMMANDS = plants.commands()
TITLES = [command.title for command in COMMANDS]
BY_TITLE = dict(zip(TITLES, COMMANDS, strict=True))
OWN_OPTIONS = (DataArguments, ModelArguments, RunArguments, DownstreamArguments)


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

    monkeypatch.setenv("ADAPTOR_PRIVATE", "1")
    monkeypatch.setattr(private_mode, "_key", None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.chdir(tmp_path)

    return lambda command, *words: plants.said_by(command, words, capfd)


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
        "embeddings build": [
            str(planted["bare"]), "--vision_tower", "lite0", "--text_tower", "minilm", "--cache_dir", "cache",
            "--key_file", str(planted["key"]),
        ],
        "prediction": [
            "--model", "none", "--table", str(planted["bare"]), "--output_dir", "out", "--key_file",
            str(planted["key"]),
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


# Of transformers' own options one value each is enough.
LONG = {f"--{item.name}" for group in OWN_OPTIONS for item in own_options(group)}


def option_words(command: Command) -> list[tuple[str, ...]]:
    """A canary as the value of each option, and where none or another is expected."""
    found = [(f"--{CANARY}",), (f"--{CANARY}=/patients/{CANARY}",), (CANARY, f"/patients/{CANARY}/x y")]
    for action in command.parser._actions:
        for name in action.option_strings[:1]:
            if name.startswith("--") and "help" not in name and name not in ("--private", "--end-of-recipe"):
                found.append((name, CANARY))
                if (name in LONG) or command.title not in SCRIPTS:
                    found.append((f"{name}={CANARY}/{CANARY} 1931",))
    return found


class TestEntries:
    def test_every_command_declares_how_it_stands_to_private_mode(self):
        assert len(TITLES) == len(set(TITLES)) >= 28
        assert {command.declared.kind for command in COMMANDS} == {"knows", "harmless", "refuses"}
        assert all(len(command.declared.why) > 5 for command in COMMANDS)

    def test_the_page_on_privacy_has_a_line_for_each(self):
        page = (plants.ROOT / "docs/privacy.md").read_text(encoding="utf-8")
        said = {"knows": "runs privately", "refuses": "stops", "harmless": "as always"}
        for command in COMMANDS:
            name = f"{command.title}.py" if command.title in SCRIPTS else f"python -m adaptor_hf.{command.title}"
            assert f"| `{name}` | {said[command.declared.kind]} | {command.declared.why} |\n" in page

    def test_a_new_command_without_a_declaration_is_found(self, tmp_path):
        package = tmp_path / "adaptor_hf"
        (package / "new").mkdir(parents=True)
        (package / "new" / "__main__.py").write_text("print()")
        (package / "loose.py").write_text('if __name__ == "__main__":\n    print()')
        (package / "quiet.py").write_text("print")
        project = tmp_path / "pyproject.toml"
        project.write_text('[project.scripts]\na = "new_script:start"')
        found = plants.entry_modules(package, project)
        assert found == ["adaptor_hf.loose", "adaptor_hf.new.__main__", "new_script"]

    def test_every_entry_of_the_package_is_among_them(self):
        started = {command.module for command in COMMANDS}
        assert started == set(plants.entry_modules())
        for module in started - set(SCRIPTS):
            # What is started is the function that is guarded.
            text = Path(import_module(module).__file__).read_text(encoding="utf-8")
            assert re.search(
                r'if __name__ == "__main__":\n    (main\(\)|(sys\.exit|raise SystemExit)\(main\(\)\))\n$', text
            )


@pytest.mark.parametrize("command", COMMANDS, ids=TITLES)
def test_no_option_of_a_command_is_echoed(command, private, planted, tmp_path):
    base = base_words(command, planted)
    failed = []
    for words in option_words(command):
        said = private(command, *base, *words)
        if CANARY.lower() in said.lower():
            failed.append((words, said[:600]))
    assert not failed, "\n\n".join(map(str, failed))


def test_a_command_with_all_that_it_needs_writes_and_says_no_canary(private, planted, tmp_path):
    for title, words in {
        "data check": ["--json", "check.json", "--label_policy", "raw"],
        "data index_dicom": [],
        "audit table1": [],
    }.items():
        command = BY_TITLE[title]
        said = private(command, *base_words(command, planted), *words)
        assert "error" not in said, said
        # The table of pairs is for the next command: it has paths and reports, for its owner only.
        no_canary(said, tmp_path, but=("pairs.csv",))
    pairs = tmp_path / "index" / "pairs.csv"
    assert pairs.stat().st_mode & 0o777 == 0o600
    rows = list(csv.DictReader(pairs.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 4
    for row in rows:
        assert CANARY in row["image"]
        assert not any(CANARY.lower() in value.lower() for name, value in row.items() if name not in ("image", "text"))
    assert {row["view"] for row in rows} == {"PA", "AP", "LL", "OTHER"}
    assert {row["body_part"] for row in rows} == {"CHEST", "OTHER"}


def test_a_public_set_is_checked_without_names_of_files(private, tmp_path):
    from adaptor_hf.phantom import write_layout

    root = write_layout(tmp_path / CANARY, 8, "rsna", image_size=64)
    images = sorted(root.rglob("*.dcm"))
    images[0].unlink()
    images[1].write_bytes(b"none")
    said = private(BY_TITLE["data check"], "rsna", str(root), "--json", "check.json")
    assert "files missing: 1" in said
    assert "unreadable: 1" in said
    no_canary(said)
    said += (tmp_path / "check.json").read_text()
    assert not any(path.stem in said for path in images)


def test_results_of_a_run_that_is_not_private_are_refused(private, tmp_path):
    folder = tmp_path / "out" / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text(CANARY)
    for key, refused in ((None, True), ("0123456789abcdef", False)):
        (tmp_path / "out" / "manifest.json").write_text(json.dumps({"private_key": key}))
        for title in ("evaluation report", "evaluation subgroups", "tasks compare", "audit checklists"):
            said = private(BY_TITLE[title], str(tmp_path / "out"))
            assert ("not of a private run" in said) == refused, said
            no_canary(said)


@pytest.mark.parametrize("title", ["data check", "data index_dicom", "audit table1", "train_pretrain", "prediction"])
def test_a_table_without_header_is_not_said(title, private, planted, tmp_path):
    command = BY_TITLE[title]
    words = [*base_words(command, planted)]
    words = [str(planted["bare"]) if word == str(planted["table"]) else word for word in words]
    words = [str(planted["headless"]) if word == str(planted["reports"]) else word for word in words]
    said = private(command, *words, *([] if title in ("train_pretrain", "prediction") else ["--text_column", "report"]))
    assert "no column <hidden>" in said
    no_canary(said, tmp_path)


def test_in_python_where_no_message_is_filtered_columns_are_counted(planted):
    from adaptor_hf.data.pacs.reports_table import read_report_table
    from adaptor_hf.data.tables import load_pairs
    from adaptor_hf.tasks.data import load_table

    names = {"image_column": plants.column(planted["bare"], 0), "text_column": plants.column(planted["bare"], 3)}
    for read, count in (
        (lambda: load_pairs(planted["bare"], image_column="image"), 10),
        (lambda: load_table(planted["bare"], label_columns=["effusion"], **names), 10),
        (lambda: read_report_table(planted["headless"], "AccessionNumber"), 2),
    ):
        with (
            private_mode.private_mode(b"k" * 32),
            pytest.raises(ValueError, match=f"There are {count}, whose") as hidden,
        ):
            read()
        said = str(hidden.value).replace(str(planted["bare"]), "").replace(str(planted["headless"]), "")
        no_canary(said)
        # Outside private mode they are named.
        with pytest.raises(ValueError, match=f"Columns: .*{CANARY}"):
            read()


class TestAsked:
    """Whether private mode is asked for is found before anything is said."""

    @pytest.mark.parametrize("command", COMMANDS, ids=TITLES)
    def test_a_value_that_is_neither_yes_nor_no_stops_every_command(self, command, monkeypatch):
        monkeypatch.setenv("ADAPTOR_PRIVATE", f"ture {CANARY}")
        with pytest.raises(SystemExit) as stopped:
            command.main(command.words("--help"))
        assert "ADAPTOR_PRIVATE says neither yes nor no" in stopped.value.code
        assert CANARY not in stopped.value.code

    @pytest.mark.parametrize("value", ["1", "true", "TRUE", " yes ", "On", "y"])
    def test_spellings_of_yes(self, value, monkeypatch):
        monkeypatch.setenv("ADAPTOR_PRIVATE", value)
        assert asked_for([])

    @pytest.mark.parametrize("value", ["", "0", "False", "no", "OFF"])
    def test_spellings_of_no(self, value, monkeypatch):
        monkeypatch.setenv("ADAPTOR_PRIVATE", value)
        assert not asked_for([])

    @pytest.mark.parametrize(
        ("words", "asked"),
        [
            (["--private"], True),
            (["--private", "True", "--x"], True),
            (["--private=yes"], True),
            (["--priv", "1"], True),
            (["--private", "table.csv"], True),
            (["--private", "True", "--private", "False"], False),
            (["--private", "no"], False),
            (["--private", "maybe"], True),
            (["--", "--private"], False),
            (["--patient_column", "x"], False),
            ([], False),
        ],
    )
    def test_of_a_command_line(self, words, asked):
        assert asked_for(words) == asked

    @pytest.mark.parametrize(
        ("text", "asked"),
        [
            ("private: true", True),
            ('{"private": "yes"}', True),
            ("private: false\nnote: private", False),
            ("jobs:\n- private: on", True),
            ("table: [private, 'unclosed", True),
            ("table: pairs.csv", False),
            ("private: ture", True),
        ],
    )
    def test_of_a_recipe(self, text, asked, tmp_path):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        for words in ([str(path)], ["--recipe", str(path)], [f"--recipe={path}"], ["sweep", str(path)]):
            assert asked_for(words) == asked
        assert not asked_for([str(path), "--private", "False"])

    @pytest.mark.parametrize("title", SCRIPTS)
    @pytest.mark.parametrize(
        "text",
        [
            f"private: true\n{CANARY}: 3",
            f"private: true\ntable: '{CANARY} unclosed\nx: [",
            f"private: true\nseeds: {CANARY}\nlearning_rate: {CANARY}",
            f"private: true\ntask: {CANARY}\nobjective: {CANARY}\nprotocol: {CANARY}",
            f"- {CANARY} private",
            f"private: {CANARY}",
        ],
    )
    def test_a_recipe_is_not_echoed(self, title, text, private, tmp_path, monkeypatch):
        monkeypatch.delenv("ADAPTOR_PRIVATE")
        command = BY_TITLE[title]
        (tmp_path / "recipe.yaml").write_text(text)
        said = private(command, "recipe.yaml")
        assert "error" in said
        no_canary(said)

    def test_a_script_whose_recipe_only_mentions_it_says_all(self, tmp_path, capfd, monkeypatch):
        command = BY_TITLE["train_downstream"]
        path = tmp_path / "recipe.yaml"
        path.write_text(f"private: false\ntask: classification\ntable: {CANARY}.csv\nmodel: x\n")
        with pytest.raises((ValueError, OSError)) as stopped:
            command.main([str(path)])
        assert not private_mode.speaks_privately()
        assert "hidden" not in str(stopped.value)


class TestNames:
    """Names of classes and groups, and words of closed lists."""

    @pytest.fixture
    def keyed(self):
        with private_mode.private_mode(b"k" * 32):
            yield

    @pytest.mark.parametrize(
        "name",
        ["0", "1", "pneumonia", "No Finding", "COVID-19", "Grade II", "BI-RADS 4a", "KL 3", "pleural effusion, left",
         "Pleuraerguss", "derrame pleural", "épanchement", "normal/abnormal"],
    )  # fmt: skip
    def test_words_of_the_field_are_written(self, name, keyed):
        assert names_written([name]) == {name: name}

    @pytest.mark.parametrize(
        "name",
        ["Miller", "pneumonia Miller", "1931", "17.02.31", "1931-02-17", "ward 7 a", "DOE^JANE", "李", "Ünal", "", "--",
         "edema 3 12", "A123456"],
    )  # fmt: skip
    def test_what_could_be_a_name_or_a_date_is_hashed(self, name, keyed):
        written = names_written([name, "edema"])
        assert written == {name: f"class-{keyed_hash(name, b'k' * 32)[:8]}", "edema": "edema"}
        assert names_written([name]) == {name: written[name]}

    def test_without_private_mode_they_are_as_they_are(self):
        assert names_written(["Miller", "x"]) == {"Miller": "Miller", "x": "x"}
        assert listed_word("Miller", "view") == "Miller"

    def test_names_of_packaged_prompts_are_words_of_the_field(self, keyed):
        for path in (plants.PACKAGE / "tasks" / "prompts").glob("*.json"):
            names = list(json.loads(path.read_text(encoding="utf-8"))["classes"])
            assert names_written(names) == {name: name for name in names}, path.name

    def test_options_allow_others(self, tmp_path, monkeypatch):
        monkeypatch.setattr(private_mode, "_key", None)
        monkeypatch.setattr(private_mode, "_names_to_say", frozenset())
        monkeypatch.setattr(private_mode, "_keep_data_sets_aside", lambda: None)
        words = ["--task", "classification", "--model", "m", "--table", "t.csv", "--label_column", "x", "--private",
                 "True", "--key_file", str(tmp_path / "ids.key"), "--class_name", "Ward B", "Ward C",
                 "--positive_label", "Ward A"]  # fmt: skip
        private_mode.start_private_mode(parse_arguments(words))
        written = names_written(["Ward A", "Ward B", "Ward C", "Ward D"])
        assert [name for name, said in written.items() if said == name] == ["Ward A", "Ward B", "Ward C"]

    def test_the_rows_of_a_class_stay_together(self, keyed):
        values, feature = label_feature(
            {"x": ["Miller", "edema", " Miller", "", "Doe"]}, list(range(5)), "t", LabelRules(spelling="exact")
        )
        names = [None if code < 0 else feature.names[code] for code in values]
        assert names[1] == "edema"
        assert names[3] is None
        assert names[0] == names[2] != names[4]
        assert "Miller" not in str(feature.names)

    def test_columns_of_a_private_table(self, keyed):
        rows = {
            "view": ["PA", "ap supine", "Miller", None, "LATERAL"], "sex": ["F", "weiblich", "Miller", "unknown", "2"],
            "age": ["45", "90+", "Miller", "", "045Y"], "site": ["edema", "Miller", None, "Miller", "1"],
        }  # fmt: skip
        found = private_rows(datasets.Dataset.from_dict(rows), keep=["site"])
        assert found["view"][:] == ["PA", "ap supine", "OTHER", None, "LATERAL"]
        assert found["sex"][:] == ["F", "weiblich", "OTHER", "unknown", "OTHER"]
        assert found["age"][:] == ["45", "90+", "OTHER", "", "045Y"]
        hashed = f"class-{keyed_hash('Miller', b'k' * 32)[:8]}"
        assert found["site"][:] == ["edema", hashed, None, hashed, "1"]


class TestLibraries:
    """What other libraries say goes out by its kind and place alone."""

    ERRORS = [
        ValueError(f"{CANARY} was born 1931"),
        KeyError(CANARY),
        RuntimeError(f"line one\n{CANARY} in line two\n  {CANARY}"),
        OSError(5, f"{CANARY} said", f"/patients/{CANARY}"),
        UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, f"{CANARY} reason"),
        MemoryError(f"{CANARY}"),
        type(f"{CANARY[:0]}LibraryError", (Exception,), {})(f"Row 3: {CANARY}"),
    ]

    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize(
        ("title", "target"),
        [
            ("data check", "pyarrow.csv.read_csv"),
            ("data check", "datasets.Dataset.select_columns"),
            ("data check", "adaptor_hf.data.check_table.content_key"),
            ("data index_dicom", "pydicom.filereader.read_partial"),
            ("data index_dicom", "pyarrow.csv.read_csv"),
            ("data index_dicom", "os.scandir"),
            ("data index_dicom", "datasets.Dataset"),
            ("audit table1", "pyarrow.csv.read_csv"),
            ("audit table1", "datasets.Dataset.unique"),
            ("conversion", "torch.load"),
            ("phantom", "PIL.Image.Image.save"),
            ("embeddings info", "json.loads"),
            ("verify", "pathlib.Path.is_dir"),
            ("train_pretrain", "datasets.Dataset.unique"),
            ("train_pretrain", "pyarrow.csv.read_csv"),
            ("train_downstream", "transformers.AutoConfig.from_pretrained"),
            ("prediction", "pyarrow.csv.read_csv"),
        ],
    )
    def test_an_error_of_a_library_is_not_quoted(self, title, target, error, private, planted, tmp_path, monkeypatch):
        def fail(*args, **more):
            warnings.warn(f"{CANARY} is odd", stacklevel=1)
            library = logging.getLogger("PIL.something")
            with monkeypatch.context() as handled:
                # Libraries make handlers of their own.
                handled.setattr(library, "handlers", [logging.StreamHandler()])
                library.error("%s is odd", CANARY)
            raise error

        command = BY_TITLE[title]
        words = base_words(command, planted)
        if title == "phantom":
            words = ["phantoms", "--n", "2", "--image_size", "64"]
        with monkeypatch.context() as patch:
            place, _, name = target.rpartition(".")
            # By import: a module that another test took out of its package is no attribute of it any more.
            patch.setattr(pkgutil.resolve_name(place), name, fail)
            said = private(command, *words)
        no_canary(said, tmp_path, but=("pairs.csv",))

    def test_an_error_of_compiled_code_called_by_ours_is_not_quoted(self):
        # It has no frame of its own: the last one is ours.
        code = compile("float(text)", str(plants.PACKAGE / "data" / "x.py"), "exec")
        with pytest.raises(ValueError, match=CANARY) as called:
            exec(code, {"text": CANARY})
        assert without_quotations(called.value) == (
            "ValueError at line 1 of x, <module>. What it says is hidden: it may quote the data"
        )
        code = compile("raise ValueError('own words')", str(plants.PACKAGE / "data" / "x.py"), "exec")
        with pytest.raises(ValueError, match="own words") as raised:
            exec(code)
        assert without_quotations(raised.value) == "own words"

    def test_threads_worker_processes_and_what_nobody_catches(self, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(PROCESS.replace("CANARY", repr(CANARY)).replace("[PACKAGE]", repr([str(plants.PACKAGE)])))
        done = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, cwd=plants.ROOT, timeout=120,
            env={**os.environ, "ADAPTOR_PRIVATE": "1", "PYTHONPATH": str(plants.ROOT)},
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 1
        no_canary(said)
        assert "Traceback" not in said
        # And the gate is light.
        assert done.stdout.endswith("the end\n")
        for expected in ("in a thread", "forked", "spawned", "print_exc", "logged", "garbage", "the end"):
            assert expected in done.stdout, expected
        assert said.count("What it says is hidden") >= 6


PROCESS = """
import gc, logging, multiprocessing, sys, threading, traceback, types, warnings
# The gate needs nothing of what the package imports when it is imported as a whole.
package = types.ModuleType("adaptor_hf")
package.__path__ = [PACKAGE]
sys.modules["adaptor_hf"] = package
from adaptor_hf.privacy.gate import guarded, knows

def fail():
    raise RuntimeError(CANARY + " was born\\n" + CANARY)

class Garbage:
    def __del__(self):
        fail()

@guarded(knows("all"))
def main(words):
    thread = threading.Thread(target=fail)
    thread.start(); thread.join(); print("in a thread")
    for method, name in (("fork", "forked"), ("spawn", "spawned")):
        process = multiprocessing.get_context(method).Process(target=fail)
        process.start(); process.join(); print(name)
    try:
        fail()
    except RuntimeError:
        traceback.print_exc(); print("print_exc")
        logging.getLogger("adaptor_hf.x").exception("ours"); print("logged")
        sys.stderr.write(traceback.format_exc())
    logging.getLogger("foreign").error("%s", CANARY)
    warnings.warn(CANARY)
    Garbage(); gc.collect(); print("garbage")
    print("the end", *{"torch", "transformers", "datasets", "pandas", "pyarrow"} & sys.modules.keys(), flush=True)
    fail()

if __name__ == "__main__":
    main([])
"""


FAULTS = {
    "ragged": lambda rows: [*rows[:3], [*rows[3], CANARY], *rows[4:]],
    "short": lambda rows: [*rows[:3], [CANARY], *rows[4:]],
    "quote": lambda rows: [*rows[:3], [f'"{CANARY}', *rows[3][1:]], *rows[4:]],
    "after quote": lambda rows: [*rows[:3], [f'"{CANARY}" {CANARY}', *rows[3][1:]], *rows[4:]],
    "split": lambda rows: with_column(rows, "split", lambda row: ("train", CANARY, "test")[row % 3]),
    "patient in two splits": lambda rows: with_column(rows, "split", lambda row: ("train", "test")[row % 2]),
    "spellings": lambda rows: changed(rows, "patient_id", lambda row: f"{CANARY}1" if row % 2 else f" {CANARY}1 "),
    "loose spellings": lambda rows: changed(rows, "patient_id", lambda row: f"{CANARY}-1" if row % 2 else f"{CANARY}1"),
    "scientific": lambda rows: changed(rows, "patient_id", lambda row: f"1.93102E+{row}"),
    "no image": lambda rows: changed(rows, "image", lambda row: f"{CANARY}/{CANARY} {row}"),
    "absolute image": lambda rows: changed(rows, "image", lambda row: f"/patients/{CANARY}/{row}"),
    "image outside": lambda rows: changed(rows, "image", lambda row: f"../../{CANARY}"),
    "nul": lambda rows: changed(rows, "image", lambda row: f"{CANARY}\0x"),
    "newline": lambda rows: changed(rows, "image", lambda row: f'"{CANARY}\n{CANARY}\x1b[31m"'),
    "repeated ids": lambda rows: with_column(rows, "image_id", lambda row: CANARY),
    "ages": lambda rows: changed(rows, "age", lambda row: CANARY),
    "labels": lambda rows: changed(rows, "diagnosis", lambda row: ("1", "0", CANARY)[row % 3]),
    "several labels": lambda rows: changed(rows, "diagnosis", lambda row: f"{CANARY}|edema" if row % 2 else CANARY),
    "label spellings": lambda rows: changed(rows, "diagnosis", lambda row: (CANARY, CANARY.upper(), "edema")[row % 3]),
    "free text labels": lambda rows: changed(rows, "diagnosis", lambda row: f"{CANARY} {row}"),
    "decimal labels": lambda rows: changed(rows, "diagnosis", lambda row: ("1.5", CANARY)[row % 2]),
    "repeated column": lambda rows: [[*row, row[0]] for row in rows],
    "blank": lambda rows: [[CANARY]],
    "header alone": lambda rows: rows[:1],
}  # fmt: skip


def with_column(rows: list[list[str]], name: str, cell) -> list[list[str]]:
    return [[*rows[0], name], *([*row, cell(number)] for number, row in enumerate(rows[1:]))]


def changed(rows: list[list[str]], name: str, cell) -> list[list[str]]:
    place = rows[0].index(name)
    return [rows[0], *([*row[:place], cell(n), *row[place + 1 :]] for n, row in enumerate(rows[1:]))]


@pytest.mark.parametrize("title", ["data check", "audit table1"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_table_is_said_without_its_cells(fault, title, private, planted, tmp_path):
    rows = list(csv.reader(planted["table"].read_text(encoding="utf-8").replace(", ", " ").splitlines()))
    path = planted["table"].with_name(f"{CANARY} faulty.csv")
    path.write_text("\n".join(",".join(row) for row in FAULTS[fault](rows)) + "\n", encoding="utf-8")
    command = BY_TITLE[title]
    words = [str(path) if word == str(planted["table"]) else word for word in base_words(command, planted)]
    said = private(command, *words, *(["--near_copies"] if title == "data check" else []))
    assert said
    no_canary(said, tmp_path)


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".jsonl", f'{{"image": "{CANARY}", "text": {CANARY}}}\n'.encode()),
        (".jsonl", f'{{"image": "x", "text": {{"{CANARY}": ["{CANARY}"]}}}}\n'.encode()),
        (".parquet", f"PAR1 {CANARY} PAR1".encode()),
        (".xlsx", f"{CANARY}".encode()),
        (".csv", f"image,text\n{CANARY},\xe4 {CANARY}\n".encode("latin-1")),
        (".csv", f"image;text,{CANARY}\n{CANARY};x\n".encode()),
        (".csv.gz", CANARY.encode()),
        (".xls", CANARY.encode()),
        ("", CANARY.encode()),
    ],
)
def test_files_that_cannot_be_read_are_not_quoted(ending, content, private, planted, tmp_path):
    path = tmp_path / f"{CANARY} table{ending}"
    path.write_bytes(content)
    said = private(BY_TITLE["data check"], "--table", str(path), "--image_column", "image")
    assert "error" in said
    no_canary(said)
