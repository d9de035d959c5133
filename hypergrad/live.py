"""Face 0: three lines in an existing training loop."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal, final

from torch import Tensor, nn

from hypergrad import saved, tree
from hypergrad.algorithm import Algorithm, Cost, Report
from hypergrad.errors import InputError, ReachWarning, UnreachedError, UnsupportedError
from hypergrad.frame import Frame, Loss, check_apart, hyperparameters, refuse_wrapped, theta
from hypergrad.memory import shortage_explained
from hypergrad.objective import count_arguments
from hypergrad.probe import probe as look
from hypergrad.problem import Problem
from hypergrad.solvers.bilevel.auto import resolve
from hypergrad.tree import Tree

Signature = dict[str, dict[str, list[Any]]]
"""Shape, dtype and device of every tensor of params and hparams."""
ENTRIES: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "algorithm": str,
    "algorithm_state": (dict, type(None)),
    "signature": dict,
    "unused": list,
    "told": list,
    "probed": bool,
    "calls": int,
}


@final
class Live:
    """Hypergradients for a model that someone else trains.

    The losses are closures over the live module and the live hyperparameters; the loop, the optimizer and the
    scheduler stay as they are. :meth:`backward` fills the ``.grad`` of the hyperparameters like ``loss.backward()``
    does for a model's parameters.

    The module is called through :func:`torch.func.functional_call` with copies of its buffers, so batch-norm
    statistics do not move. Its parameters, their ``.grad`` and the random states of torch, Python and numpy stay as
    they are.

    Between two calls parameters may be trained, replaced, frozen or unfrozen. Where θ has other tensors than before the
    algorithm begins anew, with a :class:`~hypergrad.errors.RestartWarning`.

    Args:
        model: the module that is trained, bare: not wrapped by DDP, FSDP or ``torch.compile``. Its parameters that
            require grad are θ, as they are at each call, but for those that are hyperparameters.
        hparams: λ: a module, a mapping of names to tensors, or an iterable of tensors; leaf tensors that require grad.
        inner: the training loss, ``inner(batch)`` or ``inner()``, a scalar.
        outer: the validation loss, ``outer(batch)`` or ``outer()``, a scalar.
        algorithm: how the hypergradient is found; ``"auto"`` to have it chosen at the first call.
        penalty: an elementwise part of the training loss given apart, ``penalty()`` (see :class:`~hypergrad.Problem`).
        probe: whether the first :meth:`backward` looks whether the losses repeat, whether hyperparameters change them
            without a gradient, and whether the ``.grad`` to be filled is empty. It costs two gradients of each loss,
            once (see :attr:`probe_cost`).

    Attributes:
        model: as passed.
        algorithm: as passed.
        hparams: λ by name.
        calls: hypergradients found.
        probe_cost: passes that the probe made; they are not part of any report.

    Raises:
        WrappedModuleError: a wrapped or compiled model, or a loss that calls a wrapped one.
        TreeError: hyperparameters that are no floating-point leaf tensors, of another device or dtype, or that share
            memory with each other or with a parameter.
        UnsupportedError: an algorithm that moves hyperparameters which only a closure knows, or that compiles.

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
        probe: bool = True,
    ) -> None:
        """Check what is passed; nothing is computed yet."""
        refuse_wrapped(model)
        algorithm = resolve(algorithm)
        if getattr(algorithm, "compile", False):
            raise UnsupportedError(
                passed=f"{algorithm!r} for Live, whose losses are closures over live tensors",
                expected="an algorithm that runs eagerly: compiled code needs functions of (params, hparams, batch)",
                do="leave compile out, or use hypergrad.hypergradient, hypergrad.Run or hypergrad.Trainer",
            )
        self.model, self.algorithm = model, algorithm
        self.hparams = hyperparameters(hparams)
        self._given = hparams if isinstance(hparams, nn.Module) else self.hparams
        check_apart(theta(model, self.hparams), self.hparams)
        frame = Frame(model, hparams if isinstance(hparams, nn.Module) else None)
        if algorithm.elsewhere and not isinstance(hparams, nn.Module):
            raise UnsupportedError(
                passed=f"{type(algorithm).__name__} with hyperparameters that only the losses' closures know",
                expected="an algorithm that stays at the present hyperparameters, or ones that can be replaced",
                do="put the hyperparameters into a torch.nn.Module (torch.nn.ParameterDict) and pass that, or use "
                "hypergrad.Implicit",
            )
        self._written: dict[str, Loss] = {"inner": inner, "outer": outer}
        if penalty is not None:
            self._written["penalty"] = penalty
        pure = {name: frame.objective(name, loss) for name, loss in self._written.items()}
        self._problem = Problem(pure["inner"], pure["outer"], penalty=pure.get("penalty"))
        self._state: Any = None
        self._signature: Signature = {}
        self._unused: set[str] = set()
        self._told: set[str] = set()
        self._notes: dict[str, str] = {}
        self._probe_wanted = probe
        self.probe_cost, self.calls = Cost(), 0

    def backward(self, batch: Any = None, outer_batch: Any = None) -> Report:
        """Add the hypergradient at the model's present parameters to the ``.grad`` of the hyperparameters.

        Zero these before each call: the ``backward()`` of a training loss that uses the hyperparameters fills their
        ``.grad`` as well, with ∂g/∂λ.

        Args:
            batch: what ``inner`` gets: a tensor, a mapping, a tuple, anything.
            outer_batch: what ``outer`` gets.

        Returns:
            The report of this hypergradient. Each kind of warning is given once in the life of the object.

        Raises:
            InputError: a batch for a loss that takes none, or none for a loss that needs one.
            UnreachedError: a hyperparameter that no loss uses.
            CutError: a hyperparameter that changes a loss without a gradient.
            ObjectiveError: a loss that uses the model's parameters as variables bound outside of it.
            InputError: a tensor that was changed in place meanwhile, by another thread.
            NumericalError: NaN or a diverged solve; no ``.grad`` is touched then.
            OutOfMemoryError: not enough memory, with a smaller plan; no ``.grad`` and no memory of the algorithm is
                touched then.
        """
        self._check_batch("inner", "batch", batch)
        self._check_batch("outer", "outer_batch", outer_batch)
        problem = self._problem.with_batches(batch, outer_batch)
        with shortage_explained("Live.backward", self.algorithm, problem):
            self._follow(problem)
            state = dataclasses.replace(self._state, params=self._params())
            result, self._state = self.algorithm.step(problem, state, self.hparams)
        for key, hyperparameter in self.hparams.items():
            grad = result.grads[key]
            hyperparameter.grad = grad if hyperparameter.grad is None else tree.plus(hyperparameter.grad, grad)
        report = dataclasses.replace(result.report, notes={**result.report.notes, **self._notes})
        self._notes = {}
        self.calls += 1
        report.warn(skip=self._told)
        self._told |= set(report.notes)
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return what the algorithm remembers, as tensors, numbers and strings; the tensors are copies.

        The model, the hyperparameters and the random state are not part of it: save them as ever.
        """
        packed = None if self._state is None else tree.pack(dataclasses.replace(self._state, params={}))
        return {
            "format": saved.FORMAT,
            "algorithm": type(self.algorithm).__name__,
            "algorithm_state": packed,
            "signature": tree.pack(self._signature),
            "unused": sorted(self._unused),
            "told": sorted(self._told),
            "probed": not self._probe_wanted,
            "calls": self.calls,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned, with the model and the hyperparameters loaded before.

        On the CPU the next hypergradient is the one that would have come next, bit for bit.

        Raises:
            InputError: a state of another algorithm, or of parameters or hyperparameters of other names, shapes or
                dtypes; this object stays as it was.
        """
        saved.check_entries(state, {"format": saved.FORMAT, "algorithm": type(self.algorithm).__name__}, ENTRIES)
        hparams = hyperparameters(self._given)
        params = theta(self.model, hparams)
        signature, loaded = _signature(params, hparams), None
        if state["algorithm_state"] is not None:
            if _without_devices(state["signature"]) != _without_devices(signature):
                raise saved.unfit(
                    f"of params and hparams like {_without_devices(state['signature'])}",
                    f"{_without_devices(signature)}",
                )
            used = {key: value.detach() for key, value in params.items() if key not in state["unused"]}
            like = self.algorithm.init(self._problem, used, tree.detached(hparams))
            packed = {**state["algorithm_state"], "params": used}
            loaded = saved.algorithm_state(packed, like, tree.device_of(used))
        self._state, self._signature, self.hparams = loaded, signature, hparams
        self._unused, self._told = set(state["unused"]), set(state["told"])
        self._probe_wanted, self.calls, self._notes = not state["probed"], state["calls"], {}

    def __repr__(self) -> str:
        """Return the parts and how far it is."""
        shapes = {key: tuple(value.shape) for key, value in self.hparams.items()}
        return f"Live({type(self.model).__name__}, hparams={shapes}, {self.algorithm!r}, calls={self.calls})"

    def _check_batch(self, loss: str, name: str, batch: Any) -> None:
        function = self._written[loss]
        if batch is not None and count_arguments(function, (1,)) is None:
            raise InputError(
                passed=f"{name}= of type {type(batch).__name__}, which {loss}() does not take",
                expected=f"no {name}, or a loss {loss}(batch)",
                do=f"give {loss} an argument, or call backward() without {name}; the first batch of backward goes to "
                "inner, the second to outer",
            )
        if batch is None and count_arguments(function, (0, 1)) == 1:
            raise InputError(
                passed=f"backward without {name}, which {loss}(batch) needs",
                expected=f"the batch that {loss} is to be evaluated on",
                do=f"call backward({name}=...), or let {loss} take no argument",
            )

    def _follow(self, problem: Problem) -> None:
        """Look at the model's and the hyperparameters' tensors as they are now; begin (anew) where they are others."""
        hparams = hyperparameters(self._given)
        params = theta(self.model, hparams)
        signature = _signature(params, hparams)
        if self._state is not None and signature == self._signature:
            self.hparams = hparams
            return
        check_apart(params, hparams)
        params = tree.check_tree("the model's parameters that require grad", tree.detached(params))
        tree.check_same_kind(params, hparams)
        unused = self._find_unused(problem, params, hparams)
        params = {key: value for key, value in params.items() if key not in unused}
        notes = {}
        if self._probe_wanted:
            order = self.algorithm.order
            found = look(problem, params, hparams, functions=self._written, live=True, curvature=order > 1)
            notes, self.probe_cost = found.notes | _leftover(hparams), found.cost
        if self._state is not None:
            notes["restart"] = (
                f"{_changed(self._signature, signature)} since the last hypergradient: {type(self.algorithm).__name__} "
                "begins anew, without what it remembered of the tensors before"
            )
        self._state = self.algorithm.init(problem, params, tree.detached(hparams))
        self._signature, self._unused, self.hparams = signature, unused, hparams
        self._probe_wanted, self._notes = False, {**self._notes, **notes}

    def _params(self) -> Tree:
        live = theta(self.model, self.hparams)
        return {key: value.detach() for key, value in live.items() if key not in self._unused}

    def _find_unused(self, problem: Problem, params: Tree, hparams: Tree) -> set[str]:
        """Leave parameters that the training loss does not use out of θ, with a warning."""
        try:
            problem.check_reach(params, hparams)
        except UnreachedError as error:
            if len(error.names) == len(params):
                raise
            text = f"the training loss does not use the model's parameters {error.names}; they are left out of params"
            warnings.warn(ReachWarning(text), stacklevel=4)
            return set(error.names)
        return set()


