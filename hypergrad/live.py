"""Face 0: three lines in an existing training loop."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from hypergrad import tree
from hypergrad.algorithm import Algorithm, Report
from hypergrad.errors import InputError, ReachWarning, TreeError, UnreachedError, UnsupportedError, WrappedModuleError
from hypergrad.memory import shortage_explained
from hypergrad.objective import count_arguments
from hypergrad.problem import Problem
from hypergrad.solvers.bilevel.auto import resolve
from hypergrad.tree import Tree

Loss = Callable[..., Tensor]


@final
class Live:
    """Hypergradients for a model that someone else trains.

    The losses are closures over the live module and the live hyperparameters; the loop, the optimizer and the
    scheduler stay as they are. :meth:`backward` fills the ``.grad`` of the hyperparameters like ``loss.backward()``
    does for a model's parameters.

    The module is called through :func:`torch.func.functional_call` with copies of its buffers, so batch-norm
    statistics do not move. Its parameters, their ``.grad`` and the random state stay as they are.

    Args:
        model: the module that is trained, bare: not wrapped by DDP, FSDP or ``torch.compile``. Its parameters that
            require grad are θ, as they are at each call.
        hparams: λ: a module, a mapping of names to tensors, or an iterable of tensors; leaf tensors that require grad.
        inner: the training loss, ``inner(batch)`` or ``inner()``, a scalar.
        outer: the validation loss, ``outer(batch)`` or ``outer()``, a scalar.
        algorithm: how the hypergradient is found; ``"auto"`` to have it chosen at the first call.
        penalty: an elementwise part of the training loss given apart, ``penalty()`` (see :class:`~hypergrad.Problem`).

    Raises:
        WrappedModuleError: a wrapped or compiled model.
        TreeError: hyperparameters that are no floating-point leaf tensors, or of another device or dtype.
        UnsupportedError: an algorithm that moves hyperparameters which only a closure knows.

    Example:
        >>> import torch, hypergrad as hg
        >>> model, weight = torch.nn.Linear(2, 1), torch.zeros(4, requires_grad=True)
        >>> x, y = torch.randn(4, 2), torch.randn(4, 1)
        >>> def train_loss():
        ...     return (weight.sigmoid()[:, None] * (model(x) - y) ** 2).mean() + 0.1 * model.weight.square().sum()
        >>> def valid_loss():
        ...     return (model(x) - y).square().mean()
        >>> hyper = hg.Live(model, [weight], train_loss, valid_loss, hg.Implicit(hg.Identity(0.1), stationarity=9e9))
        >>> report = hyper.backward()
        >>> weight.grad.shape
        torch.Size([4])
    """

    def __init__(
        self,
        model: nn.Module,
        hparams: nn.Module | Mapping[str, Tensor] | Iterable[Tensor],
        inner: Loss,
        outer: Loss,
        algorithm: Algorithm[Any] | Literal["auto"],
        *,
        penalty: Loss | None = None,
    ) -> None:
        """Check what is passed; nothing is computed yet."""
        _refuse_wrapped(model)
        algorithm = resolve(algorithm)
        self.model, self.algorithm = model, algorithm
        self.hparams = _hyperparameters(hparams)
        self._frame = _Frame(model, hparams if isinstance(hparams, nn.Module) else None)
        if algorithm.elsewhere and not isinstance(hparams, nn.Module):
            raise UnsupportedError(
                passed=f"{type(algorithm).__name__} with hyperparameters that only the losses' closures know",
                expected="an algorithm that stays at the present hyperparameters, or ones that can be replaced",
                do="put the hyperparameters into a torch.nn.Module (torch.nn.ParameterDict) and pass that, or use "
                "hypergrad.Implicit",
            )
        self._problem = Problem(
            self._frame.objective("inner", inner),
            self._frame.objective("outer", outer),
            penalty=None if penalty is None else self._frame.objective("penalty", penalty),
        )
        self._state: Any = None
        self._unused: set[str] = set()
        self._told: set[str] = set()

    def backward(self, batch: Any = None, outer_batch: Any = None) -> Report:
        """Add the hypergradient at the model's present parameters to the ``.grad`` of the hyperparameters.

        Args:
            batch: what ``inner`` gets.
            outer_batch: what ``outer`` gets.

        Returns:
            The report of this hypergradient. Each kind of warning is given once in the life of the object.

        Raises:
            UnreachedError: a hyperparameter that no loss uses.
            NumericalError: NaN or a diverged solve; no ``.grad`` is touched then.
            MemoryShortageError: a step that ran out of memory, with a smaller plan; nothing is touched.
        """
        problem = self._problem.with_batches(batch, outer_batch)
        if self._state is None:
            self._find_unused(problem)
            self._state = self.algorithm.init(problem, self._params(), tree.detached(self.hparams))
        state = dataclasses.replace(self._state, params=self._params())
        with shortage_explained(self.algorithm, problem):
            result, self._state = self.algorithm.step(problem, state, self.hparams)
        for key, hyperparameter in self.hparams.items():
            grad = result.grads[key]
            hyperparameter.grad = grad if hyperparameter.grad is None else hyperparameter.grad + grad
        result.report.warn(skip=self._told)
        self._told |= set(result.report.notes)
        return result.report

    def _params(self) -> Tree:
        live = {key: value for key, value in self.model.named_parameters() if value.requires_grad}
        return {key: value.detach() for key, value in live.items() if key not in self._unused}

    def _find_unused(self, problem: Problem) -> None:
        """Leave parameters that the training loss does not use out of θ, with a warning."""
        params = tree.check_tree("the model's parameters that require grad", self._params())
        tree.check_same_kind(params, self.hparams)
        try:
            problem.check_reach(params, self.hparams)
        except UnreachedError as error:
            self._unused = set(error.names)
            if len(self._unused) == len(params):
                raise
            text = f"the training loss does not use the model's parameters {error.names}; they are left out of params"
            warnings.warn(ReachWarning(text), stacklevel=3)


class _Frame(nn.Module):
    """Calls a closure while the model's tensors, and those of a hyperparameter module, are replaced."""

    def __init__(self, model: nn.Module, hparams: nn.Module | None) -> None:
        super().__init__()
        self.model, self.hparams = model, hparams

    def forward(self, function: Loss, arguments: tuple[Any, ...]) -> Tensor:
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

        def call(params: Tree, hparams: Tree, batch: Any) -> Tensor:
            replaced = {f"model.{key}": value for key, value in params.items()}
            if self.hparams is not None:
                replaced |= {f"hparams.{key}": value for key, value in hparams.items()}
            buffers = {key: value.clone() for key, value in self.named_buffers()}
            arguments = (function, (batch,) if count else ())
            value: Tensor = torch.func.functional_call(self, replaced | buffers, arguments)
            return value

        return call


def _hyperparameters(hparams: nn.Module | Mapping[str, Tensor] | Iterable[Tensor]) -> Tree:
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


def _refuse_wrapped(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(
            passed=f"model of type {type(model).__name__}",
            expected="a torch.nn.Module",
            do="pass the module that is trained; for plain functions use hypergrad.hypergradient",
        )
    remedies = {
        "DistributedDataParallel": "pass model.module",
        "DataParallel": "pass model.module",
        "FullyShardedDataParallel": "gather the parameters into an unsharded copy and pass that",
        "FSDPModule": "gather the parameters into an unsharded copy and pass that",
        "OptimizedModule": "pass model._orig_mod; the compiled model can go on training",
    }
    for name, module in model.named_modules():
        wrappers = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in remedies]
        if wrappers:
            raise WrappedModuleError(
                passed=f"model{'.' + name if name else ''} of type {type(module).__name__} ({wrappers[0]})",
                expected="a bare module: this wrapper gives silently local or no second derivatives",
                do=remedies[wrappers[0]],
            )
