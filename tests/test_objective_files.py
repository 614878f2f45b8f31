"""Objectives of a user's file: how they are found, what is refused, and who vouches for the code."""

import hashlib
import json
import os
import pickle
import re
import sys
from pathlib import Path

import pytest
from torch.multiprocessing import spawn

import train_pretrain
from adaptor_hf.objectives import AdaptorObjective, Objective
from adaptor_hf.objectives.loading import (
    MAX_SOURCE_BYTES,
    describe_objective,
    load_objective,
    make_objective,
    objective_class,
    objective_identity,
    on_all_ranks,
)
from adaptor_hf.options.parser import as_option
from adaptor_hf.privacy import mode as private_mode
from adaptor_hf.privacy.gate import start_filter, stop_filter
from adaptor_hf.privacy.messages import hide, in_package, without_quotations
from adaptor_hf.training.script_arguments import parse_arguments, path_arguments

MINE = """\
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from adaptor_hf.objectives import AdaptorObjective, Objective


@dataclass
class Held:
    margin: float


class Mine(Objective):
    \"\"\"
    Distances.

    Args:
        margin (`float`, defaults to 0.3): Least distance.
    \"\"\"

    def __init__(self, margin: float = 0.3, *, kind: Literal["near", "far"] = "near"):
        super().__init__()
        if margin < 0:
            raise ArithmeticError("a margin is no debt")
        self.held, self.kind = Held(margin), kind
        self.head = nn.Linear(4, 4)

    def forward(self, encoded, rows, gather):
        return {"loss": (self.head(encoded.image.pooled) - encoded.text.pooled).square().sum()}


class Nearer(Mine):
    pass


class Silent(Objective):
    pass


class Wishful(Mine):
    needs = frozenset({"word"})


class Spelled(Mine):
    needs = "pairs"


class Unmade(Objective):
    def __init__(self):
        pass

    forward = Mine.forward


class Papers(AdaptorObjective):
    pass


class siglip(Mine):
    pass


class adaptor(Mine):
    pass


def a_function():
    pass
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Name of the file, without a class; modules that a test makes are forgotten after it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    before = set(sys.modules)
    yield "mine.py"
    for name in set(sys.modules) - before:
        if name.startswith("objective_"):
            del sys.modules[name]


def parsed(*words: str):
    return parse_arguments([*words, "--train_file", "x.csv", "--output_dir", "o", "--use_cpu", "True"])


class TestLoading:
    def test_an_objective_of_a_file_has_its_options_and_knows_its_digest(self, mine, tmp_path):
        objective = load_objective(f"{mine}:Mine", {"margin": 1, "kind": "far"})
        assert isinstance(objective, Objective)
        assert (objective.held.margin, objective.kind) == (1, "far")
        digest = hashlib.sha256((tmp_path / mine).read_bytes()).hexdigest()
        assert objective.file_sha256 == digest
        assert objective_identity(objective) == {"name": "Mine", "sha256": digest}
        assert set(objective.state_dict()) == {"head.weight", "head.bias"}

    def test_two_of_a_file_differ_by_name_two_files_by_digest(self, mine, tmp_path):
        one, other = (objective_identity(load_objective(f"{mine}:{name}")) for name in ("Mine", "Nearer"))
        assert one["sha256"] == other["sha256"]
        assert (one["name"], other["name"]) == ("Mine", "Nearer")
        (tmp_path / mine).write_text(MINE + "\n", encoding="utf-8")
        assert objective_identity(load_objective(f"{mine}:Mine"))["sha256"] != one["sha256"]

    def test_what_inherits_from_one_of_the_package_is_not_called_as_it_is(self, mine):
        class Elsewhere(AdaptorObjective):
            pass

        assert objective_identity(AdaptorObjective()) == {"name": "adaptor", "sha256": ""}
        assert objective_identity(Elsewhere()) == {"name": "Elsewhere", "sha256": ""}
        objective = load_objective(f"{mine}:Papers", {"positives": "pair"})
        assert objective.positives == "pair"
        assert objective_identity(objective)["name"] == "Papers"
        assert AdaptorObjective.file_sha256 is None

    def test_a_file_is_run_once_and_its_objects_can_be_pickled(self, mine):
        one, other = load_objective(f"{mine}:Mine"), load_objective(f"{mine}:Mine")
        assert type(one) is type(other)
        assert pickle.loads(pickle.dumps(one)).held == one.held
        assert type(one).__module__ == f"objective_{one.file_sha256}"

    def test_the_same_bytes_at_two_places_know_their_own(self, mine, tmp_path):
        (tmp_path / "more").mkdir()
        text = MINE + "\nPLACE = __file__\n"
        for place in (tmp_path, tmp_path / "more"):
            (place / mine).write_text(text, encoding="utf-8")
            made = objective_class(str(place / mine) + ":Mine")
            assert vars(sys.modules[made.__module__])["PLACE"] == str(place / mine)

    def test_those_of_the_package_by_name(self):
        assert type(load_objective("adaptor")) is AdaptorObjective
        assert load_objective("adaptor").positives is None
        assert load_objective("adaptor", {"positives": "study"}).positives == "study"
        with pytest.raises(ValueError, match=r"no objective 'adapter'. Did you mean adaptor\? .*file.py:Class"):
            load_objective("adapter")
        with pytest.raises(ValueError, match="image_to_text_weight is a field of the model's AdaptorConfig"):
            load_objective("adaptor", {"image_to_text_weight": 0.5})
        with pytest.raises(ValueError, match="objective: positives must be one of text, study, pair, got 'x'"):
            load_objective("adaptor", {"positives": "x"})

    def test_a_card_says_which_by_name(self):
        assert describe_objective("adaptor") == "a contrastive loss"
        assert describe_objective("Mine") == "the objective `Mine`, code of its author's own,"


class TestFaults:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("mine.py", "'mine.py' is named without a class: expected file.py:Class. Its objectives: Mine, Nearer"),
            ("mine.py:", "is named without a class"),
            ("mine.py:Mien", r"has no class 'Mien' of its own: .*Did you mean Mine\? Its objectives: Mine, "),
            ("mine.py:Mine.x", "has no class 'Mine.x' of its own"),
            ("mine.py:Objective", "has no class 'Objective' of its own"),
            ("mine.py:AdaptorObjective", "has no class 'AdaptorObjective' of its own"),
            ("mine.py:Held", "Held of 'mine.py' is no objective: expected a class that inherits from adaptor_hf.obj"),
            ("mine.py:a_function", "a_function of 'mine.py' is no objective"),
            ("mine.py:Silent", "The objective Silent of 'mine.py' has no forward"),
            ("mine.py:Wishful", r"needs frozenset\({'word'}\): expected a set of pairs, .* Did you mean words\?"),
            ("mine.py:Spelled", r"needs 'pairs': expected a set of pairs, "),
            ("mine.py:Unmade", "Unmade of '.*mine.py' is no module yet when it is made: .*super"),
            ("mine.py:adaptor", "The class 'adaptor' of 'mine.py' is called as an objective of the package"),
            ("none.py:Mine", "There is no file 'none.py' for the objective"),
            ("mine:Mine", "There is no objective 'mine:Mine'"),
        ],
    )
    def test_what_is_not_there_is_named(self, mine, name, message):
        with pytest.raises((ValueError, OSError), match=message):
            load_objective(name)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("import os\n\ndef x(:\n", "The file cannot be run: SyntaxError: invalid syntax, in line 3 of '.*bad.py'"),
            ("if 1:\npass\n", "IndentationError: expected an indented block .*, in line 2 of '"),
            ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all', in line 1 of"),
            ("\n\ndef f():\n    return 1 / 0\n\n\nf()\n", "ZeroDivisionError: division by zero, in line 4 of"),
            ("import sys\nsys.exit('stop')\n", "SystemExit: stop, in line 2 of"),
            ("x = " + "(" * 5000 + "\n", "SyntaxError|MemoryError|RecursionError"),
            ("import json\njson.loads('{')\n", "JSONDecodeError: .*, in line 2 of"),
            ("x = 'a\0b'\n", "The file cannot be run: (SyntaxError|ValueError): source code string cannot contain"),
            ("exec('a b')\n", "SyntaxError: invalid syntax .*, in line 1 of"),
        ],
    )
    def test_code_that_fails_is_named_with_its_line(self, mine, tmp_path, source, message):
        (tmp_path / "bad.py").write_text(source, encoding="utf-8")
        before = set(sys.modules)
        with pytest.raises(ValueError, match=message):
            load_objective("bad.py:Mine")
        assert not [name for name in set(sys.modules) - before if name.startswith("objective_")]

    def test_bytes_that_are_no_text(self, mine, tmp_path):
        (tmp_path / "bad.py").write_bytes(b"x = '\xff'\n")
        with pytest.raises(ValueError, match=r"The file cannot be run: SyntaxError: .*bad\.py"):
            load_objective("bad.py:Mine")

    def test_an_init_that_fails_is_named_with_its_line(self, mine):
        line = MINE.splitlines().index('            raise ArithmeticError("a margin is no debt")') + 1
        with pytest.raises(
            ValueError, match=f"Mine cannot be made: ArithmeticError: a margin is no debt, in line {line} "
        ):
            load_objective(f"{mine}:Mine", {"margin": -1})

    def test_only_regular_files_of_a_size_are_read(self, mine, tmp_path):
        os.mkfifo(tmp_path / "pipe.py")
        with pytest.raises(OSError, match=r"pipe\.py: not a file but a pipe"):
            load_objective("pipe.py:Mine")
        (tmp_path / "folder.py").mkdir()
        with pytest.raises(OSError, match=r"folder\.py: not a file but a folder"):
            load_objective("folder.py:Mine")
        (tmp_path / "big.py").write_bytes(b"#" * (MAX_SOURCE_BYTES + 1))
        with pytest.raises(ValueError, match=r"big\.py: 1,048,577 bytes, over the limit of 1,048,576"):
            load_objective("big.py:Mine")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"margn": 1}, r"The objective Mine has no field 'margn'. Did you mean margin\? Its fields: margin, kind"),
            ({"margin": "1"}, "objective: margin must be float, got '1'"),
            ({"kind": "up"}, "objective: kind must be one of near, far, got 'up'"),
        ],
    )
    def test_wrong_options_are_named(self, mine, given, message):
        with pytest.raises(ValueError, match=message):
            load_objective(f"{mine}:Mine", given)
        with pytest.raises(ValueError, match=message):
            parsed("--objective", json.dumps({"name": f"{mine}:Mine", **given}))


class TestTrust:
    """Code runs on the word of who typed the command; a recipe is somebody else's."""

    @pytest.fixture
    def recipe(self, mine, tmp_path):
        """Writes a recipe, and a file of an objective that says when it is run."""
        (tmp_path / "evil.py").write_text(
            f"import pathlib\npathlib.Path('ran').touch()\n{MINE.partition('annotations')[2]}", encoding="utf-8"
        )

        def write(text: str) -> str:
            (tmp_path / "theirs.yaml").write_text(text, encoding="utf-8")
            return "theirs.yaml"

        return write

    def test_the_command_line_is_the_users_word(self, recipe, tmp_path):
        _, model, *_ = parsed("--objective", "evil.py:Mine")
        assert (tmp_path / "ran").exists()
        assert model.make_objective().held.margin == 0.3

    @pytest.mark.parametrize(
        "text",
        [
            "objective: evil.py:Mine\n",
            "objective: {name: evil.py:Mine, margin: 0.5}\n",
            'objective: \'{"name": "evil.py:Mine"}\'\n',
        ],
    )
    @pytest.mark.parametrize("first", [True, False])
    def test_a_recipe_needs_the_users_word(self, recipe, tmp_path, text, first):
        name = [recipe(text)] if first else ["--recipe", recipe(text)]
        for words in ([], ["--trust_remote_code", "False"], ["--objective", '{"margin": 0.7}']):
            with pytest.raises(ValueError, match=r"The recipe names code for objective: 'evil\.py:Mine'.*--trust"):
                parsed(*name, *words)
        assert not (tmp_path / "ran").exists()
        for words in (["--trust_remote_code", "True"], ["--trust_remote_code"]):
            _, model, run, _ = parsed(*name, *words)
            assert model.objective.made.__name__ == "Mine"
            assert run.trust_remote_code
        assert (tmp_path / "ran").exists()

    def test_who_names_the_file_too_or_another_objective_needs_no_more(self, recipe, tmp_path):
        name = recipe("objective: {name: evil.py:Mine, margin: 0.5}\n")
        _, model, *_ = parsed(name, "--objective", "adaptor")
        assert model.objective_record()["name"] == "adaptor"
        assert not (tmp_path / "ran").exists()
        _, model, *_ = parsed(name, "--objective", "evil.py:Mine")
        assert model.make_objective().held.margin == 0.5

    @pytest.mark.parametrize("value", ["true", "false", "null", "[true]"])
    def test_a_recipe_cannot_vouch_for_itself(self, recipe, tmp_path, value):
        name = recipe(f"objective: evil.py:Mine\ntrust_remote_code: {value}\n")
        for words in ([], ["--trust_remote_code", "True"]):
            with pytest.raises(ValueError, match="trust_remote_code stands in the recipe, which cannot vouch"):
                parsed(name, *words)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        "items",
        [
            ["--trust_remote_code", "True"],
            ["--trust_remote_code=True"],
            ["--trust-remote-code"],
            ["--objective", "evil.py:Mine"],
            ["--objective=evil.py:Mine"],
            ["--end-of-recipe", "--objective=evil.py:Mine"],
        ],
    )
    def test_nor_by_words_in_a_list_that_look_like_options(self, recipe, tmp_path, items):
        for option in ("dataset_weights", "learning_rate_grid", "report_to"):
            listed = ", ".join(f"'{item}'" for item in ["1", *items])
            name = recipe(f"objective: evil.py:Mine\n{option}: [{listed}]\n")
            with pytest.raises(ValueError, match=f"{option}: '--.*' in the list looks like an option"):
                parsed(name)
        assert not (tmp_path / "ran").exists()
        assert as_option("x", [-1, "-", "a--b"]) == ["--x", "-1", "-", "a--b"]


