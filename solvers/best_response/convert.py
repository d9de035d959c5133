"""Turn any module into one whose weights respond to hyperparameters."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from hypergrad import guards
from hypergrad.errors import InputError, did_you_mean
from hypergrad.settings import check_count
from hypergrad.solvers.best_response.hyperparameters import Hyperparameters
from hypergrad.solvers.best_response.layers import (
    KNOWN,
    LAYER_NORM,
    Dropout,
    GateKind,
    NormResponse,
    ResponseLayer,
    WeightResponse,
)

REPAIRS = frozenset({guards.CUDNN_RNN, guards.WEIGHT_NORM})
Skip = str | type[nn.Module]


@final
class BestResponse(nn.Module):
    """A module whose weights respond to hyperparameters; :func:`convert` makes it.

    Attributes:
        module: the converted module.
        centred: whether gates read the perturbation alone (Delta-STN).
    """

    def __init__(self, module: nn.Module, hparams: Hyperparameters, *, centred: bool) -> None:
        """Keep the parts; the hyperparameters are not this module's own."""
        super().__init__()
        self.module, self.centred, self._shared = module, centred, (hparams,)

    @property
    def hparams(self) -> Hyperparameters:
        """The hyperparameters that it responds to."""
        return self._shared[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's answer, in a linearised step its first-order expansion y(0) + J ε around no perturbation.

        J ε comes from two reverse passes through the answer, which stay differentiable.
        """
        if not self.hparams.linearised:
            return self.module(*args, **kwargs)
        recording = torch.is_grad_enabled()
        device = self.hparams.location.device
        with guards.second_order(device, REPAIRS), self.hparams.linearising() as (leaf, noise):
            answer = self.module(*args, **kwargs)
            values, rebuild = _pytree.tree_flatten(answer)
            moved = _pushed(values, leaf, noise)
        return _pytree.tree_unflatten(moved if recording else [_detached(value) for value in moved], rebuild)

    def response_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that shape the response: W1, b1 and the gates'."""
        layers = (layer for layer in self.modules() if isinstance(layer, ResponseLayer))
        return [parameter for layer in layers for parameter in layer.response_parameters()]

    def general_parameters(self) -> list[nn.Parameter]:
        """Return all other parameters."""
        response = {id(parameter) for parameter in self.response_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in response]


def convert(
    model: nn.Module,
    hparams: Hyperparameters,
    *,
    centred: bool = False,
    gate: GateKind = "linear",
    skip: Iterable[Skip] = (),
    seed: int = 0,
) -> BestResponse:
    """Return a new module whose weights are functions of the hyperparameters, and that behaves as ``model`` at first.

    Every weight W of a linear map, convolution, embedding or normalisation becomes W0 + gate(λ) ⊙ W1, with a gate for
    each output unit; W0 starts as a copy of the model's and the response starts at 0. Layers that are frozen as a
    whole, and modules without parameters of their own, stay as they are. So do modules named in ``skip``, which have
    weights that do not respond.

    Args:
        model: any module whose layers keep the examples in the first dimension; it stays as it is.
        hparams: what the weights respond to.
        centred: whether gates read the perturbation alone, as Delta-STN does, and not λ itself.
        gate: ``"linear"``, V λ with V = 0 and fresh W1 at first; or ``"sigmoid"``, sigmoid(V λ + c) with W1 = 0 and
            fresh V at first, which is exact for ridge regression. Only the linear one can be centred.
        skip: names of modules (with everything below them) and classes of modules to leave as they are.
        seed: seed of the fresh response weights.

    Cost: twice the parameters of a converted layer, and twice its forward pass.

    Raises:
        InputError: a layer that is not known and not skipped, a skip that fits nothing, or no layer left to convert.

    Example:
        >>> from hypergrad.solvers.best_response import Dropout, Hyperparameter, Hyperparameters, Logit, convert
        >>> hparams = Hyperparameters({"dropout": Hyperparameter(0.05, Logit(0, 0.9))})
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Dropout(hparams, "dropout"), nn.Linear(4, 1))
        >>> responsive, x = convert(model, hparams), torch.ones(2, 3)
        >>> torch.equal(responsive.eval()(x), model.eval()(x))
        True
    """
    _check(model, hparams, gate, centred=centred)
    check_count("convert", "seed", seed, least=0)
    copied = copy.deepcopy(model, memo={id(hparams): hparams})
    _check_readers(copied, hparams)
    make = _Replacement(hparams, gate, centred=centred, skip=list(skip))
    with guards.pinned_rng(hparams.location.device, seed):
        converted = make.replaced(copied, "")
    make.check_done(model)
    responsive = BestResponse(converted, hparams, centred=centred)
    responsive.training = model.training
    return responsive


class _Replacement:
    """Walks through a module and replaces its layers; what stands at two places is replaced once."""

    def __init__(self, hparams: Hyperparameters, gate: GateKind, *, centred: bool, skip: list[Skip]) -> None:
        self.hparams, self.gate, self.centred, self.skip = hparams, gate, centred, skip
        self.done: dict[int, tuple[nn.Module, nn.Module]] = {}
        self.met: set[Skip] = set()
        self.unknown: dict[str, str] = {}

    def replaced(self, module: nn.Module, path: str) -> nn.Module:
        fitting = [entry for entry in self.skip if entry == path or type(module) is entry]
        self.met.update(fitting)
        if fitting:
            return module
        if id(module) not in self.done:
            self.done[id(module)] = (
                module,
                self._new(module, path),
            )  # the old one is kept, so that its id stays its own
        return self.done[id(module)][1]

    def _new(self, module: nn.Module, path: str) -> nn.Module:
        own = dict(module.named_parameters(recurse=False))
        if own and any(parameter.requires_grad for parameter in own.values()):
            reason = _refusal(module, own)
            if not reason:
                kind: Any = WeightResponse if _is_map(module) else NormResponse
                layer: nn.Module = kind(module, self.hparams, self.gate, centred=self.centred, path=path)
                return layer.train(module.training)
            self.unknown[path] = reason
        for name, child in list(module._modules.items()):  # named_children leaves out what stands at two places
            if child is None:
                continue
            setattr(module, name, self.replaced(child, f"{path}.{name}" if path else name))
        return module

    def check_done(self, model: nn.Module) -> None:
        names = [name for name, _ in model.named_modules()]
        for entry in self.skip:
            if entry not in self.met:
                hint = did_you_mean(entry, names) if isinstance(entry, str) else ""
                raise InputError(
                    passed=f"skip={entry!r}{hint}, which fits no module that is to be converted",
                    expected=f"a name of {names[:12]} or the class of a module",
                    do="take it from model.named_modules(), or leave it out",
                )
        if self.unknown:
            found = "; ".join(f"{path or 'the model itself'}: {reason}" for path, reason in self.unknown.items())
            raise InputError(
                passed=f"layers that cannot be converted: {found}",
                expected=f"layers of {', '.join(kind.__name__ for kind in KNOWN)}",
                do=f"leave them as they are, with weights that do not respond: convert(..., skip={list(self.unknown)})",
            )
        if not any(isinstance(new, ResponseLayer) for _, new in self.done.values()):
            raise InputError(
                passed=f"a {type(model).__name__} without a layer to convert",
                expected="at least one layer whose weights respond to the hyperparameters",
                do="leave a layer out of skip, or unfreeze one",
            )


def _is_map(module: nn.Module) -> bool:
    return not isinstance(module, (*LAYER_NORM, nn.modules.batchnorm._BatchNorm, nn.GroupNorm))


def _refusal(module: nn.Module, own: dict[str, nn.Parameter]) -> str:
    """Return why a module cannot be converted, or an empty string."""
    name = type(module).__name__
    if type(module) not in KNOWN:
        return name
    if not set(own) <= {"weight", "bias"} or "weight" not in own:
        return f"{name} with the parameters {list(own)}"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return f"{name} with hooks"
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.sparse):
        return f"{name} with max_norm or sparse gradients"
    return ""