def _signature(params: Tree, hparams: Tree) -> Signature:
    named = {"params": params, "hparams": hparams}
    return {
        what: {key: [list(value.shape), str(value.dtype), str(value.device)] for key, value in tensors.items()}
        for what, tensors in named.items()
    }


def _leftover(hparams: Tree) -> dict[str, str]:
    """Say which hyperparameters have a ``.grad`` before the first hypergradient."""
    names = [key for key, value in hparams.items() if value.grad is not None and bool(tree.norm({"": value.grad}))]
    text = (
        f"hparams {names} have a .grad already, to which this hypergradient is added: the backward() of a training "
        "loss fills it with ∂g/∂λ, which is no part of the hypergradient. Call zero_grad() of the outer optimizer "
        "right before backward(); where the sum is meant, pass probe=False"
    )
    return {"leftover": text} if names else {}


def _without_devices(signature: Mapping[str, Mapping[str, list[Any]]]) -> Signature:
    return {what: {key: entry[:2] for key, entry in named.items()} for what, named in signature.items()}


def _changed(before: Signature, after: Signature) -> str:
    """Return in words which tensors are others."""
    words = []
    for what, now in after.items():
        old = before[what]
        for verb, names in {
            "came in": [key for key in now if key not in old],
            "went out": [key for key in old if key not in now],
            "changed shape, dtype or device": [key for key in now if key in old and now[key] != old[key]],
        }.items():
            words += [f"{what} {names} {verb}"] if names else []
    return ", ".join(words)
