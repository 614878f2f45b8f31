"""`run.json`: what a run was given, on what it ran, what came out, how long its parts took and how much memory."""

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from ..data.reading import Reading
from ..data.splits import split_hash
from ..files import file_sha256, write_aside
from ..privacy.mode import private_options
from ..training.report import package_versions, rows_of_sources
from ..training.summary import own_parameters
from ..training.terms import last_terms
from ..training.trained_towers import TrainedTowers, record_towers
from ..training.trainer import AdaptorTrainer
from .manifest import relative_to_run

if TYPE_CHECKING:
    from ..embeddings import EmbeddingCache

RUN_FILE = "run.json"


class RunRecord:
    """
    Seconds of a run's parts, from the start of the process on.

    It stays on this machine: it names places, unless the run is private. The list of files that are
    pushed leaves it out.
    """

    def __init__(self) -> None:
        self.started = psutil.Process().create_time()
        self.seconds: dict[str, float] = {"start_up": round(time.time() - self.started, 3)}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the run; a part that comes again adds up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)

    def write(
        self,
        trainer: AdaptorTrainer,
        options: Sequence[Any],
        cache: "EmbeddingCache",
        *,
        objective: dict[str, Any] | None = None,
        recipe: dict[str, Any] | None = None,
        towers: TrainedTowers | None = None,
    ) -> Path:
        """
        Write `run.json` into the output folder.

        Args:
            trainer (`AdaptorTrainer`): After training. Its log gives the last evaluation and the last means of the
                objective's named terms; the weights that it saved in its output folder are digested.
            options (`Sequence`): The script's other arguments, as dataclasses.
            cache (`EmbeddingCache`): The whole cache; its files' SHA-256 identify the inputs.
            objective (`dict`, *optional*): What was minimised, as of `ModelArguments.objective_record`.
            recipe (`dict`, *optional*): Which it was and whether the run chose it, as of `Recipe.to_dict`.
            towers (`TrainedTowers`, *optional*): Of a run whose towers trained.
        """
        arguments, history = trainer.args, trainer.state.log_history
        folder = Path(arguments.output_dir)
        weights = folder / "model.safetensors"
        places = [relative_to_run(folder, member.path) for member in cache.members]
        self.seconds["total"] = round(time.time() - self.started, 3)
        record = {
            "versions": package_versions() | {"python": platform.python_version(), "cuda": torch.version.cuda},
            "machine": {
                "platform": platform.platform(),
                "device": torch.cuda.get_device_name() if arguments.device.type == "cuda" else processor_name(),
                "processes": arguments.world_size,
                "threads": torch.get_num_threads(),
            },
            "recipe": recipe,
            "options": private_options(*options),
            "training_arguments": private_options(arguments),
            "objective": objective,
            "inputs": {
                "cache": places[0] if len(places) == 1 else places,
                "cache_fingerprint": cache.fingerprint,
                "reading": asdict(Reading.of_spec(cache.vision_spec)),
                "split_hash": split_hash(cache.pairs),
                "rows": {name: len(cache.split(name)) for name in cache.splits},
                "sources": rows_of_sources(cache) or None,
                "sha256": cache.digests(),
                "stored": stored_columns(cache),
            },
            "weights": {
                "sha256": file_sha256(weights) if weights.is_file() else None,
                "parameters": trainer.model.num_parameters(only_trainable=True),
                # Trained with the model, and no part of what is saved as its weights.
                "objective_parameters": own_parameters(trainer.objective),
            },
            "towers": None if towers is None else record_towers(towers, arguments.output_dir),
            "metrics": last_evaluation(history),
            "terms": last_terms(history),
            "seconds": self.seconds,
            "peak_memory_bytes": peak_memory(arguments.device),
        }
        path = folder / RUN_FILE
        write_aside(path, json.dumps(record, indent=2, default=str) + "\n")
        return path


def stored_columns(cache: "EmbeddingCache") -> dict[str, list[str]]:
    """Names of what the cache holds of `images` and of `texts` beside their pooled vectors; nothing of its content."""
    found: dict[str, set[str]] = {}
    for folder, manifest in cache.modality_manifests().items():
        if manifest.get("columns"):
            found.setdefault(folder.partition("-")[0], set()).update(manifest["columns"])
    return {name: sorted(columns) for name, columns in sorted(found.items())}


def last_evaluation(log_history: list[dict[str, float]]) -> dict[str, float]:
    """The last log entry that has evaluation metrics."""
    return next((entry for entry in reversed(log_history) if "eval_loss" in entry), {})


def processor_name() -> str:
    """The CPU's name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> dict[str, int]:
    """Most memory of this process so far, in bytes: of the machine (mapped files count), and of the GPU."""
    found = {}
    try:
        import resource

        unit = 1 if platform.system() == "Darwin" else 1024
        found["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    except ImportError:  # Windows
        found["process"] = psutil.Process().memory_info().peak_wset
    if device.type == "cuda":
        found["gpu"] = torch.cuda.max_memory_allocated(device)
    return found


__all__ = ["RUN_FILE", "RunRecord", "last_evaluation", "peak_memory", "processor_name", "stored_columns"]
