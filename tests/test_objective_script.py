"""The page's own objective through train_pretrain.py: record, card, checklist, resume, and private mode."""

import hashlib
import json
import re
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import datasets
import private_commands as plants
import pytest
import torch
from private_commands import CANARY, no_canary
from safetensors import safe_open
from synthetic import synthetic_cache, synthetic_config
from test_docs import blocks

import train_pretrain
from adaptor_hf import AdaptorModel
from adaptor_hf.audit.facts import run_facts
from adaptor_hf.embeddings import open_cache
from adaptor_hf.objectives import Encoded, Gather, Side, known_objectives
from adaptor_hf.objectives.loading import load_objective, objective_name
from adaptor_hf.privacy import mode as private_mode
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.controls import ShuffledPairs
from adaptor_hf.training.objective_fields import OBJECTIVES
from adaptor_hf.training.pairs import contrastive_splits
from adaptor_hf.verify import verify

PAGE = Path(__file__).parents[1] / "docs/objectives.md"
EXAMPLE = blocks(PAGE, "python")[0]
SMALL = ["--aligner", '{"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}', "--use_cpu", "True",
         "--global_batch_size", "16", "--learning_rate", "1e-3"]  # fmt: skip


@pytest.fixture(autouse=True)
def forgotten():
    """Modules of objectives that a test has loaded are forgotten after it."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("objective_"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("objective-cache") / "embeddings"
    synthetic_cache(folder, num_rows=60, num_texts=50)
    return folder


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory) -> Path:
    """A run of two epochs with the page's file, `hardest.py` beside its folder `out`."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "hardest.py").write_text(EXAMPLE, encoding="utf-8")
    train(folder, cache, "--num_train_epochs", "2")
    return folder


def train(folder: Path, cache: Path, *words: str, name: str = "hardest.py:HardestNegative", **options) -> None:
    given = json.dumps({"name": f"{folder}/{name}", "margin": 0.3, **options})
    train_pretrain.main(
        ["--cache", str(cache), "--objective", given, "--output_dir", str(folder / "out"), *SMALL, *words]
    )


def test_the_file_of_the_page_has_thirty_lines_of_code():
    lines = [line for line in EXAMPLE.splitlines() if line.strip()]
    docs = sum(line.strip().startswith(('"""', "Args:", "margin (", "sides (")) for line in lines)
    assert len(lines) - docs <= 30


def test_the_table_of_the_page_has_every_objective_with_its_fields():
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (`.*`) \|$", page.partition("## One of")[0], re.MULTILINE)
    found = {name: re.findall(r"`(\w+)`", listed) for name, listed in rows}
    assert found.keys() == known_objectives().keys()
    for name, declared in OBJECTIVES.known.items():
        assert set(found[name]) == {item.name for item in fields(declared)}, name


def test_the_loss_of_the_page_is_that_of_a_loop(tmp_path):
    (tmp_path / "hardest.py").write_text(EXAMPLE, encoding="utf-8")
    torch.manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(6, 8, dtype=torch.float64), dim=1) for _ in range(2))
    text_row = torch.tensor([0, 1, 2, 3, 3, 4])
    for sides in ("both", "images"):
        objective = load_objective(f"{tmp_path}/hardest.py:HardestNegative", {"margin": 0.5, "sides": sides})
        objective.projector = torch.nn.Linear(8, 8, bias=False, dtype=torch.float64)
        terms = objective(Encoded(Side(images), Side(texts)), {"text_row": text_row}, Gather())
        projected = images @ objective.projector.weight.T
        cosine = torch.nn.functional.normalize(projected, dim=1).detach() @ texts.T
        expected = violated = 0.0
        for row in range(6):
            others = [other for other in range(6) if text_row[other] != text_row[row]]
            loss = max(0.0, *(float(0.5 + cosine[row, other] - cosine[row, row]) for other in others))
            if sides == "both":
                loss += max(0.0, *(float(0.5 + cosine[other, row] - cosine[row, row]) for other in others))
            expected, violated = expected + loss / 6, violated + (loss > 0) / 6
        assert terms["loss"].item() == pytest.approx(expected, rel=1e-12)
        assert terms["violations"].item() == pytest.approx(violated)