FAILS = """import warnings
warnings.warn('canary 1931')
raise ValueError('canary 1931')
"""


class TestPrivate:
    """Where messages are filtered, nothing of the file's place or of what its code says comes out."""

    @pytest.fixture
    def planted(self, mine, tmp_path, monkeypatch):
        folder = tmp_path / "canary"
        folder.mkdir()
        monkeypatch.chdir(folder)
        (folder / "canary.py").write_text(MINE, encoding="utf-8")
        (folder / "bad.py").write_text("\nraise KeyError('canary 1931')\n", encoding="utf-8")
        (folder / "worse.py").write_text("\ncanary = canary canary\n", encoding="utf-8")
        os.mkfifo(folder / "canary pipe.py")
        start_filter()
        yield folder
        stop_filter()

    @pytest.mark.parametrize(
        ("name", "kept"),
        [
            ("canary.py:Mien", "Did you mean Mine"),
            ("canary.py", "is named without a class"),
            ("canary.py:Canary1931", "has no class <hidden> of its own"),
            ("{folder}/canary.py:Silent", "has no forward"),
            ("none-canary.py:Mine", "There is no file <hidden> for the objective"),
            ("bad.py:Mine", "The file cannot be run: KeyError: <hidden>, in line 2 of <hidden>"),
            ("worse.py:Mine", "SyntaxError: <hidden>, in line 2 of <hidden>"),
            ("canary:Mine", "There is no objective <hidden>"),
            ("canary pipe.py:Mine", "<hidden>: not a file but a pipe"),
        ],
    )
    def test_of_an_error_the_kind_and_the_line_are_said(self, planted, name, kept):
        with pytest.raises((ValueError, OSError)) as raised:
            load_objective(name.format(folder=planted))
        said = hide(without_quotations(raised.value))
        assert kept in said, said
        assert "canary" not in said.lower()

    @pytest.mark.parametrize("place", ["train_pretrain.py", "adaptor_hf/losses.py"])
    def test_a_file_is_not_the_packages_for_its_name(self, planted, place, capsys):
        file = planted / place
        file.parent.mkdir(exist_ok=True)
        file.write_text(FAILS, encoding="utf-8")
        with pytest.raises(ValueError, match="cannot be run") as caused:
            load_objective(f"{file}:Mine")
        said = hide(without_quotations(caused.value)), hide(without_quotations(caused.value.__cause__))
        assert "ValueError: <hidden>, in line 3" in said[0]
        assert said[1].endswith("What it says is hidden: it may quote the data")
        warned = capsys.readouterr().err
        assert "UserWarning at line 2 of <hidden>: what it says is hidden" in warned
        assert "canary" not in "".join(said) + warned

    def test_a_place_is_what_it_stands_for(self, monkeypatch):
        root = Path(train_pretrain.__file__).parent
        monkeypatch.chdir(root / "adaptor_hf")
        assert not in_package("<string>")
        assert in_package(train_pretrain.__file__)
        assert in_package(str(root / "docs/../adaptor_hf/privacy/mode.py"))
        assert not in_package(str(root / "adaptor_hf/../objective.py"))
        assert not in_package(str(root / "examples/train_pretrain.py"))

    def test_words_among_the_options_are_keyed_in_the_record(self, planted):
        model = parsed("--objective", '{"name": "canary.py:Mine", "kind": "far"}')[1]
        record = model.objective_record()
        assert record["options"] == {"margin": 0.3, "kind": "far"}
        (planted / "words.py").write_text(
            MINE + "\n\nclass Words(Mine):\n    def __init__(self, place: str = 'x', names: list[str] = ('canary',)):\n"
            "        super().__init__()\n",
            encoding="utf-8",
        )
        given = json.dumps({"name": "words.py:Words", "place": "canary"})
        groups = parsed("--objective", given)
        assert str(planted / "words.py") in path_arguments(*groups)
        assert groups[1].objective_record()["options"] == {"place": "canary", "names": ["canary"]}
        with private_mode.private_mode(b"k" * 32):
            hidden = json.dumps(groups[1].objective_record())
            options = json.dumps([private_mode.private_options(group) for group in groups], default=str)
        assert "canary" not in hidden + options
        assert '"name": "Words"' in hidden


