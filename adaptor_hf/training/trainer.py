"""A Trainer that minimises an objective over the pairs of every process, and evaluates by retrieval over a split."""

import json
import logging
import os
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import DistributedType
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PredictionOutput

from ..batch_norm_adaptor import batch_norm_over_ranks
from ..embeddings.reader import EmbeddingCache
from ..files import write_aside
from ..hub.saved_code import remove_code
from ..modeling_adaptor import AdaptorModel
from ..objectives import Encoded, Objective
from ..objectives.loading import check_objective, load_objective
from ..pretrained_adaptor import TOWER_NAMES
from ..privacy.mode import private_options, rewrite_without_paths
from .arguments import AdaptorTrainingArguments
from .base_trainer import BaseTrainer
from .checkpoints import (
    RESUME,
    RunningLoss,
    check_checkpoint,
    check_writable,
    checkpoint_steps,
    find_best,
    find_checkpoint,
    finish_checkpoint,
    refuse_broken_weights,
    remove_unfinished,
    replacing,
    rotate_checkpoints,
    together,
    unfinished,
)
from .divided import length_of
from .early_checks import check_evaluation
from .grad_cache import backward_in_parts, check_last_statistics, check_splits
from .interruption import StopOnSignal, deferred_signals
from .needs import checked_with_needs, tokens_read
from .objective_state import ObjectiveSteps, load_objective_state, save_objective
from .pair_batches import PairCollator, check_last_batch, describe_bad_batch, fit_for_dispatch
from .pair_evaluation import Retrieval, evaluate_in_training
from .progress import ProgressLines
from .run_folder import run_folder
from .source_batches import source_sampler
from .terms import RunningTerms, check_finite, smaller_steps, why_zero
from .tower_checkpoints import check_same_towers, load_trained_towers, save_what_trains
from .tower_rates import check_tower_rates, give_towers_their_rates, no_decay_in_towers, refuse_own_optimizer
from .trained_together import TrainedTogether, depending_on_all

logger = logging.getLogger(__name__)