def test_the_run_says_what_it_minimised_and_keeps_its_state_in_checkpoints_alone(finished):
    out, digest = finished / "out", hashlib.sha256(EXAMPLE.encode()).hexdigest()
    record = json.loads((out / "run.json").read_text())
    assert record["objective"] == {
        "name": "HardestNegative", "sha256": digest, "options": {"margin": 0.3, "sides": "both"},
    }  # fmt: skip
    assert 0 < record["terms"]["violations"] <= 1
    model = AdaptorModel.from_pretrained(out, load_towers=False)
    of_weights = {"parameters": model.num_parameters(), "objective_parameters": 48 * 48}
    assert {name: record["weights"][name] for name in of_weights} == of_weights
    card = (out / "README.md").read_text()
    assert "trained with the objective `HardestNegative`, code of its author's own, on image-report pairs" in card
    assert "| objective | HardestNegative |" in card
    assert "| positives |" not in card
    assert "hardest.py" not in card
    assert str(finished) not in card
    training = run_facts(out)["training"]
    assert f"Objective HardestNegative, own code with SHA-256 {digest}, with margin 0.3, sides both;" in training
    assert "ontrastive" not in training + run_facts(out)["category"]
    states = {path.parent.name for path in out.rglob("objective.safetensors")}
    assert states
    assert all(re.fullmatch(r"checkpoint-\d+", name) for name in states)
    with safe_open(next(out.rglob("objective.safetensors")), framework="pt") as file:
        assert list(file.keys()) == ["projector.weight"]
        assert digest in json.dumps(file.metadata())
        assert "hardest.py" not in json.dumps(file.metadata())
    assert not [path for path in out.rglob("*") if path.is_file() and b'violations": share' in path.read_bytes()]
    assert "projector" not in str(AdaptorModel.from_pretrained(out, load_towers=False).state_dict().keys())


def test_a_card_that_names_another_objective_is_found_out(finished, cache):
    card = finished / "out/README.md"
    text = card.read_text()
    assert verify(finished / "out", str(cache)) == []
    try:
        card.write_text(text.replace("| objective | HardestNegative |", "| objective | adaptor |"))
        found = verify(finished / "out", str(cache))
    finally:
        card.write_text(text)
    assert "Model card: the argument objective is adaptor, and run.json has HardestNegative." in found


@pytest.fixture
def in_python(finished, cache):
    """Trains in Python by the name of the file, which is the word of who writes it."""

    def make(**more) -> AdaptorTrainer:
        arguments = AdaptorTrainingArguments(
            str(finished / "python"), num_train_epochs=1, global_batch_size=16, eval_strategy="no", use_cpu=True,
            save_strategy="no", load_best_model_at_end=False,
        )  # fmt: skip
        parts = contrastive_splits(open_cache(cache))
        return AdaptorTrainer(
            model=AdaptorModel(synthetic_config()), args=arguments, train_dataset=parts["train"], **more
        )

    return make


def test_a_trainer_takes_the_name_of_a_file(in_python, finished):
    trainer = in_python(objective=f"{finished}/hardest.py:HardestNegative")
    assert trainer.objective.file_sha256 == hashlib.sha256(EXAMPLE.encode()).hexdigest()
    before = trainer.objective.projector.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.objective.projector.weight)


