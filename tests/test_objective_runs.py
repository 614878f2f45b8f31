"""
Whole runs of objectives that users write, each a small file of `objectives_of_users` copied to a folder of its own:
parameters, a queue, a momentum copy, images and texts that differ in number. And of the sigmoid loss.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import objective_runs
import pytest
import torch
from objective_runs import FILES, LAST, OBJECTIVES, tensors, train, train_unpaired
from safetensors.torch import load_file
from script_runs import differences, history, kill_group, start, states, steps, wait_for

from adaptor_hf.objectives.loading import load_objective

KINDS = [*OBJECTIVES, "unpaired"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return shutil.copytree(FILES, tmp_path_factory.mktemp("user") / "objectives")


def trained(kind: str, cache: Path, output: Path, files: Path, **changes) -> Path:
    if kind == "unpaired":
        return train_unpaired(output, files, **changes)
    return train(cache, output, kind, files, **changes)


@pytest.fixture(scope="module")
def whole(cache_folder, files, tmp_path_factory):
    """The last checkpoint of a run of each kind in one process, without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    return {kind: trained(kind, cache_folder, folder / kind, files) for kind in KINDS}


@pytest.fixture(scope="module")
def two_ranks(cache_folder, files, tmp_path_factory):
    """Folder of the same runs on two gloo ranks, also with GradCache (`KIND-parts`)."""
    folder = tmp_path_factory.mktemp("two")
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone"]
    command = [sys.executable, *launch, objective_runs.__file__, str(folder), str(cache_folder), str(files)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


def assert_close(checkpoint: Path, expected: Path) -> None:
    found, wanted = tensors(checkpoint), tensors(expected)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if not value.is_floating_point():
            assert torch.equal(found[name], value), name
            continue
        error = (found[name] - value).norm() / value.norm().clamp_min(1e-6)
        assert error < 1e-6, (name, error.item())


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_minimises_it_and_trains_what_it_adds(whole, kind):
    entries = [entry for entry in history(whole[kind].parent / whole[kind].name) if "loss" in entry]
    assert entries[-1]["loss"] < 0.9 * entries[0]["loss"]
    first = min(whole[kind].parent.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    before, after = tensors(first), tensors(whole[kind])
    assert [name for name in before if torch.equal(before[name], after[name]) and before[name].any()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_process(whole, two_ranks, kind):
    assert_close(two_ranks / kind / whole[kind].name, whole[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_grad_cache_equals_the_whole_batch_also_on_two_ranks(whole, two_ranks, cache_folder, files, tmp_path, kind):
    assert_close(trained(kind, cache_folder, tmp_path, files, grad_cache_batch_size=5), whole[kind])
    if (parts := two_ranks / f"{kind}-parts").exists():
        assert_close(parts / whole[kind].name, whole[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_bit_for_bit_from_a_checkpoint(whole, cache_folder, files, tmp_path, kind):
    checkpoint = sorted(whole[kind].parent.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[0]
    shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    last = trained(kind, cache_folder, tmp_path, files, resume_from_checkpoint=str(tmp_path / checkpoint.name))
    assert_same_end(last, whole[kind])


def test_on_two_ranks_it_goes_on_bit_for_bit(two_ranks):
    folders = (two_ranks / name / f"checkpoint-{LAST}" for name in ("queued-resumed", "queued"))
    assert_same_end(*folders, ranks=2)


def assert_same_end(last: Path, whole: Path, ranks: int = 1) -> None:
    assert differences(states(last, ranks), states(whole, ranks)) == []
    assert differences(tensors(last), tensors(whole)) == []
    assert (last / "objective.safetensors").read_bytes() == (whole / "objective.safetensors").read_bytes()
    assert history(last) == history(whole)


def test_a_killed_run_goes_on_bit_for_bit(whole, cache_folder, files, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    words = objective_runs.words(cache_folder, output, "queued", files)
    process = start([sys.executable, "train_pretrain.py", *words], log)
    try:
        wait_for(lambda: steps(output), process, "a checkpoint")
    finally:
        kill_group(process)
    assert LAST not in steps(output)
    assert_same_end(train(cache_folder, output, "queued", files, resume_from_checkpoint="True"), whole["queued"])


def test_its_state_is_in_checkpoints_and_not_beside_the_model(whole):
    folder = whole["queued"].parent
    assert load_file(whole["queued"] / "objective.safetensors").keys() == {
        "projector.weight", "projector.bias", "queue"
    }  # fmt: skip
    assert not (folder / "objective.safetensors").exists()
    assert not [name for name in load_file(folder / "model.safetensors") if "projector" in name or "queue" in name]


def test_terms_and_digest_are_recorded(whole, files):
    import hashlib

    record = json.loads((whole["queued"].parent / "run.json").read_text())
    assert record["objective"] == {
        "name": "Queued",
        "sha256": hashlib.sha256((files / "queued.py").read_bytes()).hexdigest(),
        "options": {"size": 24},
    }
    assert 0 < history(whole["queued"])[-1]["accuracy"] <= 1
    entry = history(whole["momentum"])[-1]
    assert entry["images"] + entry["texts"] == pytest.approx(entry["loss"], rel=1e-6)


def test_a_momentum_copy_is_the_mean_of_the_model_and_the_same_on_both_ranks(whole, two_ranks):
    state = tensors(whole["momentum"])
    slow, fast = state["slow.visual_projection.weight"], state["visual_projection.weight"]
    assert 1e-4 < (slow - fast).norm() / fast.norm() < 0.5
    of_ranks = [dict(torch.load(two_ranks / f"momentum-{rank}.pt", weights_only=True)) for rank in (0, 1)]
    assert differences(*of_ranks) == []
    saved = load_file(two_ranks / "momentum" / f"checkpoint-{LAST}" / "objective.safetensors")
    assert differences(of_ranks[0], saved) == []


def test_another_version_of_the_file_is_refused_on_resume(whole, cache_folder, files, tmp_path):
    changed = shutil.copytree(files, tmp_path / "changed")
    (changed / "queued.py").write_text((files / "queued.py").read_text() + "\n# Another.\n")
    shutil.copytree(whole["queued"], tmp_path / "run" / whole["queued"].name)
    with pytest.raises(ValueError, match=r"trained by the objective 'Queued' \(file with SHA-256"):
        train(cache_folder, tmp_path / "run", "queued", changed, resume_from_checkpoint="True")


WRONG = """
import torch
from adaptor_hf.objectives import AdaptorObjective, Objective
class Wrong(AdaptorObjective):
    def forward(self, encoded, rows, gather):
        loss = super().forward(encoded, rows, gather)["loss"]
        return RETURNED
"""


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ("{'mine': loss}", ValueError, 'forward of Wrong must return "loss", which is minimised; it gave mine'),
        ("{}", ValueError, "it gave nothing"),
        ("loss", TypeError, "must return a dictionary of scalar tensors, got Tensor"),
        ("{'loss': loss.item()}", TypeError, r"a dictionary of 'loss' \(float\)"),
        ("{'loss': loss * torch.ones(3)}", ValueError, r"The term 'loss' of Wrong is of shape \(3,\), not a scalar"),
        ("{'loss': loss * torch.nan}", FloatingPointError, "loss"),
        ("{'loss': loss, 'mine': torch.zeros(0).mean()}", FloatingPointError, "The term 'mine' .* became nan"),
        ("{'loss': loss, 'epoch': loss}", ValueError, "a term named 'epoch', which is something else in the log"),
        ("{'loss': loss, 'eval_mine': loss}", ValueError, "'eval_mine'"),
        ("{'loss': loss.detach()}", ValueError, "gradient"),
    ],
)
def test_what_is_no_loss_is_refused_by_name(views, tmp_path, returned, error, message):
    (tmp_path / "wrong.py").write_text(WRONG.replace("RETURNED", returned))
    with pytest.raises(error, match=message):
        train_wrong(views, tmp_path)


def test_what_the_data_lack_is_named_before_the_first_step(views, tmp_path):
    needy = WRONG.replace("RETURNED", "{'loss': loss}").replace(
        "(AdaptorObjective):",
        """(AdaptorObjective):
    needs = frozenset({"pairs", "image_tokens"})""",
    )
    (tmp_path / "wrong.py").write_text(needy)
    with pytest.raises(ValueError, match=r"needs .*tokens"):
        train_wrong(views, tmp_path)


def train_wrong(views, tmp_path):
    from synthetic import synthetic_model

    from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments

    arguments = AdaptorTrainingArguments(
        output_dir=str(tmp_path / "run"), global_batch_size=16, max_steps=3, logging_steps=1, use_cpu=True,
        disable_tqdm=True, eval_strategy="no", save_strategy="no", load_best_model_at_end=False,
    )  # fmt: skip
    objective = load_objective(f"{tmp_path / 'wrong.py'}:Wrong")
    trainer = AdaptorTrainer(model=synthetic_model(), args=arguments, objective=objective, train_dataset=views["train"])
    trainer.train()
