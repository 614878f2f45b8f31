"""A head trained by a plain loop, without transformers: the second implementation that `train_head` is held against."""

import copy
import math

import numpy as np
import torch
from torch import nn

from adaptor_hf.heads_adaptor import ClassificationHead, classification_loss
from adaptor_hf.tasks.head_training import macro_auroc
from adaptor_hf.tasks.protocols import ProbeProtocol


def train_by_loop(head: ClassificationHead, train: tuple, validation: tuple, protocol: ProbeProtocol, rate, seed):
    """The head at its best evaluation, the step, and there the score and what breaks a tie."""
    features, labels, _ = train
    optimizer = _optimizer(head, protocol, rate)
    steps_an_epoch = len(features) // protocol.batch_size + (len(features) % protocol.batch_size > 1)
    total = protocol.max_steps or protocol.epochs * steps_an_epoch
    interval = protocol.eval_steps or steps_an_epoch
    scheduler = _scheduler(optimizer, protocol, total)
    best, best_step, best_state, reference, waited = (-math.inf, -math.inf), 0, None, (-math.inf, -math.inf), 0
    batches = _batches(len(features), protocol, seed)
    head.train()
    for step in range(1, total + 1):
        rows = next(batches)
        loss = classification_loss(head(features.index_select(0, rows)), labels[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % steps_an_epoch == 0 and scheduler is not None and protocol.schedule != "plateau":
            scheduler.step()
        if step % interval and step != total:
            continue
        score, validation_loss = _evaluate(head, validation, protocol.monitor)
        if not math.isfinite(validation_loss):
            raise FloatingPointError(f"The loss on validation is {validation_loss} at step {step}, rate {rate:g}.")
        if protocol.schedule == "plateau":
            scheduler.step(validation_loss)
        # On a small validation part the first steps may already order it as well as can be: then the loss decides.
        reached = (score, -validation_loss if protocol.monitor == "auroc" else 0.0)
        if reached > best:
            best, best_step, best_state = reached, step, copy.deepcopy(head.state_dict())
        waited += 1
        if reached > (reference[0] + protocol.min_delta, reference[1]):
            reference, waited = reached, 0
        if protocol.patience is not None and waited >= protocol.patience:
            break
    head.load_state_dict(best_state)
    return head, best_step, best


def _batches(count, protocol, seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        parts = torch.randperm(count, generator=generator).split(protocol.batch_size)
        yield from (part for part in parts if len(part) > 1)


def _optimizer(head: nn.Module, protocol: ProbeProtocol, rate: float) -> torch.optim.Optimizer:
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(head.parameters(), rate, momentum=0.9, weight_decay=protocol.weight_decay)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[protocol.optimizer]
    return kind(head.parameters(), rate, protocol.betas, weight_decay=protocol.weight_decay)


def _scheduler(optimizer, protocol, total):
    schedulers = torch.optim.lr_scheduler
    if protocol.schedule == "cosine_restarts":
        return schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=max(1, int(0.4 * total)), eta_min=1e-8)
    if protocol.schedule == "cosine_epochs":
        return schedulers.CosineAnnealingLR(optimizer, T_max=protocol.epochs)
    if protocol.schedule == "plateau":
        return schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
    return None


@torch.no_grad()
def _evaluate(head, validation, monitor):
    features, labels, known = validation
    head.eval()
    logits = head(features)
    loss = classification_loss(logits, labels).item()
    head.train()
    if monitor == "loss":
        return -loss, loss
    if head.exclusive and monitor == "metric":
        return float((logits.numpy().argmax(1) == known).mean()), loss
    score = macro_auroc(logits.double().numpy(), np.asarray(known), np.ndim(known) == 1)
    return (-loss if math.isnan(score) else score), loss
