"""A look at the user's functions before they are trusted: do they repeat, do gradients tell all, do curvatures fit."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules
from torch.utils._pytree import tree_leaves

from hypergrad import evaluation, guards, outside, tree
from hypergrad.algorithm import Cost
from hypergrad.errors import CutError
from hypergrad.frame import refuse_wrappers
from hypergrad.objective import UserFunction
from hypergrad.problem import Problem
from hypergrad.tree import Tree

Values = dict[str, Tensor]
UNEQUAL = "two evaluations with the same tensors, batch and random numbers differ:"
REMEDY = (
    "Draw random numbers from the global generators of torch, Python or numpy, which are held; draw batches outside "
    "the losses; and let the losses change nothing that they read"
)


@final
@dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
        notes: remarks under the kinds of warning they deserve, as in a :class:`~hypergrad.Report`.
        cost: passes made.
    """

    notes: dict[str, str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)


def probe(
    problem: Problem,
    params: Tree,
    hparams: Tree,
    *,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    live: bool = False,
    curvature: bool = False,
) -> Probe:
    """Evaluate every function of the problem twice at one point, and say what does not repeat and why.

    Batches, random numbers, tensors and ``.grad`` are as before afterwards, also after an exception.

    Args:
        problem: the two objectives.
        params: θ.
        hparams: λ.
        functions: the functions that the user wrote, by the names of the problem's, where those only wrap them.
        live: whether the functions read ``hparams`` themselves. Then each one that a function has no gradient for is
            moved a little and moved back, bit for bit, to see whether the value depends on it.
        curvature: whether products with second derivatives through custom autograd functions are compared with
            differences of gradients.

    Cost: two evaluations with gradients of each function; with ``live`` one evaluation for each function and
    hyperparameter without a gradient; with ``curvature``, where there are custom autograd functions, four inner
    gradients, one with its graph, and a product.

    Raises:
        CutError: a hyperparameter that moves a loss without a gradient.
        WrappedModuleError: a wrapped module that is called inside a function.
    """
    look = _Look(problem, params, hparams, functions or {}, guards.Draws.capture(tree.device_of(params)))
    draws = guards.Draws.capture(look.draws.device, problem.inner_data, problem.outer_data)
    notes: dict[str, str] = {}
    faults: list[str] = []
    with guards.again(draws):
        look.batches = {"outer": problem.draw_outer(), "inner": problem.draw_inner()}
        for name, function in problem.parts().items():
            fault = look.repeats(name, function)
            if fault:
                faults.append(fault)
            elif live:
                look.check_cuts(name, function)
        if curvature and look.custom and not problem.saddle and not faults:
            notes |= look.curvature()
    if faults:
        notes["repeatability"] = f"{UNEQUAL} {'; '.join(faults)}. {REMEDY}"
    return Probe(notes, look.cost)


