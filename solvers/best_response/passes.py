"""Passes of a self-tuning run: gradients, steps of torch optimizers, and what they leave as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hypergrad.errors import ObjectiveError


def seed_all(seed: int, device: torch.device) -> None:
    """Seed torch's random numbers of the CPU and of a device.

    On the CPU alone this spares what :func:`torch.manual_seed` does for unused devices, half of a small step.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def tensors_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the tensors that an optimizer moves."""
    return [tensor for group in optimizer.param_groups for tensor in group["params"] if tensor.requires_grad]


def gradients(name: str, loss: Tensor, tensors: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """Return the gradients of those tensors that the loss reaches.

    Raises:
        ObjectiveError: a training loss that depends on nothing.
    """
    if not loss.requires_grad:
        if name == "valid_loss":
            return {}
        raise ObjectiveError(
            passed=f"{name}, whose value depends on no parameter",
            expected="a loss that calls the converted model",
            do="call what best_response.convert returned, and do not detach its answer",
        )
    if not tensors:
        return {}
    found = torch.autograd.grad(loss, tensors, allow_unused=True)
    return {tensor: grad for tensor, grad in zip(tensors, found, strict=True) if grad is not None}


def apply(optimizers: Iterable[torch.optim.Optimizer], grads: Mapping[Tensor, Tensor]) -> None:
    """Let optimizers step from the gradients, and leave the ``.grad`` of every tensor as it was."""
    optimizers = list(optimizers)
    tensors = [tensor for optimizer in optimizers for tensor in tensors_of(optimizer)]
    before = [tensor.grad for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.grad = grads.get(tensor)
        for optimizer in optimizers:
            optimizer.step()
    finally:
        for tensor, grad in zip(tensors, before, strict=True):
            tensor.grad = grad


@contextmanager
def guarded_buffers(model: nn.Module, *, keep: bool = False) -> Iterator[None]:
    """Put the model's buffers back if something goes wrong inside the block, or always."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    failed = True
    try:
        yield
        failed = False
    finally:
        if failed or keep:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every part of the model into evaluation mode inside the block."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
