"""SIGTERM and SIGUSR1: finish the step, save, exit with 75. And what the script says and returns when it ends early."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..privacy.mode import error_text, is_private

# EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later. No shell, Python or signal uses it.
EXIT_REQUEUE = 75
EXIT_CTRL_C = 130
# What a scheduler sends before it kills: SLURM's scancel and time limit, and its --signal=USR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """
    A scheduler's signal ended the run in an orderly way. A `KeyboardInterrupt`, so that no `except Exception` takes it
    for a fault of the row, file or rank at hand.
    """


class Signals:
    """
    What has arrived so far in this process.

    Attributes:
        received: name of the first signal; `None` before.
        deferred: note a signal only, whoever set this asks for it at the end of a step.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.deferred = False
        self.process = os.getpid()

    def handle(self, number: int, frame: object) -> None:
        if os.getpid() != self.process:
            # A forked worker has inherited this handler; its parent decides. SIGTERM is how a parent ends it.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        first, self.received = self.received is None, self.received or signal.Signals(number).name
        # A second signal must not cut short what the first one started.
        if first and not self.deferred:
            raise Interrupted


_active: Signals | None = None


@contextmanager
def catch_signals() -> Iterator[Signals]:
    """
    Turn SIGTERM and SIGUSR1 into `Interrupted` within the block; earlier handlers come back after it.

    Inside another such block it is the same one. Off the main thread, where Python allows no handlers, nothing changes.
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield _active or Signals()
        return
    _active = Signals()
    earlier = {number: signal.signal(number, _active.handle) for number in SIGNALS}
    try:
        yield _active
    finally:
        _active = None
        for number, handler in earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def deferred_signals() -> Iterator[Signals]:
    """Only note signals within the block. At its end one that nobody has acted on raises `Interrupted`."""
    with catch_signals() as signals:
        earlier, signals.deferred = signals.deferred, True
        try:
            yield signals
        finally:
            signals.deferred = earlier
        if signals.received and not signals.deferred:
            raise Interrupted


def asks_to_be_requeued(error: BaseException) -> bool:
    """
    Whether an error ends the run for a signal: an interruption for one, or, after one has come, what follows from
    another process that stopped first. Wrong input, a full disk and NaN stay what they are.
    """
    if isinstance(error, Interrupted):
        return True
    received = _active is not None and _active.received is not None
    final = isinstance(error, ValueError | OSError | FloatingPointError | SystemExit) or out_of_memory(error)
    return received and not final


class StopOnSignal(TrainerCallback):
    """
    Saves at the end of the step in which a signal reached any process, then raises `Interrupted` on all of them.

    Trainer's own `enable_jit_checkpoint` is no substitute: it knows SIGTERM only, waits three seconds first, may save
    before the optimizer's step (its gradient is lost on resuming, so the weights differ), processes do not agree on the
    step, and the script goes on as after a finished run: best weights loaded, exit status 0.
    """

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self.save_at_epoch_end = False
        self.group: dist.ProcessGroup | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        # Flags go over the CPU: asking a GPU at every step would make it wait for the host.
        if args.world_size > 1 and dist.get_backend() != "gloo":
            self.group = dist.new_group(backend="gloo")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.save_at_epoch_end = False
        if state.epoch == int(state.epoch) or control.should_training_stop:
            # A checkpoint of an epoch's last step must hold what is logged and evaluated at the epoch's end: a run that
            # is resumed from it does not do that again.
            self.save_at_epoch_end, control.should_save = control.should_save, False
        elif self.agreed(args):
            if args.save_strategy == "no":
                raise Interrupted
            control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        control.should_save |= self.save_at_epoch_end
        if self.agreed(args):
            if args.save_strategy == "no":
                raise Interrupted
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.agreed(args):
            raise Interrupted

    def agreed(self, args: TrainingArguments) -> bool:
        """Whether a signal has reached any process. All processes must ask together."""
        if args.world_size == 1:
            return self.signals.received is not None
        flag = torch.tensor([self.signals.received is not None], dtype=torch.int32)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        return bool(flag.item())


OUT_OF_MEMORY = (
    "Out of memory{where}. Use a smaller --global_batch_size, or share the batch over more processes (accelerate "
    "launch); keep the batch and its negatives but embed it in parts with --grad_cache_batch_size; or use half "
    "precision on a GPU (--bf16 or --fp16). While embeddings are built: --extraction_batch_size. The first line was: "
    "{message}"
)


def out_of_memory(error: BaseException) -> str | None:
    """What to change when this error is a lack of memory, of a GPU or of the machine; `None` for other errors."""
    message = error_text(error).strip().partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError):
        return OUT_OF_MEMORY.format(where=" on the GPU", message=message)
    # torch's CPU allocator raises a plain RuntimeError.
    allocator = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if isinstance(error, MemoryError) or allocator:
        return OUT_OF_MEMORY.format(where="", message=message or type(error).__name__)
    return None


GO_ON = (
    "Go on with the same command, and with --resume_from_checkpoint True once the output folder holds a checkpoint. "
    "What is done of the embeddings is kept."
)


def say(text: str) -> None:
    """Print to stderr from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


def leave_process_group() -> None:
    """
    Leave the group at the end. A gloo process that ends inside its group now and then aborts at the interpreter's exit,
    and the launcher then calls a finished run a failed one.
    """
    if dist.is_available() and dist.is_initialized():
        if dist.get_backend() == "gloo":
            # One that leaves at once can cut off another that is still connecting.
            dist.barrier()
        dist.destroy_process_group()


def run_script(main: Callable[[], None], go_on: str = GO_ON) -> None:
    """
    Run a script's main function and exit as a job script expects: 0 when done, 75 (`EXIT_REQUEUE`) after SIGTERM or
    SIGUSR1, 130 after Ctrl-C, 1 with one line for a wrong input, a full disk, NaN or too little memory.

    Args:
        main (`Callable`): Does everything.
        go_on (`str`): How an interrupted run goes on, where `main` does not say it.
    """
    with catch_signals() as signals:
        try:
            main()
            leave_process_group()
            return
        except KeyboardInterrupt as interruption:
            stopped, go_on = signals.received, str(interruption) or go_on
            status = EXIT_REQUEUE if asks_to_be_requeued(interruption) else EXIT_CTRL_C
            if isinstance(interruption, Interrupted):
                # All processes stop at one step, so all come here; one that is gone makes the others' call fail.
                with contextlib.suppress(RuntimeError):
                    leave_process_group()
        except (ValueError, OSError, FloatingPointError) as error:
            sys.exit(f"error: {error_text(error)}")
        except Exception as error:
            if advice := out_of_memory(error):
                sys.exit(f"error: {advice}")
            if is_private() and not signals.received:
                # A traceback shows code and what a library says of the data.
                sys.exit(f"error: {error_text(error)}")
            # Another process has stopped first, and a call that waits for it has failed.
            stopped, status = signals.received, EXIT_REQUEUE
            if not asks_to_be_requeued(error):
                raise
        say(f"Stopped by {stopped or ('a signal' if status == EXIT_REQUEUE else 'Ctrl-C')}. {go_on}")
    sys.exit(status)


__all__ = [
    "EXIT_REQUEUE",
    "Interrupted",
    "StopOnSignal",
    "asks_to_be_requeued",
    "catch_signals",
    "deferred_signals",
    "leave_process_group",
    "out_of_memory",
    "run_script",
]
