"""TrainingArguments with the paper's recipe as defaults."""

import math
import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.utils import logging

from ..evaluation.metrics import metric_of
from .source_batches import SOURCE_BATCHES, check_weights

logger = logging.get_logger(__name__)

POSITIVES = ("text", "study", "pair")


@dataclass
class AdaptorTrainingArguments(TrainingArguments):
    r"""
    [`~transformers.TrainingArguments`] for contrastive pre-training on cached embeddings.

    In Python the defaults are the paper's, whatever the size of the data; `train_pretrain.py` without `--recipe` takes
    those of the recipe `small` where they would give fewer than 2,000 optimizer steps (`training.recipe_choice`).

    Defaults that differ from `TrainingArguments`, and why ("reference" is the code of arXiv 2401.01179):

    | argument | default | why |
    |---|---|---|
    | `learning_rate` | 2e-5 | the reference's |
    | `num_train_epochs` | 50 | the reference's |
    | `weight_decay` | 0.01 | hard-coded in the reference |
    | `warmup_steps` | 0.02 | a share of all steps: the reference's 2 % |
    | `max_grad_norm` | 0.0 | the reference does not clip, and clipping costs a pass over all gradients |
    | `per_device_train_batch_size` | from `global_batch_size` | negatives come from the global batch, so that is what counts |
    | `per_device_eval_batch_size` | 1024 | evaluation embeds rows only |
    | `eval_strategy`, `save_strategy`, `logging_strategy` | `"epoch"` | an epoch is seconds to minutes |
    | `load_best_model_at_end`, `metric_for_best_model` | `True`, `"eval_mean_recall"` | the loss depends on the batch size, recall over the split does not |
    | `greater_is_better` | by the metric | of ranks, alignment and uniformity less is better, too; to be given for others |
    | `save_total_limit` | 2 | the best and the last checkpoint |
    | `remove_unused_columns` | `False` | the cache yields finished batches |
    | `logging_nan_inf_filter` | `False` | a NaN must show |
    | `ddp_find_unused_parameters` | `False` | every parameter gets a gradient, be it zero |
    | `dataloader_pin_memory` | where there is a GPU | it only warns elsewhere |
    | `hub_strategy`, `hub_private_repo` | `"end"`, `True` | what was trained on reports stays private unless asked |
    | `fp16` / `bf16` | by GPU | bf16 from compute capability 8.0, fp16 below (a T4 only emulates bf16), float32 on CPU; switch off with `auto_mixed_precision=False` |

    Args:
        global_batch_size (`int`, defaults to 1024): Pairs a step over all processes: the pool of negatives. Ignored if
            `per_device_train_batch_size` is given.
        per_device_train_batch_size (`int`, *optional*): Pairs a step on each process. The reference code uses 1024 on
            each of two GPUs and does not share negatives between them.
        tower_learning_rate (`float`, *optional*): Peak learning rate of towers that train; by default `learning_rate`.
        layer_decay (`float`, defaults to 1.0): Of towers that train, the factor on the learning rate from one block to
            the one before it; 1 after the last block. See [`~training.tower_rates.rate_scales`].
        positives (`str`, defaults to `"text"`): Which rows are no negatives of each other: those with the same `"text"`,
            of the same `"study"`, or only the row's own `"pair"` (the paper's, with false negatives among repeated reports).
        dataset_weights (`list[float]`, *optional*): Of data of several sources, the share of each in an epoch, in any
            unit; by default that of its rows. See [`~training.source_batches.SourceSampler`].
        source_batches (`str`, defaults to `"mixed"`): `"by_source"`: each batch is of one source, so that what tells
            sources apart does not help to find a pair.
        grad_cache_batch_size (`int`, *optional*): Embed each process's batch in parts of so many rows, when its
            activations do not fit into memory (about 0.2 MB a pair). The loss and its negatives are the whole batch's,
            the cost is one more forward pass. `gradient_accumulation_steps`, in contrast, adds no negatives.
        resident_data (`bool`, *optional*): Hold the training embeddings on the training device instead of reading them
            from disk. By default on a GPU, where they take less than half of its free memory (the paper's data: 0.7 GB).
        accept_data_terms (`bool`, defaults to `False`): The terms of the training data allow `push_to_hub`; asked for
            where they restrict sharing, as those of MIMIC-CXR and CheXpert do.
        push_training_rows (`bool`, defaults to `False`): `push_to_hub` sends `training_rows.safetensors` too: with it
            others can find training images in their tests. Patients stay unknown to them: the key is never sent.
        take_over (`bool`, defaults to `False`): Write to `output_dir` although a run on another machine has left its mark
            there: that run has ended.
        auto_mixed_precision (`bool`, defaults to `True`): Choose fp16 or bf16 by the GPU where neither was asked for.

    Raises:
        ValueError: if the global batch cannot be divided over the processes, or bf16 is asked of a GPU that lacks it.
    """

    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=50.0, metadata={"help": "Number of passes over the pairs."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's decoupled weight decay."})
    tower_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of towers that train. Default: learning_rate."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Of towers that train: factor on the rate from one layer to the one before it."}
    )
    warmup_steps: float = field(default=0.02, metadata={"help": "Warm-up: a share of all steps below 1, else steps."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping; 0 is none."})
    global_batch_size: int = field(
        default=1024, metadata={"help": "Pairs a step over all processes: the pool of negatives."}
    )
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "Pairs a step on each process; overrides global_batch_size."}
    )
    per_device_eval_batch_size: int = field(default=1024, metadata={"help": "Rows embedded at once in evaluation."})
    positives: str = field(
        default="text",
        metadata={
            "help": "Rows that are no negatives of each other: same text, same study, or the pair alone.",
            "choices": POSITIVES,
        },
    )
    dataset_weights: list[float] | None = field(
        default=None, metadata={"help": "Of several sources, the share of each. Default: that of its rows."}
    )
    source_batches: str = field(
        default="mixed",
        metadata={"help": "Of several sources: batches of all, or each of one.", "choices": SOURCE_BATCHES},
    )
    grad_cache_batch_size: int | None = field(
        default=None,
        metadata={"help": "Rows whose activations are held at once; the gradients stay those of the whole batch."},
    )
    resident_data: bool | None = field(
        default=None,
        metadata={"help": "Hold the training embeddings on the device. Default: on a GPU with room for them."},
    )
    auto_mixed_precision: bool = field(
        default=True, metadata={"help": "Choose fp16 or bf16 by the GPU where neither is asked for."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log: no, steps or epoch."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint."})
    metric_for_best_model: str = field(default="eval_mean_recall", metadata={"help": "What best means."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep, the best one included."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The cache yields finished batches."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN losses in the log."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Passed to DDP."})
    dataloader_pin_memory: bool | None = field(default=None, metadata={"help": "Default: where there is a GPU."})
    hub_strategy: str = field(default="end", metadata={"help": "Only the end is pushed, a fixed list of files."})
    hub_private_repo: bool | None = field(default=True, metadata={"help": "Push to a private repository."})
    push_training_rows: bool = field(
        default=False, metadata={"help": "--push_to_hub sends the digests of training rows too, never their key."}
    )
    take_over: bool = field(
        default=False,
        metadata={"help": "Write to output_dir although a run of another machine left its mark: it ended."},
    )
    accept_data_terms: bool = field(
        default=False, metadata={"help": "The training data's terms, which may restrict sharing, allow --push_to_hub."}
    )

    def __post_init__(self):
        if self.positives not in POSITIVES:
            raise ValueError(f"positives must be one of {', '.join(POSITIVES)}, got {self.positives!r}.")
        if self.source_batches not in SOURCE_BATCHES:
            raise ValueError(f"source_batches must be one of {', '.join(SOURCE_BATCHES)}, got {self.source_batches!r}.")
        if self.dataset_weights is not None:
            check_weights(self.dataset_weights, len(self.dataset_weights))
        if self.grad_cache_batch_size is not None and self.grad_cache_batch_size < 1:
            raise ValueError(f"grad_cache_batch_size must be at least 1, got {self.grad_cache_batch_size}.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1 (no decay), got {self.layer_decay}.")
        if self.tower_learning_rate is not None and not 0 <= self.tower_learning_rate < math.inf:
            raise ValueError(f"tower_learning_rate must be 0 or more, got {self.tower_learning_rate}.")
        chosen = self.greater_is_better
        self._choose_precision()
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = self._wants_gpu()
        given = self.per_device_train_batch_size
        self.per_device_train_batch_size = 1 if given is None else given
        super().__post_init__()
        if chosen is None and self.metric_for_best_model is not None:
            # In place of transformers' guess; None where nobody can know, which the trainer refuses to start with.
            self.greater_is_better = more_is_better(self.metric_for_best_model)
        if self._n_gpu > 1:
            # One process on several GPUs would be DataParallel, which splits the pool of negatives.
            logger.warning(f"Using one of {self._n_gpu} GPUs. For all of them: accelerate launch train_pretrain.py ...")
            self._n_gpu = 1
        launched = int(os.environ.get("WORLD_SIZE", 1))
        if launched > 1 and self.world_size == 1:
            raise ValueError(
                f"{launched} processes were launched but did not join: each would train alone and write to the same "
                "folder. On CPUs pass --use_cpu, or set ACCELERATE_USE_CPU=true for accelerate launch."
            )
        if given is None:
            if self.global_batch_size % self.world_size:
                raise ValueError(
                    f"global_batch_size ({self.global_batch_size}) is not divisible by the number of processes "
                    f"({self.world_size}). Choose a multiple of it."
                )
            self.per_device_train_batch_size = self.global_batch_size // self.world_size
        self.global_batch_size = self.per_device_train_batch_size * self.world_size
        if self.global_batch_size < 2:
            raise ValueError(
                f"global_batch_size must be at least 2, got {self.global_batch_size}: a pair needs another to contrast with."
            )

    def _wants_gpu(self) -> bool:
        on_cpu = self.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "on")
        return torch.cuda.is_available() and not on_cpu

    def _choose_precision(self) -> None:
        if not self._wants_gpu():
            return
        major, minor = torch.cuda.get_device_capability()
        if self.bf16 and major < 8:
            raise ValueError(
                f"This GPU ({torch.cuda.get_device_name()}, compute capability {major}.{minor}) only emulates bf16. "
                "Use --fp16, or neither: fp16 is then chosen."
            )
        # accelerate's own setting, from its config file or command line, counts as having been asked.
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if self.fp16 or self.bf16 or not self.auto_mixed_precision:
            return
        if asked in ("fp16", "bf16"):
            setattr(self, asked, True)
        elif major >= 8:
            self.bf16 = True
        else:
            self.fp16 = True


_LESS_IS_BETTER = ("alignment", "image_uniformity", "text_uniformity")


def more_is_better(metric: str) -> bool | None:
    """
    Whether more of a metric of evaluation is better: not of losses, ranks, alignment and uniformity. None where it is
    not known: of a term of an objective, say, or of what a function of a user's measures.
    """
    name = metric.removeprefix("eval_")
    if name in _LESS_IS_BETTER or name.endswith("loss"):
        return False
    found = metric_of(name)
    while found is None and "_" in name:
        # Of one of several sources: its name stands before that of the metric.
        name = name.partition("_")[2]
        found = metric_of(name)
    return found.higher_is_better if found else None


__all__ = ["AdaptorTrainingArguments", "more_is_better"]
