"""The state of an objective in a training checkpoint, and in nothing else: `objective.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import TrainerCallback

from ..files import check_regular, parse_json, write_aside
from ..objectives import Objective
from ..objectives.loading import objective_identity, objective_options
from ..privacy.mode import is_private

OBJECTIVE_FILE = "objective.safetensors"
OF_BEFORE = {"name": "adaptor", "sha256": ""}
"""What a checkpoint without the file is of."""


def save_objective(objective: Objective, folder: Path) -> None:
    """
    Write what the objective adds to the model (parameters and buffers), with its name, the digest of its file and its
    options; in private mode words among them as keyed hashes.

    Raises:
        TypeError: a part of its state is no tensor.
    """
    state = objective.state_dict()
    if others := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise TypeError(
            f"{type(objective).__name__} keeps {', '.join(others)}, which no safetensors file can hold. Keep tensors, "
            "as parameters or with register_buffer."
        )
    # Copies, for a file has no tensors that share memory.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    # One entry: safetensors writes several in no fixed order.
    metadata = {"objective": json.dumps(objective_identity(objective) | _options_of(objective))}
    write_aside(folder / OBJECTIVE_FILE, save(tensors, metadata=metadata))


def load_objective_state(objective: Objective, checkpoint: Path) -> None:
    """
    Give an objective the state that a checkpoint has.

    Raises:
        ValueError: the checkpoint is of another objective, of another version of its file, or of other options (of
            which a checkpoint, or an objective that was made in Python, may know none); or of other parameters.
    """
    found, tensors = read_objective(checkpoint)
    options, private = found.pop("options", None), found.pop("private", False)
    wanted = objective_identity(objective)
    if found != wanted:
        raise ValueError(
            f"{checkpoint.name} was trained by the objective {described(found)}, this run has {described(wanted)}. "
            "Resume with the objective and the file of the checkpoint, or start another run in another --output_dir."
        )
    given = _options_of(objective)
    if options is not None and given:
        _check_options(options, given["options"], checkpoint.name, alike=private == given["private"])
    try:
        objective.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{OBJECTIVE_FILE} of {checkpoint.name} does not fit the objective {described(wanted)}: "
            f"{' '.join(str(error).split()).rstrip('.')}. Resume with the options that it was trained with."
        ) from error


def _options_of(objective: Objective) -> dict[str, Any]:
    options = objective_options(objective)
    return {} if options is None else {"options": parse_json(json.dumps(options)), "private": is_private()}


def _check_options(found: dict[str, Any], given: dict[str, Any], checkpoint: str, *, alike: bool) -> None:
    for name in found.keys() & given.keys():
        values = (found[name], given[name])
        # Of words the one is a hash where only one of the two runs is private.
        comparable = alike or not all(isinstance(value, str | list) for value in values)
        if values[0] != values[1] and comparable:
            raise ValueError(
                f"{checkpoint} was trained by an objective with {name} {values[0]!r}, this run has {values[1]!r}. "
                "Resume with the option of the checkpoint, or start another run in another --output_dir."
            )


def read_objective(checkpoint: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """
    Identity (with its `options`, where they are known) and state of the objective of a checkpoint; the paper's where
    the file is missing, as in checkpoints of versions that had no other.

    Raises:
        ValueError: the file is damaged.
    """
    path = checkpoint / OBJECTIVE_FILE
    if not path.is_file():
        return dict(OF_BEFORE), {}
    try:
        with safe_open(check_regular(path), framework="pt") as file:
            identity = parse_json((file.metadata() or {})["objective"])
            if not isinstance(identity, dict) or not isinstance(identity.get("options", {}), dict):
                raise ValueError("its metadata is no mapping")
            return identity, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{OBJECTIVE_FILE} of {checkpoint.name} is damaged ({type(error).__name__}: {error})."
        ) from error


def described(identity: dict[str, str]) -> str:
    digest = identity.get("sha256", "")
    return repr(identity.get("name", "")) + (f" (file with SHA-256 {digest[:12]}...)" if digest else "")


class ObjectiveSteps(TrainerCallback):
    """Calls `before_step` and `after_step` of a trainer's objective around each step of its optimizer."""

    def __init__(self, trainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        for parameter in self.trainer.trained_parameters:
            if parameter.grad is None:
                # As on several processes, where every parameter gets a gradient, so that it decays on one, too.
                parameter.grad = torch.zeros_like(parameter)
        with torch.no_grad():
            self.trainer.objective.before_step(state.global_step / state.max_steps)

    def on_optimizer_step(self, args, state, control, **kwargs):
        # With float16 a step whose gradients overflowed is left out.
        if not self.trainer.accelerator.optimizer_step_was_skipped:
            with torch.no_grad():
                self.trainer.objective.after_step(self.trainer.model)


__all__ = ["OBJECTIVE_FILE", "ObjectiveSteps", "load_objective_state", "save_objective"]
