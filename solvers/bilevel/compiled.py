"""Compiled hypergradients: run, compared with eager products at their first use, and dropped where they are wrong."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from hypergrad import guards, tree
from hypergrad.accumulated import Batches
from hypergrad.algorithm import Hypergradient
from hypergrad.errors import UnsupportedError
from hypergrad.linear import LinearResult, LinearSolver, Memory, Operator, Status
from hypergrad.problem import Problem
from hypergrad.shortage import is_shortage
from hypergrad.solvers.bilevel.compiled_probe import Place, Reference, drew, flat
from hypergrad.solvers.bilevel.compiler import Compiled, Compiler
from hypergrad.solvers.bilevel.hypergradient_graph import CGGraph, Losses, NeumannGraph, graph
from hypergrad.solvers.linear.cg import CG
from hypergrad.solvers.linear.neumann import Neumann, grows, status_of
from hypergrad.solvers.linear.preconditioners import PenaltyDiagonal
from hypergrad.solvers.linear.spectrum import top_curvature
from hypergrad.tree import Layout, Tree

WHOLE, BLOCK = 20, 10
"""Most products in one graph, and products in each block of a longer solve."""
Reached = Callable[[frozenset[str]], None]


@final
@dataclass(frozen=True)
class Solved:
    """A compiled answer.

    Attributes:
        grads: dF/dλ.
        value: f.
        scales: f, |⟨q, ∇_θ g⟩|, ‖∇_θ g‖ and ‖∂f/∂θ‖.
        result: the linear solve; its value is flat where the solver starts from it, and else a tree.
        linearised: inner gradients made.
        mixed: 1 where the inner problem uses a hyperparameter, else 0.
    """

    grads: Tree
    value: Tensor
    scales: tuple[float, float, float, float]
    result: LinearResult
    linearised: int
    mixed: int


def check_compiled(linear: LinearSolver) -> None:
    """Raise :class:`~hypergrad.errors.UnsupportedError` for a linear solver that is not compiled."""
    known = isinstance(linear, Neumann) or (
        isinstance(linear, CG) and isinstance(linear.preconditioner, PenaltyDiagonal | None)
    )
    if not known:
        raise UnsupportedError(
            passed=f"Implicit({linear!r}, compile=...)",
            expected="hypergrad.Neumann, or hypergrad.CG with the preconditioner PenaltyDiagonal or None",
            do="use one of these, or leave compile out",
        )


def check_problem(problem: Problem) -> None:
    """Raise :class:`~hypergrad.errors.UnsupportedError` for a problem that is not compiled."""
    if problem.root or problem.saddle:
        raise UnsupportedError(
            passed=f"{'a root or fixed point' if problem.root else 'a problem with constraints'} with compile=",
            expected="an inner objective without constraints",
            do="leave compile out",
        )


def excused(found: Hypergradient, algorithm: str, program: Program) -> Hypergradient:
    """Return an eager hypergradient whose report says why it was not compiled, if there is a lasting reason."""
    notes = dict(found.report.notes)
    if program.refused is not None:
        notes["compile"] = (
            "this hypergradient is computed eagerly, and so are those to come of this problem: compiled, "
            f"{program.refused}; leave compile out, or write the objectives so that torch.compile takes them whole "
            "(fullgraph=True) with a C++ compiler at hand"
        )
    return dataclasses.replace(found, report=dataclasses.replace(found.report, algorithm=algorithm, notes=notes))


class Program:
    """The hypergradient of one problem, compiled; it lives as long as the problem.

    Attributes:
        refused: why it is not used (any more), or ``None``.
        doubt: why it is not to be used, if the eager hypergradient at the last place was found without an error.
        random: whether the objectives draw random numbers, as far as is known.
    """

    def __init__(self, problem: Problem, linear: Neumann | CG, settings: Compiled, device: torch.device) -> None:
        """Compile nothing yet."""
        self.settings, self.device = settings, device
        self._losses, self._compiler = Losses.of(problem.parts()), Compiler(settings.options(device))
        self._method = NeumannGraph() if isinstance(linear, Neumann) else CGGraph()
        self._count = linear.terms if isinstance(linear, Neumann) else linear.max_steps
        self._graphs: dict[tuple[int, bool], Any] = {}
        self._numbers: dict[str, tuple[float, Tensor]] = {}
        self._probes, self._mixed, self._reach_known = settings.probes, 1, False
        self.refused: str | None = None
        self.doubt: str | None = None
        self.random = True

    @classmethod
    def of(cls, problem: Problem, linear: LinearSolver, settings: Compiled, device: torch.device) -> Program:
        """Return the program that the problem keeps for a solver of this form; tolerances and steps may differ."""
        assert isinstance(linear, Neumann | CG)
        count = linear.terms if isinstance(linear, Neumann) else linear.max_steps
        key = type(linear), count, settings, device
        if key not in problem.memo:
            problem.memo[key] = cls(problem, linear, settings, device)
        found: Program = problem.memo[key]
        return found

    def pinned(self, *, training: bool) -> AbstractContextManager[None]:
        """Return a block that puts random numbers back, where any may be drawn."""
        return guards.pinned_rng(self.device) if training or self.random else nullcontext()

    def solve(self, place: Place, linear: LinearSolver, damping: float, reached: Reached | None) -> Solved | None:
        """Return the hypergradient, or ``None`` where it has to be found eagerly: for good if there is a reason.

        Args:
            place: where.
            linear: the solver with its tolerances.
            damping: added to the Hessian.
            reached: called with the hyperparameters that an objective uses, at the first hypergradient of a run.
        """
        assert isinstance(linear, Neumann | CG)
        if isinstance(place.outer_batch, Batches):
            raise UnsupportedError(
                passed="several outer batches as one (Accumulated, Batches) with compile=",
                expected="one outer batch",
                do="leave compile out, or give the outer objective one batch",
            )
        reference = None
        draws = guards.Draws.capture(self.device, torch_only=True)
        if self._probes or (reached is not None and not self._reach_known):
            reference = Reference(place, damping, draws)
            self._mixed = int(bool(reference.stationarity.reached))
            if reached is not None:
                reached(reference.reached)
                self._reach_known = True
        ready, before = self._prepared(place, linear, damping), self._compiler.count
        try:
            answer = self._computed(place, ready, first=reference is not None)
        except Exception as error:
            if is_shortage(error):
                raise
            self.refused = f"it failed ({_said(error)})"
            draws.restore()
            return None
        solved = self._read(answer, ready, linear)
        if self._compiler.count > before:
            self._probes = self.settings.probes
        if solved is not None and self._probes:
            self.refused = self._examined(answer, place, damping, draws, reference)
            self._probes -= 1
        if self._compiler.count > before or solved is None:
            draws.restore()  # there may be no pinned block around, and eager code may follow
        return None if self.refused is not None else solved

    def _examined(
        self, answer: Any, place: Place, damping: float, draws: guards.Draws, reference: Reference | None
    ) -> str | None:
        """Return what is wrong with an answer, compared with eager products at the same point."""
        self.random = drew(draws, self.device)
        if self.random and self._count > WHOLE:
            return f"it draws random numbers and makes more than {WHOLE} products, in graphs that would draw their own"
        reference = reference or Reference(place, damping, draws)
        return reference.compare(answer, self.settings.limit(answer["value"].dtype))

    def _computed(self, place: Place, ready: _Ready, *, first: bool) -> Any:
        """Run the compiled code."""
        params, hparams = tree.detached(place.params), tree.detached(place.hparams)
        ready.started = int(place.start is not None)
        layout = None if place.start is None and ready.vector is None else Layout.of(params)
        start, vector = (None if v is None or layout is None else layout.views(v) for v in (place.start, ready.vector))
        if self.settings.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        inputs = params, hparams, place.batch, place.outer_batch, ready.numbers, start, vector
        with torch.no_grad(), _quiet() if first else nullcontext():
            if self._count <= WHOLE:
                answer = self._graph(self._count, last=True)(*inputs, None)
            else:
                answer = self._in_blocks(inputs)
        if self.settings.cuda_graphs:  # the next replay writes where this answer lies
            answer = tree_map_only(Tensor, torch.clone, answer)
        return answer

    def _in_blocks(self, inputs: tuple[Any, ...]) -> Any:
        carry, left = None, self._count
        while left and not (carry is not None and "bent" in carry and bool(_over(carry))):
            block = min(BLOCK, left)
            carry = self._graph(block, last=False)(*inputs, carry)
            left -= block
        return self._graph(0, last=True)(*inputs, carry)

    def _graph(self, count: int, *, last: bool) -> Any:
        found = self._graphs.get((count, last))
        if found is None:
            found = self._compiler(graph(self._losses, self._method, count, last=last))
            self._graphs[count, last] = found
        return found

    def _prepared(self, place: Place, linear: Neumann | CG, damping: float) -> _Ready:
        """Return the solver's numbers, from eager products where it has to estimate them first."""
        numbers = self._constants(place, damping=damping) if damping else {}
        if isinstance(linear, Neumann):
            if linear.step is not None:
                return _Ready(numbers | self._constants(place, step=linear.step), memory=place.memory)
            vector = place.memory.get("top_vector")
            if vector is not None:
                return _Ready(numbers, vector, products=1, linearised=1)
            operator = _operator(place, damping)
            curvature, vector = top_curvature(operator, None, linear.power_steps)
            numbers |= self._constants(place, step=1 / curvature if curvature > 0 else 1.0)
            return _Ready(numbers, None, {"top_vector": vector}, operator.products, linearised=2)
        numbers |= self._constants(place, rtol=linear.rtol, atol=linear.atol)
        preconditioner = linear.preconditioner
        if preconditioner is None or (place.problem.penalty is None and not damping):
            return _Ready(numbers, memory=place.memory)
        assert isinstance(preconditioner, PenaltyDiagonal)
        age, known = place.memory.get("solves", 0), place.memory.get("mean_curvature")
        ready = _Ready(numbers, memory={"solves": age + 1, "mean_curvature": known})
        if known is None or age % preconditioner.refresh == 0:
            operator = _operator(place, damping)
            memory = preconditioner.build(operator, place.memory)[1]
            ready = _Ready(numbers, None, memory, operator.products, linearised=2)
        ready.numbers["curvature"] = ready.memory["mean_curvature"]
        return ready

    def _constants(self, place: Place, **values: float) -> Tree:
        """Return numbers as tensors, made anew where they changed: constants would be compiled in."""
        for name, value in values.items():
            if self._numbers.get(name, (None, None))[0] != value:
                like = next(iter(place.params.values()))
                self._numbers[name] = value, torch.tensor(value, dtype=like.dtype, device=like.device)
        return {name: self._numbers[name][1] for name in values}

    def _read(self, answer: Any, ready: _Ready, linear: Neumann | CG) -> Solved | None:
        """Return what the code found, ``None`` for what only the eager path can name; one look at the device."""
        numbers: list[float] = answer["numbers"].tolist()
        loss, slope, gap, _, _, *told = numbers
        self.doubt = None
        if not math.isfinite(sum(numbers)):
            self.doubt = "it met NaN or infinity where the eager one does not"
        if self.doubt is not None or not told[0]:
            return None
        value: Any = answer["solution"]
        memory = ready.memory
        if isinstance(linear, Neumann):
            status, residual, bent, products = _neumann_told(told, linear.terms, answer["numbers"].dtype)
            if status is Status.DIVERGED:
                self.doubt = "it diverged where the eager one does not"
                return None
            if answer["vector"] is not None:
                memory = {"top_vector": flat(answer["vector"])}
        else:
            status, residual, bent, products = _cg_told(told)
            products += ready.started
            value = flat(value)
        result = LinearResult(value, status, residual, products + ready.products, bent, memory)
        scales = loss, slope, gap, told[0]
        return Solved(answer["grads"], answer["value"], scales, result, ready.linearised, self._mixed)