@pytest.mark.parametrize("name", ["hardest.py:HardestNegative", "siglip"])
def test_controls_minimise_what_the_run_does(finished, cache, tmp_path, name, monkeypatch):
    shutil.copy(finished / "hardest.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    made = []
    plain = AdaptorTrainer.__init__

    def noting(self, *args, **options):
        plain(self, *args, **options)
        made.append(type(self.objective))

    monkeypatch.setattr(AdaptorTrainer, "__init__", noting)
    words = ["--cache", str(cache), "--objective", name, "--output_dir", "out", *SMALL, "--num_train_epochs", "1"]
    train_pretrain.main([*words, "--controls", "True"])
    assert len(made) >= 4
    assert len(set(made)) == 1
    assert objective_name(made[0]) == name.rpartition(":")[2]


def test_shuffled_pairs_move_all_columns_of_the_texts():
    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitems__(self, rows):
            rows = torch.as_tensor(rows)
            names = ("image_embeds", "text_embeds", "text_row", "words", "text_tokens", "study", "row", "view_embeds")
            return {name: rows.clone() for name in names}

    shuffled = ShuffledPairs(Pairs(), seed=0)
    found = shuffled.__getitems__(list(range(8)))
    for name, value in found.items():
        of_text = name in ("text_embeds", "text_row", "words", "text_tokens")
        assert value.tolist() == (shuffled.partner.tolist() if of_text else list(range(8))), name


class TestResume:
    @pytest.fixture
    def stopped(self, finished, tmp_path) -> Path:
        shutil.copytree(finished, tmp_path / "run")
        return tmp_path / "run"

    def resume(self, folder: Path, cache: Path, **more) -> None:
        train(folder, cache, "--num_train_epochs", "3", "--resume_from_checkpoint", "True", **more)

    def test_the_same_file_goes_on_wherever_it_lies(self, stopped, cache):
        before = json.loads((stopped / "out/trainer_state.json").read_text())["global_step"]
        self.resume(stopped, cache)
        assert json.loads((stopped / "out/trainer_state.json").read_text())["global_step"] > before

    def test_another_file_and_another_class_are_refused(self, stopped, cache):
        digest = hashlib.sha256(EXAMPLE.encode()).hexdigest()
        (stopped / "hardest.py").write_text(EXAMPLE + "\n\nclass Other(HardestNegative):\n    pass\n")
        changed = hashlib.sha256((stopped / "hardest.py").read_bytes()).hexdigest()
        with pytest.raises(ValueError, match=f"'HardestNegative'.*{digest[:12]}.*'HardestNegative'.*{changed[:12]}"):
            self.resume(stopped, cache)
        with pytest.raises(ValueError, match=r"'HardestNegative'.*'Other'"):
            self.resume(stopped, cache, name="hardest.py:Other")
        words = ["--num_train_epochs", "3", "--resume_from_checkpoint", "True"]
        with pytest.raises(ValueError, match=r"'HardestNegative'.*'adaptor'"):
            train_pretrain.main(["--cache", str(cache), "--output_dir", str(stopped / "out"), *SMALL, *words])

    def test_no_code_is_run_for_a_checkpoint(self, stopped, cache):
        # Without the file, and without its name on the command line, there is nothing to run.
        (stopped / "hardest.py").unlink()
        with pytest.raises(FileNotFoundError, match=r"There is no file '.*hardest\.py' for the objective"):
            self.resume(stopped, cache)


def test_a_wrong_option_stops_before_anything_is_read(finished, tmp_path):
    # The cache is not there: it is the objective that is said to be wrong.
    (tmp_path / "hardest.py").write_text(EXAMPLE.replace("super().__init__()", "super().__init__(); 1 / (margin - 9)"))
    with pytest.raises(ValueError, match=r"HardestNegative cannot be made: ZeroDivisionError: .*, in line "):
        train(tmp_path, finished / "none", margin=9)


def test_a_private_run_says_and_writes_nothing_of_the_file(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ADAPTOR_PRIVATE", "1")
    monkeypatch.setattr(private_mode, "_key", None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    table = plants.plant_table(tmp_path)
    folder = tmp_path / f"code of {CANARY}"
    folder.mkdir()
    source = EXAMPLE.replace('Literal["both", "images"]', "str").replace(
        "import torch\n", f"import torch\n# {CANARY}\n", 1
    )
    (folder / f"{CANARY}.py").write_text(source)
    monkeypatch.chdir(folder)
    (command,) = [one for one in plants.commands() if one.title == "train_pretrain"]
    words = [
        "--train_file", str(table), "--image_column", "image", "--text_column", "text", "--patient_column",
        "patient_id", "--vision_tower", "lite0", "--text_tower", "minilm", "--output_dir", str(tmp_path / "out"),
        "--key_file", str(tmp_path / "key"), "--num_train_epochs", "1", *SMALL, "--global_batch_size", "4",
    ]  # fmt: skip
    named = {"name": f"{CANARY}.py:HardestNegative", "sides": f"{CANARY}"}
    said = plants.said_by(command, [*words, "--objective", json.dumps(named)], capfd)
    assert "error" not in said, said
    # A word of the tokenizer's own vocabulary.
    no_canary(said, tmp_path / "out", but=("tokenizer.json", "vocab.txt"))
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["objective"]["name"] == "HardestNegative"
    assert record["objective"]["sha256"] == hashlib.sha256(source.encode()).hexdigest()
    assert record["objective"]["options"]["margin"] == 0.2
    assert re.fullmatch(r"[0-9a-f]{16,}", record["objective"]["options"]["sides"])
    (folder / f"{CANARY}.py").write_text(f"\nraise ValueError('{CANARY}')\n")
    shutil.rmtree(tmp_path / "out")
    said = plants.said_by(command, [*words, "--objective", json.dumps(named)], capfd)
    assert "The file cannot be run: ValueError: <hidden>, in line 2 of <hidden>" in said
    no_canary(said)