class AdaptorTrainer(BaseTrainer):
    """
    [`~transformers.Trainer`] for [`AdaptorModel`] on an `EmbeddingCache`, or on any data set of pairs.

    Training, evaluation and prediction read it alike, through one collator. A data set is a list, a `torch` or a
    `datasets` one of single examples, each with `pixel_values` or `image_embeds`, and `input_ids` or `text_embeds`; or
    its `__getitems__(rows)` returns a finished batch, a dictionary of such tensors. `text_row`, `study` and `row`
    `(B,)` int64 may go with them: ids of the text, of the study and of the row itself. Without `text_row`, texts with
    equal inputs are equal. Data of several sources has `source_names`, `source_codes` `(N,)` and a column `source`.

    Args:
        model (`AdaptorModel`): Without towers for embeddings, with them for `pixel_values` and `input_ids`.
        args (`AdaptorTrainingArguments`): Arguments of the run.
        objective ([`~objectives.Objective`] or `str`): What is minimised, or the name of one of the package. One that
            is given is set up here for this model; it is of this trainer alone.
        kwargs: As for [`BaseTrainer`]; by default the collator is [`~training.pair_batches.PairCollator`] and the
            evaluator [`Retrieval`]. `evaluators` may be [`PairEvaluator`]s, for all of which a split is embedded once,
            by all processes together. `processing_class` is saved with the model, and its tokenizer pads `input_ids`.
    """

    args: AdaptorTrainingArguments

    def __init__(
        self,
        model: AdaptorModel,
        args: AdaptorTrainingArguments,
        objective: Objective | str = "adaptor",
        **kwargs,
    ):
        # Trainer would copy the tokenizer's special tokens into the config; the processor only needs to be saved.
        self.processor = kwargs.pop("processing_class", None)
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        collator = kwargs.pop("data_collator", None) or PairCollator(getattr(tokenizer, "pad", None))
        kwargs["data_collator"] = collator
        kwargs.setdefault("evaluators", (Retrieval(),))
        self.sampler: Sampler | None = None
        super().__init__(model=model, args=args, **kwargs)
        refuse_own_optimizer(args, self.optimizer)
        self.can_return_loss = True
        self.label_names = []
        # A column of this name is one of many, and no reason to weigh losses by tokens.
        self.model_accepts_loss_kwargs = False
        self.objective = load_objective(objective) if isinstance(objective, str) else check_objective(objective)
        self.objective.setup(self.model, args)
        self.objective.to(args.device)
        # accelerate fills up an uneven last batch unless told otherwise.
        equal_counts = self.accelerator.even_batches or args.dataloader_drop_last
        self.together = TrainedTogether(self.model, self.objective, equal_counts)
        self.terms = RunningTerms(args.device)
        self.current_gradient_accumulation_steps = 1  # until training sets it
        self.trained_parameters: list[torch.nn.Parameter] = []
        self.add_callback(ObjectiveSteps(self))
        self.add_callback(ProgressLines)

    def get_train_dataloader(self) -> DataLoader:
        """
        As Trainer's; with `resident_data` batches are gathered on the device.

        Raises:
            ValueError: if the last batch would leave a process without rows, or workers and resident data are asked
                for together.
        """
        dispatch_batches = self.accelerator.dataloader_config.dispatch_batches
        self.data_collator = fit_for_dispatch(self.data_collator, self.train_dataset, dispatch_batches)
        whole = self.args.dataloader_drop_last or self.args.source_batches == "by_source"
        if not (self.accelerator.even_batches or whole):
            check_last_batch(len(self.train_dataset), self.args.train_batch_size, self.args.world_size)
        if not isinstance(self.train_dataset, EmbeddingCache) or not self._data_fits_on_device(self.train_dataset):
            return super().get_train_dataloader()
        if self.args.dataloader_num_workers:
            raise ValueError("resident_data leaves workers nothing to do: give dataloader_num_workers=0, or not both.")
        on_disk, pin_memory = self.train_dataset, self.args.dataloader_pin_memory
        self.train_dataset, self.args.dataloader_pin_memory = on_disk.to_device(self.args.device), False
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.args.dataloader_pin_memory = on_disk, pin_memory

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        of_objective, of_sources = self.objective.sampler(dataset), source_sampler(dataset, self.args)
        if of_objective is not None and of_sources is not None:
            raise ValueError(
                f"The objective {type(self.objective).__name__} has an order of the rows of its own: leave out "
                "--dataset_weights and --source_batches."
            )
        self.sampler = of_sources if of_objective is None else of_objective
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler

    def _run_epoch(self, *args, epoch: int, **kwargs):
        for part in (self.sampler, self.train_dataset):
            if hasattr(part, "set_epoch"):
                # On resuming, and on several processes, they lie deeper than Trainer and accelerate look.
                part.set_epoch(epoch)
        return super()._run_epoch(*args, epoch=epoch, **kwargs)

    def _data_fits_on_device(self, cache: EmbeddingCache) -> bool:
        if self.args.resident_data is not None:
            return self.args.resident_data
        if self.args.device.type != "cuda" or self.args.dataloader_num_workers:
            return False
        return cache.num_bytes < torch.cuda.mem_get_info(self.args.device)[0] / 2

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Nothing is made on the Hub before there is something to push."""

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """All decay, as in the reference, but for `logit_bias`, which says how rare pairs are, and biases of towers."""
        no_decay = no_decay_in_towers(model)
        names = (name for name, _ in model.named_parameters() if name not in no_decay)
        return [name for name in names if name.rpartition(".")[2] != "logit_bias"]

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if not given:
            give_towers_their_rates(optimizer, self.together.model, self.args)
        return optimizer

    def _prepare_for_training(self, *args):
        """Optimizer, mixed precision and DDP see model and objective together; all others see the model."""
        model = self.model
        if self.args.grad_cache_batch_size is not None:
            self.together.train()
            check_splits(self.objective, model)
        if self.accelerator.native_amp and not hasattr(model, "_original_forward"):
            # Evaluation calls the model itself, in the precision of training.
            self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        self.model_wrapped = self.together if self.model_wrapped is model else self.model_wrapped
        self.model = self.together
        try:
            prepared = super()._prepare_for_training(*args)
        finally:
            self.model = self.callback_handler.model = model
        # To look for them at every step takes longer than what is done with them.
        self.trained_parameters = [value for value in self.together.parameters() if value.requires_grad]
        return prepared

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if inputs.get("fuse_pairs"):
            raise ValueError(
                "AdaptorTrainer does not fuse pairs: each image would see its own text before the contrastive loss, "
                "which then falls without any learning (32-way top-1 of 93 % on pure noise)."
            )
        if return_outputs:
            encoded = self.together.encode(inputs)
            terms = self.together.terms(encoded, inputs)
            sides = {f"{name}_embeds": side.pooled for name, side in encoded.sides()}
            return terms["loss"], {"loss": terms["loss"], **sides}
        terms = (self.together if model is self.model else model)(inputs)
        return self._loss_of(terms, inputs)

    def _loss_of(self, terms: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss, checked; the other terms are kept for the log."""
        loss = terms["loss"]
        # On a GPU this check would make it wait at every step; there the log lines check (see `log`).
        if loss.device.type == "cpu" and not torch.isfinite(loss):
            raise FloatingPointError(describe_bad_batch(inputs, loss, self.objective))
        self.terms.add(terms, 1 / self.current_gradient_accumulation_steps)
        return loss

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """As `Trainer.training_step`; with `grad_cache_batch_size` the batch's activations exist in parts."""
        if self.args.grad_cache_batch_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)

        def encode(part: dict[str, torch.Tensor]) -> Encoded:
            # Without a graph there is nothing to exchange: the wrapper of several processes would only get in the way.
            return (model if torch.is_grad_enabled() else self.together)(part, encode_only=True)

        def backward(loss: torch.Tensor) -> None:
            if getattr(model, "require_backward_grad_sync", False):
                loss = depending_on_all(loss, self.together.parameters())
            self.accelerator.backward(loss / self.current_gradient_accumulation_steps)

        terms = backward_in_parts(
            inputs,
            self.args.grad_cache_batch_size,
            encode,
            lambda encoded: self.together.terms(encoded, inputs),
            self.together.parameters_of_the_loss(),
            backward=backward,
            no_sync=lambda: self.accelerator.no_sync(model),
        )
        return self._loss_of(terms, inputs) / self.current_gradient_accumulation_steps

    def _get_grad_norm(self, model, grad_norm=None):
        # Trainer clips to infinity to learn the norm, which writes every gradient once more.
        if grad_norm is None and self.accelerator.distributed_type in (
            DistributedType.NO,
            DistributedType.MULTI_CPU,
            DistributedType.MULTI_GPU,
        ):
            self.accelerator.unscale_gradients()
            grad_norm = torch.nn.utils.get_total_norm([p.grad for p in self.trained_parameters if p.grad is not None])
        return super()._get_grad_norm(model, grad_norm)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        As `Trainer.train`, and SIGTERM or SIGUSR1 to any process saves a checkpoint at the end of the running step.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint's folder, or `True` for the last whole
                one; damaged ones are passed over with a warning.

        Raises:
            Interrupted: on all processes, after the checkpoint was saved for a signal.
            FloatingPointError: if the loss or the weights became NaN or infinite.
            OSError: if a checkpoint cannot be written.
            ValueError: if there is no whole checkpoint to resume from.
        """
        writes = self.args.save_strategy != "no"
        with run_folder(self.args.output_dir, self.args.take_over) if writes else nullcontext():
            return self._train(resume_from_checkpoint, *args, **kwargs)

    def _train(self, resume_from_checkpoint: str | bool | None, *args, **kwargs):
        check_tower_rates(self.args, self.model)
        of_evaluation = self.eval_collator or self.data_collator
        aligner = self.model.config
        self.train_dataset = checked_with_needs(self.objective, self.train_dataset, self.data_collator, aligner)
        self.eval_dataset = checked_with_needs(self.objective, self.eval_dataset, of_evaluation, aligner)
        self.model.config.trained_on = tokens_read(self.objective, self.train_dataset)
        output_dir = Path(self.args.output_dir)
        checkpoint = find_checkpoint(output_dir, resume_from_checkpoint) if resume_from_checkpoint else None
        if self.args.save_strategy != "no":
            # Now rather than after the first epoch.
            together(lambda: self.args.should_save and check_writable(output_dir), output_dir / "checkpoint")
        check_evaluation(self.args, self.model, self.eval_dataset, self.evaluators, self.objective)
        rows, even = length_of(self.train_dataset), self.accelerator.even_batches
        check_last_statistics(self.together.train(), rows, self.args, even=even)
        with deferred_signals() as signals:
            self.terms, self.running_loss = RunningTerms(self.args.device), RunningLoss(self, checkpoint)
            callbacks = [self.running_loss, StopOnSignal(signals)]
            for callback in callbacks:
                self.add_callback(callback)
            batch_norm_over_ranks(self.together, True)
            try:
                return super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)
            except KeyboardInterrupt as interruption:
                saved = list(checkpoint_steps(output_dir).values())
                go_on = "There is no checkpoint yet: the same command starts again."
                if saved:
                    go_on = f"The last checkpoint is {saved[-1]}. Go on with the same command and {RESUME}."
                raise type(interruption)(go_on) from None
            finally:
                batch_norm_over_ranks(self.together, False)
                for callback in callbacks:
                    self.remove_callback(callback)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_objective_state(self.objective, Path(resume_from_checkpoint))
        check_same_towers(self.model, self.args, Path(resume_from_checkpoint), self.train_dataset)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_trained_towers(self.model, Path(resume_from_checkpoint))

    def _init_training_state(self, max_steps: int, *args) -> tuple[int, int]:
        position = super()._init_training_state(max_steps, *args)
        if self.state.global_step > max_steps:
            raise ValueError(
                f"The checkpoint to resume from has {self.state.global_step} steps, this run only {max_steps}: its "
                "weights would pass for those of a shorter run. Give the --num_train_epochs, --max_steps and batch of "
                "the run that it is of, or start another one in another --output_dir."
            )
        # A resumed run's own intervals; Trainer takes those of the checkpoint.
        self.state.compute_steps(self.args, max_steps)
        find_best(self.state, Path(self.args.output_dir))
        resumed, steps = self.running_loss.checkpoint, list(checkpoint_steps(Path(self.args.output_dir)).values())
        if self.args.should_save and resumed is not None and steps and resumed.resolve() == steps[-1].resolve():
            # A kill may have come before an older one was deleted.
            best = self.state.best_model_checkpoint
            rotate_checkpoints(steps[-1].parent, steps[-1], best, self.args.save_total_limit)
        return position

    def _finalize_training(self, trial, num_train_samples, start_time):
        # The summary (train_loss, train_runtime and the rates) is the run's, not that of the part since the resume.
        self._initial_global_step = 0
        return super()._finalize_training(trial, num_train_samples, start_time - self.running_loss.seconds_before)

    @torch.no_grad()
    def predict(
        self, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """
        Embeddings of every pair and their metrics, those of [`evaluate`](Trainer.evaluate) under another prefix.

        Returns:
            `PredictionOutput`: `predictions` are `image_embeds` and `text_embeds`, `(N, hidden_size)` float32 each, in
            the order of the data set; there are no `label_ids`.
        """
        embeds, metrics = evaluate_in_training(self, test_dataset, embeds=True)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, metrics)
        arrays = tuple(embeds[name].cpu().numpy() for name in ("image_embeds", "text_embeds"))
        return PredictionOutput(predictions=arrays, label_ids=None, metrics=metrics)

    def _measure(self, dataset: Dataset) -> dict[str, float]:
        return evaluate_in_training(self, dataset)[1]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        loss = None if self.quiet else logs.get("loss")
        if loss is not None and not loss < float("inf"):
            raise FloatingPointError(
                f"The training loss became {loss} before step {self.state.global_step}. Go on from the last checkpoint "
                f"with {smaller_steps(self.objective)}."
            )
        if loss == 0:
            step = self.state.global_step
            logger.warning(f"The training loss is exactly 0 at step {step}: {why_zero(self.objective)}")
        if loss is not None:
            logs |= check_finite(self.terms.take_means(self.args.world_size), self.state.global_step)
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        As `Trainer.save_model`; files that are replaced are replaced when all new ones are whole.

        Raises:
            FloatingPointError: if a weight is NaN or infinite.
            OSError: if the folder cannot be written.
        """
        refuse_broken_weights((self.model, self.objective), self.state.global_step)
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)

        def write() -> None:
            with replacing(folder, main=self.args.should_save) as aside:
                super(AdaptorTrainer, self).save_model(str(aside), _internal_call=True)

        # Scripts may call this on one process only, so it waits for no other.
        together(write, folder / "model.safetensors", wait=_internal_call)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save_checkpoint(self, model, trial=None) -> None:
        """As Trainer's, but the folder gets its name when it is whole, and older ones are deleted after that."""
        refuse_broken_weights((self.model, self.objective), self.state.global_step)
        self.store_flos()
        step = self.state.global_step
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{step}"
        if (best := self.state.best_global_step) is not None:
            best_folder = checkpoint.with_name(f"checkpoint-{best}")
            if best == step or best_folder.is_dir():
                self.state.best_model_checkpoint = str(best_folder)
        running_loss = self.running_loss.state()

        def write() -> None:
            folder = str(unfinished(checkpoint))
            super(AdaptorTrainer, self).save_model(folder, _internal_call=True)
            if self.args.should_save:
                remove_code(folder)
                save_objective(self.objective, unfinished(checkpoint))
                save_what_trains(self.model, self.args, unfinished(checkpoint), self.train_dataset)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(folder)
                self._save_scaler(folder)
                self._save_rng_state(folder)
            if self.args.should_save:
                self.state.save_to_json(os.path.join(folder, TRAINER_STATE_NAME))
                rewrite_without_paths(os.path.join(folder, TRAINER_STATE_NAME))
                RunningLoss.write(running_loss, unfinished(checkpoint))

        def finish() -> None:
            if self.args.should_save:
                finish_checkpoint(checkpoint)

        def clear() -> None:
            if self.args.should_save:
                remove_unfinished(checkpoint.parent)

        # Each waits for all processes: one of them has removed old files before another writes, and so on.
        together(clear, checkpoint)
        try:
            together(write, checkpoint)
            together(finish, checkpoint)
        except OSError:
            clear()
            raise
        if self.args.should_save:
            limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
            rotate_checkpoints(checkpoint.parent, checkpoint, best, limit)

    def _load_best_model(self) -> None:
        try:
            check_checkpoint(Path(self.state.best_model_checkpoint))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{error}. It was the best checkpoint. Copy it back and go on with {RESUME}; or add "
                "--load_best_model_at_end False to that, to end with the last one."
            ) from error
        super()._load_best_model()
        load_trained_towers(self.model, Path(self.state.best_model_checkpoint))
        load_objective_state(self.objective, Path(self.state.best_model_checkpoint))

    def _issue_warnings_after_load(self, load_result) -> None:
        # Frozen towers are in no checkpoint, and are what they were.
        in_checkpoint = self.model.config.towers_in_checkpoint
        towers = () if in_checkpoint else tuple(f"{name}." for name in TOWER_NAMES)
        missing = [name for name in load_result.missing_keys if not name.startswith(towers)]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if self.args.should_save:
            if self.processor is not None:
                self.processor.save_pretrained(folder)
            # The pickle of the arguments is no use to anyone; a readable copy is.
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            write_aside(folder / "training_args.json", json.dumps(private_options(self.args), indent=2, default=str))

    def save_state(self) -> None:
        super().save_state()
        if self.args.should_save:
            rewrite_without_paths(Path(self.args.output_dir) / TRAINER_STATE_NAME)

    def push_to_hub(self, commit_message: str | None = "End of training", token: str | None = None, **kwargs) -> str:
        """Push the fixed list of files of `hub.push_folder` from `output_dir`, to a private repository by default."""
        from ..hub import push_folder

        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return ""
        return push_folder(
            self.args.output_dir,
            self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            token=token or self.args.hub_token,
            private=self.args.hub_private_repo is not False,
            accept_data_terms=self.args.accept_data_terms,
            training_rows=self.args.push_training_rows,
            commit_message=commit_message or "End of training",
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Checkpoints stay on this machine, whatever `hub_strategy` says."""


__all__ = ["AdaptorTrainer"]