class _Ready:
    """What a solve begins with."""

    def __init__(
        self,
        numbers: Tree,
        vector: Tensor | None = None,
        memory: Memory | None = None,
        products: int = 0,
        linearised: int = 1,
    ) -> None:
        self.numbers, self.vector, self.memory = numbers, vector, memory or {}
        self.products, self.linearised, self.started = products, linearised, 0


def _operator(place: Place, damping: float) -> Operator:
    with guards.again(guards.Draws.capture(tree.device_of(place.params), torch_only=True)):
        return Operator.of(place.problem.linearise(place.params, place.hparams, place.batch), damping)


def _over(carry: dict[str, Tensor]) -> Tensor:
    return carry["bent"] | (carry["length"] <= carry["target"]) | ~torch.isfinite(carry["length"])


def _neumann_told(told: list[float], terms: int, dtype: torch.dtype) -> tuple[Status, float, bool, int]:
    size, total, *last = told
    lengths = [size, *last[-terms:]] if terms else [size]
    noise = 100 * torch.finfo(dtype).eps * total
    return status_of(lengths), lengths[-1] / size, grows(lengths, noise, symmetric=True), terms


def _cg_told(told: list[float]) -> tuple[Status, float, bool, int]:
    size, length, least, made, target, bent = told
    stopped = Status.NEGATIVE_CURVATURE if bent else Status.MAX_STEPS
    return Status.CONVERGED if length <= target else stopped, least / size, bool(bent), int(made)


def _quiet() -> AbstractContextManager[Any]:
    """Return a block without the compiler's own warnings."""
    return warnings.catch_warnings(action="ignore")


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
