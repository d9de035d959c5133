"""Whether the steps of an optimizer can be followed: some steps of small tensors, followed and plain."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hypergrad import tree
from hypergrad.errors import HypergradError
from hypergrad.solvers.inner.follow import refusal
from hypergrad.solvers.inner.torch_differences import TINY, Differences
from hypergrad.solvers.inner.torch_groups import Optimizer, Part, stand_in
from hypergrad.solvers.inner.torch_state import State, kind_of, same_kinds
from hypergrad.solvers.inner.torch_step import Options, followed_step, plain_step
from hypergrad.tree import Tree

STEPS = 12
LARGEST = 6


@final
@dataclass(frozen=True)
class Schema:
    """What the probe found out.

    Attributes:
        live: (part, dimensions, state name) of state entries that depend on parameters, gradients or settings.
        names: (part, dimensions) to the names of all state entries.
        parts: the parts.
    """

    live: frozenset[tuple[int, int, str]]
    names: dict[tuple[int, int], frozenset[str]]
    parts: tuple[Part, ...]

    def live_of(self, params: Tree, state: State) -> set[str]:
        """Return ``parameter/name`` of all live entries of a state.

        Raises:
            UnsupportedError: an entry that was not there, or not live, in the steps of the probe.
        """
        found = set()
        for place, part in enumerate(self.parts):
            for key in part.keys:
                kind = (place, params[key].dim())
                live = {name for name in state[key] if (*kind, name) in self.live}
                found |= {f"{key}/{name}" for name in live}
                late = [n for n, v in state[key].items() if n not in live and getattr(v, "requires_grad", False)]
                late += sorted(set(state[key]) - self.names[kind])
                if late:
                    raise refusal(f"an optimizer whose state {late} came in after {STEPS} steps")
        return found


def probe(optimizer: Optimizer, parts: list[Part], options: Options, params: Tree) -> Schema:
    """Return which state entries are live, after comparing followed steps with plain ones and with differences.

    Args:
        optimizer: whose steps.
        parts: which parameters share which settings.
        options: of each part, with tensors in the place of tuned settings.
        params: θ; only the first tensor of each number of dimensions in each part is used, cut to a few entries.

    Raises:
        UnsupportedError: an optimizer that cannot be followed.
    """
    try:
        with _own_randomness(tree.device_of(params)):
            return _Probe(optimizer, parts, options, params).run()
    except HypergradError:
        raise
    except Exception as error:  # what a foreign step() raises is not ours to choose
        raise refusal(f"{_title(optimizer)}, whose step() raised {type(error).__name__}: {error}") from error


class _Probe:
    def __init__(self, optimizer: Optimizer, parts: list[Part], options: Options, params: Tree) -> None:
        chosen: dict[tuple[int, int], str] = {}
        for place, part in enumerate(parts):
            for key in part.keys:
                chosen.setdefault((place, params[key].dim()), key)
        self.places = {key: place for place, key in chosen.items()}
        self.parts = tuple(parts)
        self.small = [Part(p.group, tuple(k for k in p.keys if k in self.places), p.settings) for p in parts]
        self.optimizer, self.options = optimizer, options
        self.numbers = _each(lambda value: float(value.detach()), options)
        cut = {key: tuple(slice(LARGEST) for _ in params[key].shape) for key in self.places}
        self.params = {key: params[key].detach()[cut[key]].clone() for key in self.places}
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, like: Tree) -> Tree:
        return {key: torch.randn(v.shape, generator=self.generator).to(v.device, v.dtype) for key, v in like.items()}

    def run(self) -> Schema:
        live, _ = self._tracked(self.numbers)
        self._compare(self.numbers, live)
        live, reached = self._tracked(self.options)
        names: dict[tuple[int, int], frozenset[str]] = {place: frozenset() for place in self.places.values()}
        for key, entries in reached.items():
            names[self.places[key]] = frozenset(entries)
        self._differences(live)
        found = {(*self.places[key], name) for key, _, name in (entry.rpartition("/") for entry in live)}
        return Schema(frozenset(found), names, self.parts)

    def _tracked(self, options: Options) -> tuple[set[str], State]:
        """Return which state entries depend on parameters, gradients and settings after some steps, and the state."""
        self.generator.manual_seed(1)
        params, live = self.params, set[str]()
        state: State = {}
        for step in range(STEPS):
            torch.manual_seed(step)
            held: State = {
                key: {name: _leaf(value) if f"{key}/{name}" in live else value for name, value in entries.items()}
                for key, entries in state.items()
            }
            point, gradient = tree.leaves(params), tree.leaves(self.draw(params))
            leaves = _each(_leaf, options)
            params, state = followed_step(self.optimizer, self.small, leaves, point, gradient, held, live, graph=True)
            live = {
                f"{key}/{name}"
                for key, entries in state.items()
                for name, value in entries.items()
                if isinstance(value, Tensor) and value.requires_grad
            }
        return live, state

    def _compare(self, options: Options, live: set[str]) -> None:
        """Refuse an optimizer whose followed steps do not have the bits of its own, made by one object all along."""
        self.generator.manual_seed(2)
        tensors = tree.cloned(self.params)
        groups = [
            {"params": [tensors[key] for key in part.keys], **chosen}
            for part, chosen in zip(self.small, options, strict=True)
        ]
        own = stand_in(self.optimizer, groups, {})
        params = self.params
        state: State = {}
        for step in range(STEPS):
            gradient = self.draw(params)
            for key, tensor in tensors.items():
                tensor.grad = gradient[key].clone()
            torch.manual_seed(step)
            with torch.no_grad():
                type(own).step(own)
            torch.manual_seed(step)
            params, state = followed_step(
                self.optimizer, self.small, options, params, gradient, state, live, graph=False
            )
            for key, tensor in tensors.items():
                self._same(tensor, own.state.get(tensor, {}), params[key], state[key], step + 1)

    def _same(self, tensor: Tensor, held: Any, param: Tensor, state: dict[str, Any], step: int) -> None:
        """Refuse an optimizer one of whose parameters or state entries is another when it is followed."""
        for name, value in held.items():
            kind_of(name, value)
        if not same_kinds(held, state):
            raise refusal(f"{_title(self.optimizer)}, whose state holds numbers that were taken out of torch")
        if not all(_same(a, b) for a, b in [(tensor, param), *((held[name], state[name]) for name in held)]):
            raise refusal(
                f"{_title(self.optimizer)}, whose step {step} has other values when made out of place, or depends on "
                "more than parameters, gradients and the state of each parameter"
            )

    def _differences(self, live: set[str]) -> None:
        """Refuse an optimizer whose followed derivatives are not those of its own step."""
        with _double_precision():
            self._check_differences(live)

    def _check_differences(self, live: set[str]) -> None:
        differences = Differences(self.optimizer, self.small, self.options, live, self.generator)
        params: Tree = {key: value.double() for key, value in self.params.items()}
        state: State = {}
        numbers = _each(lambda value: float(value.detach()) or TINY, self.options)
        for step in range(STEPS):
            gradient = self.draw(params)
            if step in (0, STEPS - 1):
                found = differences.disagreement(params, gradient, state, step)
                if found is not None:
                    raise refusal(f"{_title(self.optimizer)}, whose step {step + 1} cannot be followed: {found}")
            torch.manual_seed(step)
            params, state = plain_step(self.optimizer, self.small, numbers, params, gradient, state)


def _title(optimizer: Optimizer) -> str:
    return f"TorchRule with {type(optimizer).__name__}"


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, Tensor):
        return mine.shape == theirs.shape and torch.equal(mine.detach().nan_to_num(), theirs.detach().nan_to_num())
    return bool(mine == theirs)


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


def _each(function: Callable[[Tensor], Any], options: Options) -> Options:
    """Return options with a function applied to the tensors that stand for tuned settings."""

    def applied(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(applied(one) for one in value)
        return function(value) if isinstance(value, Tensor) else value

    return [{name: applied(value) for name, value in chosen.items()} for chosen in options]


@contextlib.contextmanager
def _double_precision() -> Iterator[None]:
    """A block in which optimizers keep their step counts and other scalars in double precision, too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """A block whose random numbers are nobody else's."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
