"""Runs of the objectives in `objectives_of_users`, in this process, or on each of several gloo ranks as a script."""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

FILES = Path(__file__).parent / "objectives_of_users"
OBJECTIVES = {
    "queued": "queued.py:Queued",
    "momentum": "momentum.py:Momentum",
    "sometimes": "sometimes.py:Sometimes",
    "siglip": "siglip",
}
OPTIONS = {
    "aligner": '{"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64, "hidden_dropout_prob": 0, '
    '"attention_probs_dropout_prob": 0}',
    "global_batch_size": 16,
    "learning_rate": 1e-3,
    "num_train_epochs": 2,
    "dataloader_drop_last": True,
    "save_strategy": "steps",
    "save_steps": 5,
    "save_total_limit": 9,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "logging_steps": 3,
    "use_cpu": True,
    "disable_tqdm": True,
}
LAST = 14


def words(cache: Path, output: Path, objective: str, files: Path, **changes) -> list[str]:
    """Arguments of train_pretrain.py."""
    name = OBJECTIVES[objective]
    name = str(files / name) if ".py" in name else name
    options = {**OPTIONS, "cache": cache, "output_dir": output, "objective": name, **changes}
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def train(cache: Path, output: Path, objective: str, files: Path, **changes) -> Path:
    """A run of train_pretrain.py in this process; the folder of its last checkpoint."""
    import train_pretrain

    train_pretrain.main(words(cache, output, objective, files, **changes))
    return output / f"checkpoint-{LAST}"


def train_unpaired(output: Path, files: Path, **changes) -> Path:
    """A run with images and sentences that differ in number; the folder of its last checkpoint."""
    from synthetic import synthetic_model

    from adaptor_hf.objectives.loading import load_objective, objective_class
    from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments

    name = str(files / "unpaired.py")
    own = sys.modules[objective_class(f"{name}:Unpaired").__module__]
    resume = changes.pop("resume_from_checkpoint", None)
    options = {key: value for key, value in OPTIONS.items() if key != "aligner"} | changes
    arguments = AdaptorTrainingArguments(output_dir=str(output), **options | {"global_batch_size": 8, "save_steps": 3})
    trainer = AdaptorTrainer(
        model=synthetic_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        args=arguments,
        objective=load_objective(f"{name}:Unpaired"),
        train_dataset=own.Sentences(),
    )
    trainer.train(resume_from_checkpoint=resume)
    return output / "checkpoint-12"


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights of the model and state of the objective."""
    return load_file(checkpoint / "model.safetensors") | load_file(checkpoint / "objective.safetensors")


def keep_trainers() -> list:
    """The trainers that train_pretrain.py makes from now on: those of other ranks write nothing."""
    import train_pretrain

    kept, made = [], train_pretrain.AdaptorTrainer

    def keep(**arguments):
        kept.append(made(**arguments))
        return kept[-1]

    train_pretrain.AdaptorTrainer = keep
    return kept


def resume(folder: Path, cache: Path, objective: str, files: Path) -> None:
    """A run in `OBJECTIVE-resumed` that goes on from the first checkpoint of the one in `OBJECTIVE`, on every rank."""
    first = f"checkpoint-{OPTIONS['save_steps']}"
    output = folder / f"{objective}-resumed"
    if torch.distributed.get_rank() == 0:
        shutil.copytree(folder / objective / first, output / first)
    torch.distributed.barrier()
    train(cache, output, objective, files, resume_from_checkpoint=str(output / first))


def main(folder: Path, cache: Path, files: Path) -> None:
    from adaptor_hf.training.interruption import leave_process_group

    torch.set_num_threads(1)
    kept = keep_trainers()
    for name in OBJECTIVES:
        train(cache, folder / name, name, files)
        if name == "momentum":
            rank = torch.distributed.get_rank()
            torch.save(kept[-1].objective.state_dict(), folder / f"momentum-{rank}.pt")
        if name == "queued":
            resume(folder, cache, name, files)
            train(cache, folder / f"{name}-parts", name, files, grad_cache_batch_size=3)
    train_unpaired(folder / "unpaired", files)
    train_unpaired(folder / "unpaired-parts", files, grad_cache_batch_size=3)
    leave_process_group()


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    main(*map(Path, sys.argv[1:]))