@dataclass
class _Look:
    """One point, seen again and again with the same batches and random numbers."""

    problem: Problem
    params: Tree
    hparams: Tree
    written: Mapping[str, Callable[..., Any]]
    draws: guards.Draws
    batches: dict[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    first: dict[str, Values] = field(default_factory=dict)
    custom: set[str] = field(default_factory=set)

    def values(self, name: str, function: UserFunction, *, slopes: bool = True, params: Tree | None = None) -> Values:
        """Return the function's value and its slopes, those that exist."""
        device = self.draws.device
        params, hparams = tree.leaves(self.params if params is None else params), tree.attached(self.hparams)
        batch = self.batches["outer" if name == "outer" else "inner"] if name != "penalty" else None
        inputs = {f"params[{k!r}]": v for k, v in params.items()} | {f"hparams[{k!r}]": v for k, v in hparams.items()}
        with guards.Pinned(self.draws), guards.second_order(device):
            if name == "condition":
                outputs = function.tree(params, hparams, batch)
            else:
                outputs = {"the value": function.scalar(params, hparams, batch, differentiable=False)}
            found = {key: value.detach().clone() for key, value in outputs.items()}
            live = [value for value in outputs.values() if value.requires_grad]
            if not slopes or not live:
                return found
            if name == "inner":
                self.custom |= _custom_functions(live)
            ones = [torch.ones_like(value) for value in live]
            pulled = torch.autograd.grad(live, list(inputs.values()), ones, allow_unused=True)
        self.count(name, gradients=1)
        found |= {
            f"the slope in {key}": p.detach().to_dense() for key, p in zip(inputs, pulled, strict=True) if p is not None
        }
        return found

    def count(self, name: str, gradients: int = 0, values: int = 0, products: int = 0) -> None:
        outer = name == "outer"
        self.cost += Cost(
            inner_gradients=0 if outer else gradients + values,
            products=products,
            outer_gradients=gradients if outer else 0,
            outer_values=values if outer else 0,
        )

    def repeats(self, name: str, function: UserFunction) -> str:
        """Return what is to be said about a function that gives something else the second time."""
        written = [self.written.get(name, function.function)]
        before = outside.snapshot(written)
        with _watched(lambda module, _: refuse_wrappers(name, {"": module}), before=True):
            first = self.first[name] = self.values(name, function)
        second = self.values(name, function)
        differing = _differing(first, second)
        if not differing:
            return ""
        after = outside.snapshot(written)
        culprits = outside.changes(before, after)
        culprits = [f"meanwhile changed {', '.join(culprits[:5])}"] if culprits else []
        culprits += self.first_module(name, function, written)
        closed = outside.unreadable(after)
        culprits += [f"it holds {', '.join(closed)}"] if closed else []
        culprits += self.kernels(name, function)
        numbers = [float(torch.linalg.vector_norm(found[differing[0]])) for found in (first, second)]
        shown = f"{numbers[0]:.9g} and {numbers[1]:.9g}" if numbers[0] != numbers[1] else "other entries"
        text = "; ".join(culprits) or "it may read a clock, a file or a counter"
        return f"{name} ({differing[0]}: {shown}; {text})"

    def first_module(self, name: str, function: UserFunction, written: Iterable[Callable[..., Any]]) -> list[str]:
        """Return the first module whose output differs between two evaluations, in words."""
        names = {id(module): path for path, module in outside.modules(written).items()}
        runs: list[list[tuple[str, Tensor, Tensor]]] = []
        for _ in range(2):
            calls: list[tuple[str, Tensor, Tensor]] = []

            def note(module: nn.Module, inputs: Any, output: Any, calls: Any = calls) -> None:
                kind = type(module)
                if not kind.__module__.startswith("hypergrad."):
                    calls.append((f"{names.get(id(module), '')!r} ({kind.__name__})", _digest(inputs), _digest(output)))

            with _watched(note, before=False):
                self.values(name, function, slopes=False)
            self.count(name, values=1)
            runs.append(calls)
        for (where, given, out), (other, given_again, out_again) in zip(*runs, strict=False):
            if where != other:
                return [f"the modules called are not the same: {where}, then {other}"]
            if not _same(given, given_again):
                return [f"the input of {where} differs already"]
            if not _same(out, out_again):
                return [f"the first module whose output differs is {where}"]
        return []

    def kernels(self, name: str, function: UserFunction) -> list[str]:
        """Return the kernels that torch says are not deterministic."""
        mode = torch.get_deterministic_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                torch.set_deterministic_debug_mode("warn")
                self.values(name, function)
            finally:
                torch.set_deterministic_debug_mode(mode)
        texts = [str(entry.message) for entry in caught]
        found = {text.split(" ")[0] for text in texts if "does not have a deterministic implementation" in text}
        return [f"it runs kernels that torch calls non-deterministic: {', '.join(sorted(found))}"] if found else []

    def check_cuts(self, name: str, function: UserFunction) -> None:
        """Raise :class:`~hypergrad.errors.CutError` for hyperparameters that move the value without a gradient."""
        first = self.first[name]
        values = {key: value for key, value in first.items() if not key.startswith("the slope")}
        lost = []
        for key, tensor in self.hparams.items():
            if f"the slope in hparams[{key!r}]" in first:
                continue
            for sign in (1, -1):
                try:
                    with _moved(tensor, sign):
                        again = self.values(name, function, slopes=False)
                except Exception:  # out of the hyperparameter's range, perhaps
                    continue
                self.count(name, values=1)
                if _differing(values, again):
                    lost.append(key)
                break
        if lost:
            raise CutError(
                lost,
                passed=f"hparams {lost}, which change the value of {name} but have no gradient there",
                expected="hyperparameters that enter a loss through torch operations, so that their gradient tells "
                "what they do",
                do=f"look for .item(), float(), .detach(), .data, .numpy() and torch.no_grad() in {name}; where the "
                "cut is meant, pass probe=False",
            )

    def curvature(self) -> dict[str, str]:
        """Compare the curvature through custom autograd functions with differences of gradients."""
        batch = self.batches["inner"]
        with guards.Pinned(self.draws):
            point = self.problem.linearise(self.params, self.hparams, batch)
            v = torch.randn(point.layout.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            v = v.to(point.layout.zeros())
            product, mixed = point.both(v)
        parts = [product, *(mixed[key].reshape(-1) for key in mixed)]
        step = torch.finfo(v.dtype).eps ** (1 / 3) * (1 + float(tree.norm(self.params))) / float(v.norm())
        rough, fine = (self.difference(point.layout.views(v), length) for length in (2 * step, step))
        predicted = torch.cat(parts)
        self.count("inner", gradients=1, products=1)
        gap, doubt = float((predicted - fine).norm()), float((rough - fine).norm())
        if gap <= max(0.05 * float(fine.norm()), 3 * doubt):
            return {}
        names, off = ", ".join(sorted(self.custom)), gap / float(fine.norm())
        return {
            "custom": f"second derivatives through {names} are {off:.1%} off differences of gradients: the backward of "
            "a custom autograd function must itself be differentiable; write it in torch operations on "
            "ctx.saved_tensors, without .detach(), .data, .numpy() and torch.no_grad()"
        }

    def difference(self, direction: Tree, length: float) -> Tensor:
        """Return the central difference of the inner slopes in params and hparams along a direction of params."""
        ends = []
        for sign in (1, -1):
            there = {key: value + sign * length * direction[key] for key, value in self.params.items()}
            with guards.Pinned(self.draws), torch.enable_grad():
                params, hparams = tree.leaves(there), tree.attached(self.hparams)
                with guards.second_order(self.draws.device):
                    value = self.problem.inner_value(params, hparams, self.batches["inner"])
                inputs = [*params.values(), *hparams.values()]
                slopes = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
            self.count("inner", gradients=1)
            ends.append(torch.cat([slope.to_dense().reshape(-1) for slope in slopes]))
        difference: Tensor = (ends[0] - ends[1]) / (2 * length)
        return difference


@contextmanager
def _moved(tensor: Tensor, sign: int) -> Iterator[None]:
    """Move a tensor in place a little, each entry by another amount, and put it back bit for bit."""
    kept = tensor.detach().clone()
    shift = torch.linspace(0.005, 0.015, max(tensor.numel(), 1), dtype=tensor.dtype, device=tensor.device)
    try:
        tensor.data.add_(sign * shift[: tensor.numel()].reshape(tensor.shape) * (1 + kept.abs()))
        yield
    finally:
        tensor.data.copy_(kept)


@contextmanager
def _watched(note: Callable[..., None], *, before: bool) -> Iterator[None]:
    """Call ``note`` at every call of a module by this thread."""
    thread = threading.get_ident()

    def hook(*call: Any) -> None:
        if threading.get_ident() == thread:
            note(*call)

    register: Any = all_modules.register_module_forward_pre_hook if before else all_modules.register_module_forward_hook
    handle = register(hook)
    try:
        with evaluation.unseen_hooks:
            yield
    finally:
        handle.remove()


def _custom_functions(outputs: list[Tensor]) -> set[str]:
    """Return the names of the autograd functions in a graph that are written in Python and are not torch's own."""
    stack: list[Any] = [output.grad_fn for output in outputs]
    seen, found = set(stack), set()
    while stack:
        node = stack.pop()
        forward = getattr(type(node), "_forward_cls", None)
        if forward is not None and not forward.__module__.startswith(("torch.", "hypergrad.")):
            found.add(forward.__name__)
        fresh = [child for child, _ in node.next_functions if child is not None and child not in seen]
        seen.update(fresh)
        stack += fresh
    return found


def _digest(value: Any) -> Tensor:
    """Return two numbers that tell most tensors, nested in anything, apart."""
    leaves = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    flat = [leaf.detach().to(torch.float64).reshape(-1) for leaf in leaves if leaf.numel() and not leaf.is_complex()]
    ramps = [(one * torch.linspace(1, 2, one.numel(), dtype=one.dtype, device=one.device)).sum() for one in flat]
    return torch.stack([one.cpu() for one in (*(one.sum() for one in flat), *ramps)]) if flat else torch.zeros(0)


def _same(one: Tensor, other: Tensor, scale: float = 0.0) -> bool:
    """Return whether two tensors agree to rounding."""
    if one.shape != other.shape:
        return False
    if torch.equal(one, other):
        return True
    gap = float(torch.linalg.vector_norm((one - other).nan_to_num()))
    size = max(float(torch.linalg.vector_norm(one.nan_to_num())), scale)
    return torch.equal(one.isnan(), other.isnan()) and gap <= 1e3 * torch.finfo(one.dtype).eps * size


def _differing(first: Values, second: Values) -> list[str]:
    """Return the names of what differs by more than rounding."""
    scale = 0.0
    if "the value" in first:
        scale = 0.1 * abs(float(first["the value"]))
    return [key for key in first if key in second and not _same(first[key], second[key], scale)]
