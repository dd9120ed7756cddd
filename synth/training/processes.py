"""Sharing of gradients, buffers and numbers between processes.

Gradients are averaged explicitly, so that state dicts have no `module.` before their names, and a
step with several optimizers stays plain sequential code. With one process all of it is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, gather_object
from torch import Tensor

T = TypeVar("T")


def accelerator(precision: str, device: str) -> Accelerator:
    """Return a fresh Accelerator on `device` ("auto", "cpu" or "cuda").

    Accelerate remembers the first device and precision of the process; a second training in the
    same process may want others.
    """
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return Accelerator(mixed_precision=precision, cpu=device == "cpu")


def average_gradients(parameters: Sequence[Tensor], accelerator: Accelerator) -> None:
    """Replace each gradient by its mean over the processes, in one collective."""
    if accelerator.num_processes == 1:
        return
    present = torch.tensor([p.grad is not None for p in parameters], device=accelerator.device)
    anywhere = accelerator.reduce(present.float(), "sum").tolist()
    used = [p for p, count in zip(parameters, anywhere, strict=True) if count]
    for p in used:
        # A parameter that only another process used: its share here is zero.
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    grads = [p.grad for p in used if p.grad is not None]
    if not grads:
        return
    flat = accelerator.reduce(torch.cat([g.reshape(-1) for g in grads]), "mean")
    for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def copy_from_first(tensors: Iterable[Tensor], accelerator: Accelerator) -> None:
    """Give every process the first one's weights, or its running statistics as DDP does."""
    if accelerator.num_processes > 1:
        with torch.no_grad():
            broadcast(list(tensors))


def mean(value: Tensor, accelerator: Accelerator) -> float:
    """Return the mean of a scalar over the processes."""
    if accelerator.num_processes > 1:
        value = accelerator.reduce(value, "mean")
    return float(value)


def any_of(flag: bool, accelerator: Accelerator) -> bool:
    """Say whether any process raises the flag; all get the same answer."""
    if accelerator.num_processes == 1:
        return flag
    raised = torch.tensor(float(flag), device=accelerator.device)
    return float(accelerator.reduce(raised, "sum")) > 0


def gather(records: list[T], accelerator: Accelerator) -> list[T]:
    """Return the records of every process, in the order of the processes."""
    return records if accelerator.num_processes == 1 else gather_object(records)