KINDS = {
    "same": ("^Mine$", "^Mine$"),
    "other": ("ValueError: Processes 0 and 1 have different files of the objective Mine", "ValueError: Processes 0"),
    "late": ("ValueError: Processes 0 and 1 have different files", "ValueError: Processes 0 and 1"),
    "missing": ("RuntimeError: Process 1 could not load the objective", "FileNotFoundError: There is no file"),
}


def _on_a_rank(rank: int, folder: str) -> None:
    import torch.distributed as dist

    mine = f"{folder}/mine.py:Mine"
    # As the script does: read before the processes have met.
    early = objective_class(f"{folder}/{'mine' if rank == 0 else 'other'}.py:Mine")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    said = {}
    for kind in KINDS:
        try:
            if kind == "late":
                objective = make_objective(on_all_ranks(lambda: early), {})
            else:
                objective = load_objective(mine if rank == 0 or kind == "same" else f"{folder}/{kind}.py:Mine")
            said[kind] = type(objective).__name__
        except Exception as error:
            said[kind] = f"{type(error).__name__}: {error}"
    with open(f"{folder}/{rank}.json", "w", encoding="utf-8") as file:
        json.dump(said, file)
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_have_the_same_file_or_all_stop(mine, tmp_path):
    (tmp_path / "other.py").write_text(MINE + "\n", encoding="utf-8")
    spawn(_on_a_rank, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        said = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        for kind, expected in KINDS.items():
            assert re.search(expected[rank], said[kind]), (rank, kind, said[kind])
