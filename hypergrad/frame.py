"""The live module as a pure function, and what of it is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hypergrad import evaluation, guards, outside, tree
from hypergrad.errors import InputError, ObjectiveError, TreeError, WrappedModuleError
from hypergrad.objective import count_arguments
from hypergrad.tree import Tree

Loss = Callable[..., Tensor]

REMEDIES = {
    "DistributedDataParallel": "pass model.module and call it in the losses; the wrapped one can go on training",
    "DataParallel": "pass model.module and call it in the losses; the wrapped one can go on training",
    "FullyShardedDataParallel": "gather the parameters into an unsharded copy and pass that",
    "FSDPModule": "gather the parameters into an unsharded copy and pass that",
}
"""What to do about a wrapper, which gives silently local or no second derivatives."""


class Frame(nn.Module):
    """Calls a closure while the model's tensors, and those of a hyperparameter module, are replaced."""

    def __init__(self, model: nn.Module, hparams: nn.Module | None) -> None:
        """Keep both; neither is changed."""
        super().__init__()
        self.model, self.hparams = model, hparams
        self._checked: set[str] = set()

    def forward(self, function: Loss, arguments: tuple[Any, ...]) -> Tensor:
        """Return the closure's value."""
        return function(*arguments)

    def objective(self, name: str, function: Loss) -> Callable[[Tree, Tree, Any], Tensor]:
        """Return the closure as a pure function of (params, hparams, batch)."""
        count = count_arguments(function, (1, 0)) if callable(function) else None
        if count is None:
            raise InputError(
                passed=f"{name}={function!r}",
                expected=f"a function {name}(batch) or {name}() that returns a scalar",
                do="close over the model and the hyperparameters, and take the batch as the only argument",
            )
        refuse_wrappers(name, outside.modules([function]))
        choices = (count,) if count_arguments(function, (0,)) is None else (count, 0)
        return functools.partial(self.call, name, function, choices)

    def call(
        self, name: str, function: Loss, choices: tuple[int, ...], params: Tree, hparams: Tree, batch: Any
    ) -> Tensor:
        """Return the closure's value at these parameters and hyperparameters; buffers are copied.

        Where the argument is optional and there is no batch, the closure's own default stays.
        """
        replaced = {f"model.{key}": value for key, value in params.items()}
        if self.hparams is not None:
            replaced |= {f"hparams.{key}": value for key, value in hparams.items()}
        buffers = {key: value.clone() for key, value in self.named_buffers()}
        arguments = (function, (batch,)[: choices[-1 if batch is None else 0]])
        with evaluation.with_own_buffers():
            value: Tensor = torch.func.functional_call(self, replaced | buffers, arguments)
        if name not in self._checked and isinstance(value, Tensor) and value.requires_grad:
            self._refuse_captured(name, value, params)
            self._checked.add(name)
        return value

    def _refuse_captured(self, name: str, value: Tensor, params: Tree) -> None:
        """Refuse a loss that got hold of a parameter before, which would count as a constant without a word."""
        reached = guards.leaves_of(value)
        lost = [key for key, own in self.model.named_parameters() if key in params and id(own) in reached]
        if lost:
            raise ObjectiveError(
                passed=f"{name}, which uses the model's parameters {lost} as variables that were bound outside of it",
                expected="a loss that reads parameters from the module each time: model(x), model.weight, "
                "model.parameters()",
                do=f"move the line that reads them into {name}; a list made before keeps tensors that are not replaced",
            )


def hyperparameters(hparams: nn.Module | Mapping[str, Tensor] | Iterable[Tensor]) -> Tree:
    """Return the live hyperparameters by name.

    Raises:
        TreeError: anything but floating-point leaf tensors that require grad.
    """
    if isinstance(hparams, Tensor):
        raise TreeError(
            passed="hparams of type Tensor",
            expected="a module, a mapping from names to tensors, or a list of tensors",
            do="pass a list: [hparams]",
        )
    if isinstance(hparams, nn.Module):
        named: dict[str, Tensor] = {key: value for key, value in hparams.named_parameters() if value.requires_grad}
    elif isinstance(hparams, Mapping):
        named = {str(key): value for key, value in hparams.items()}
    else:
        named = {str(place): value for place, value in enumerate(hparams)}
    named = tree.check_tree("hparams", named)
    for key, value in named.items():
        if not (value.is_leaf and value.requires_grad):
            raise TreeError(
                passed=f"hparams[{key!r}], which {'does not require grad' if value.is_leaf else 'is no leaf tensor'}",
                expected="leaf tensors with requires_grad=True, whose .grad can be filled",
                do="create it with requires_grad=True and pass that very tensor, not a result computed from it",
            )
    return named


def refuse_wrapped(model: object) -> None:
    """Raise for what is no bare module.

    Raises:
        InputError: no module.
        WrappedModuleError: a module wrapped by DDP, FSDP or ``torch.compile``, or one with such a part.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            passed=f"model of type {type(model).__name__}",
            expected="a torch.nn.Module",
            do="pass the module that is trained; for plain functions use hypergrad.hypergradient",
        )
    compiled = {"OptimizedModule": "pass model._orig_mod; the compiled model can go on training"}
    _refuse("model", dict(model.named_modules()), REMEDIES | compiled)


def refuse_wrappers(name: str, modules: Mapping[str, nn.Module]) -> None:
    """Raise :class:`~hypergrad.errors.WrappedModuleError` for a wrapper that a loss calls, compiled ones excepted.

    Compiled modules run eagerly inside a hypergradient; the other wrappers leave other ranks or shards out.
    """
    _refuse(f"{name}, which calls", modules, REMEDIES)


def _refuse(what: str, modules: Mapping[str, nn.Module], remedies: Mapping[str, str]) -> None:
    for name, module in modules.items():
        wrappers = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in remedies]
        if wrappers:
            where = f"{what}.{name}".rstrip(".") if what == "model" else f"{what} {name or 'a module'}"
            raise WrappedModuleError(
                passed=f"{where} of type {type(module).__name__} ({wrappers[0]})",
                expected="a bare module: this wrapper gives silently local or no second derivatives",
                do=remedies[wrappers[0]],
            )


def theta(model: nn.Module, hparams: Tree) -> Tree:
    """Return the model's parameters that require grad, but for those that are hyperparameters."""
    own = {id(value) for value in hparams.values()}
    named = model.named_parameters()
    return {key: value for key, value in named if value.requires_grad and id(value) not in own}


def check_apart(params: Tree, hparams: Tree) -> None:
    """Raise :class:`~hypergrad.errors.TreeError` for hyperparameters that share memory with another tensor.

    A step of one would silently be a step of the other.
    """
    named = [(f"hparams[{key!r}]", value) for key, value in hparams.items()]
    spans = [
        (what, _span(value)) for what, value in [*named, *((f"the parameter {k!r}", v) for k, v in params.items())]
    ]
    for place, (what, (start, end)) in enumerate(spans[: len(named)]):
        for other, (low, high) in spans[place + 1 :]:
            if max(start, low) < min(end, high):
                raise TreeError(
                    passed=f"{what}, which shares memory with {other}",
                    expected="hyperparameters of their own: what moves one must not move another tensor",
                    do="pass each tensor once, and a copy (.detach().clone().requires_grad_()) instead of a view; "
                    "parameters of the model itself can be hyperparameters, and are then no part of params",
                )


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses between which a tensor lies; nothing where it has no memory of its own."""
    if tensor.device.type == "meta" or tensor.layout is not torch.strided or not tensor.numel():
        return 0, 0
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()