def _check(model: object, hparams: object, gate: str, *, centred: bool) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model of type {type(model).__name__}", "a torch.nn.Module", "pass the module that is trained"
        )
    if not isinstance(hparams, Hyperparameters):
        raise InputError(
            passed=f"hparams of type {type(hparams).__name__}",
            expected="best_response.Hyperparameters",
            do='write Hyperparameters({"dropout": Hyperparameter(0.05, Logit(0, 0.9))})',
        )
    if gate not in ("linear", "sigmoid"):
        raise InputError(f"convert(gate={gate!r})", '"linear" or "sigmoid"', "pick one of these")
    if centred and gate != "linear":
        raise InputError(
            passed=f"convert(centred=True, gate={gate!r})",
            expected="linear gates, which are shut without a perturbation",
            do="leave gate out, or centred",
        )
    converted = [name for name, part in model.named_modules() if isinstance(part, BestResponse | ResponseLayer)]
    if converted:
        raise InputError(
            passed=f"a model that is converted already ({converted[0] or 'the model itself'})",
            expected="a module as it was before",
            do="convert the original model",
        )


def _check_readers(model: nn.Module, hparams: Hyperparameters) -> None:
    for name, part in model.named_modules():
        if part is hparams:
            raise InputError(
                passed=f"a model that owns the hyperparameters, as {name!r}",
                expected="hyperparameters that are no part of the model, since training does not move them",
                do="keep them beside the model",
            )
        if isinstance(part, Dropout) and part._shared[0] is not hparams:
            raise InputError(
                passed=f"Dropout {name!r}, which reads other hyperparameters",
                expected="layers that read the hyperparameters that the model is converted with",
                do="build it with the same Hyperparameters",
            )


def _pushed(values: list[Any], leaf: Tensor, noise: Tensor) -> list[Any]:
    """Return values + J noise, where J is their derivative with respect to ``leaf``; the graph of both is kept."""
    live = [value for value in values if isinstance(value, Tensor) and value.requires_grad]
    if not live:
        return values
    dummies = [torch.zeros_like(value, requires_grad=True) for value in live]
    (pulled,) = torch.autograd.grad(live, leaf, dummies, create_graph=True, allow_unused=True)
    if pulled is None:
        return values
    pushed = torch.autograd.grad(pulled, dummies, noise, create_graph=True, allow_unused=True)
    tangents = {id(value): tangent for value, tangent in zip(live, pushed, strict=True) if tangent is not None}
    return [value + tangents[id(value)] if id(value) in tangents else value for value in values]


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
