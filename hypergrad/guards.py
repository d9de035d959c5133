"""What is held still around second derivatives: random numbers, kernels, compiled code and autocast."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from hypergrad import streams
from hypergrad.data import Sampler
from hypergrad.errors import ObjectiveError, WrappedModuleError
from hypergrad.evaluation import whole_graph
from hypergrad.streams import Streams

P = ParamSpec("P")
R = TypeVar("R")

CUDNN_RNN, WEIGHT_NORM = "CudnnRnn", "WeightNormInterface"

_inside = threading.local()


class pinned_rng:  # noqa: N801 - used like a function
    """Restore the random state of torch on the CPU and on ``device``, of Python and of numpy on exit.

    With ``seed`` the block starts from it. Without one it draws the numbers that would have come next, and they come
    again after it. An autocast block around it does not reach inside unless it is let in, since backward passes would
    run under it as well.
    """

    def __init__(self, device: torch.device, seed: int | None = None, *, autocast: bool = False) -> None:
        """Keep the settings."""
        self.device, self.seed, self.autocast = device, seed, autocast
        self._stack: ExitStack | None = None

    def __enter__(self) -> None:
        """Remember, and seed."""
        kind = self.device.type
        on_cpu = kind in ("cpu", "meta")
        self._others, self._numbers = Streams.capture(), torch.get_rng_state()
        shut_out = not self.autocast and kind != "meta" and torch.is_autocast_enabled(kind)
        if shut_out or not on_cpu:
            self._stack = ExitStack()
            if shut_out:
                self._stack.enter_context(torch.autocast(kind, enabled=False))
            if not on_cpu:
                self._stack.enter_context(torch.random.fork_rng(devices=[self.device], device_type=kind))
        if self.seed is not None:
            _seed(self.device, self.seed)

    def __exit__(self, *failure: object) -> None:
        """Put back."""
        if self._stack is not None:
            self._stack.close()
        torch.set_rng_state(self._numbers)
        self._others.restore()


def _seed(device: torch.device, seed: int) -> None:
    """Seed all that is pinned; ``torch.manual_seed`` would seed every other device, too."""
    streams.seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type not in ("cpu", "meta"):
        module = torch.get_device_module(device)
        with module.device(device):
            module.manual_seed(seed)


@dataclass(frozen=True)
class Draws:
    """A point in the stream of random numbers and batches, to come back to.

    Attributes:
        cpu: random state of the CPU.
        accelerator: random state of the device, ``None`` on the CPU.
        others: random states of Python and of numpy, or ``None`` to leave them alone.
        samplers: samplers with their positions.
    """

    device: torch.device
    cpu: Tensor
    accelerator: Tensor | None
    others: Streams | None
    samplers: tuple[tuple[Sampler, dict[str, int]], ...]

    @classmethod
    def capture(cls, device: torch.device, *samplers: Sampler | None, torch_only: bool = False) -> Draws:
        """Return the present point, with ``torch_only`` of torch's numbers alone, which is quicker."""
        accelerator = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        positions = tuple((sampler, sampler.state_dict()) for sampler in samplers if sampler is not None)
        return cls(device, torch.get_rng_state(), accelerator, None if torch_only else Streams.capture(), positions)

    def restore(self) -> None:
        """Go back, so that the same random numbers and batches come again."""
        torch.set_rng_state(self.cpu)
        if self.others is not None:
            self.others.restore()
        if self.accelerator is not None:
            torch.cuda.set_rng_state(self.accelerator, self.device)
        for sampler, position in self.samplers:
            sampler.load_state_dict(position)


class second_order:  # noqa: N801 - used like a function
    """A block whose forward passes record graphs that can be differentiated twice, with gradients enabled.

    Fused attention has no double backward on any device, so the math kernel is used. Functions compiled with
    ``torch.compile`` lose their curvature without a word, so they run eagerly. Autocast is off: products of
    half-precision graphs are wrong by several per cent. Nested blocks cost nothing.

    Args:
        device: where the pass runs.
        repairs: kernels to replace, as :func:`inspect_graph` names them: cuDNN's recurrent ones have no double
            backward, and the one of torch's fused weight norm is silently wrong.
    """

    def __init__(self, device: torch.device, repairs: frozenset[str] = frozenset()) -> None:
        """Keep both."""
        self.device, self.repairs = device, repairs
        self._stack: ExitStack | None = None

    def __enter__(self) -> None:
        """Enter, but for what a block around this one has seen to."""
        self._grad = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        active = getattr(_inside, "active", None)
        if active is not None and active[0] == self.device and self.repairs <= active[1]:
            return
        self._stack = ExitStack()
        try:
            self._stack.callback(setattr, _inside, "active", active)
            _inside.active = (self.device, self.repairs)
            for block in self._blocks():
                self._stack.enter_context(block)
        except BaseException:
            self.__exit__()
            raise

    def _blocks(self) -> Iterator[AbstractContextManager[Any]]:
        kind = self.device.type
        if not whole_graph.inside:
            yield whole_graph
        yield _MathAttention() if kind in ("cpu", "cuda") else sdpa_kernel(SDPBackend.MATH)
        if kind != "meta" and torch.is_autocast_enabled(kind):
            yield torch.autocast(kind, enabled=False)
        if "torch._dynamo" in sys.modules:
            yield torch.compiler.set_stance("force_eager")
        if CUDNN_RNN in self.repairs:
            yield torch.backends.cudnn.flags(enabled=False)
        if WEIGHT_NORM in self.repairs:
            yield _CompositeWeightNorm()

    def __exit__(self, *failure: object) -> None:
        """Leave."""
        torch.set_grad_enabled(self._grad)
        if self._stack is not None:
            self._stack.close()


class _MathAttention:
    """What ``sdpa_kernel(SDPBackend.MATH)`` does on the CPU and on CUDA, at a fraction of its cost."""

    def __enter__(self) -> None:
        cuda = torch.backends.cuda
        self.before = (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
            cuda.math_sdp_enabled(),
        )
        self._enable(flash=False, efficient=False, cudnn=False, math=True)

    def __exit__(self, *failure: object) -> None:
        flash, efficient, cudnn, math = self.before
        self._enable(flash=flash, efficient=efficient, cudnn=cudnn, math=math)

    @staticmethod
    def _enable(*, flash: bool, efficient: bool, cudnn: bool, math: bool) -> None:
        cuda = torch.backends.cuda
        cuda.enable_flash_sdp(flash)
        cuda.enable_mem_efficient_sdp(efficient)
        cuda.enable_cudnn_sdp(cudnn)
        cuda.enable_math_sdp(math)


class _CompositeWeightNorm(TorchFunctionMode):
    """Computes torch's fused weight norm v · g / ‖v‖ from parts whose second derivative is right."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._weight_norm:  # pyright: ignore[reportPrivateImportUsage]
            v, g, *dim = args
            return v * (g / torch.norm_except_dim(v, 2, dim[0] if dim else (kwargs or {}).get("dim", 0)))
        return func(*args, **(kwargs or {}))


class Pinned:
    """A block that starts at a point in the stream of random numbers and batches, and goes back to what was before it.

    Args:
        draws: the point.
        seed: seed of the random numbers instead of the point's own.
    """

    def __init__(self, draws: Draws, seed: int | None = None) -> None:
        """Keep the point."""
        self.draws, self.seed = draws, seed
        self._stack = ExitStack()

    def __enter__(self) -> None:
        """Go to the point."""
        self._stack.enter_context(pinned_rng(self.draws.device))
        self.draws.restore()
        if self.seed is not None:
            _seed(self.draws.device, self.seed)

    def __exit__(self, *failure: object) -> None:
        """Put the random numbers back; the batches stand after those that were drawn."""
        self._stack.close()


@contextmanager
def again(draws: Draws) -> Iterator[None]:
    """A block that sees the random numbers and batches from ``draws`` on, and leaves both where they are now."""
    now = Draws.capture(draws.device, *(sampler for sampler, _ in draws.samplers))
    draws.restore()
    try:
        yield
    finally:
        now.restore()


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that ``torch.compile`` runs eagerly, without importing the compiler where it is not used."""
    disabled: list[Any] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        result: R = disabled[0](*args, **kwargs)
        return result

    return call


@dataclass(frozen=True)
class GraphFacts:
    """What a walk over an autograd graph found.

    Attributes:
        nodes: every node of the graph.
        leaf_ids: ``id`` of every leaf tensor that the graph reaches.
        repairs: recorded kernels that :func:`second_order` has to replace.
    """

    nodes: frozenset[Any]
    leaf_ids: frozenset[int]
    repairs: frozenset[str]

    def reaches(self, tensor: Tensor) -> bool:
        """Return whether the graph depends on ``tensor``."""
        return id(tensor) in self.leaf_ids or (tensor.grad_fn is not None and tensor.grad_fn in self.nodes)


NOTHING = GraphFacts(frozenset(), frozenset(), frozenset())


def inspect_graph(outputs: Iterable[Tensor], inputs: Iterable[Tensor], *, name: str) -> GraphFacts:
    """Walk the graph of ``outputs`` down to ``inputs`` and return what it reaches.

    Raises:
        WrappedModuleError: the graph holds the backward of a compiled function, which has no second derivative.
        ObjectiveError: it holds a custom function whose backward is marked ``once_differentiable``.
    """
    outputs = list(outputs)
    stack = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen: set[Any] = set(stack)
    ends = {tensor.grad_fn for tensor in inputs if tensor.grad_fn is not None}
    leaf_ids = {id(output) for output in outputs if output.grad_fn is None}
    repairs: set[str] = set()
    while stack:
        node = stack.pop()
        if node in ends:
            continue
        look = _look(type(node))
        if look.leaf:
            leaf_ids.add(id(node.variable))  # type: ignore[attr-defined]
            continue
        if look.compiled:
            raise WrappedModuleError(
                passed=f"{name}, whose graph holds the backward of a torch.compile'd function",
                expected="a graph that can be differentiated twice; compiled backwards lose their curvature silently",
                do="evaluate the objective inside the call, so that it runs eagerly, or pass the uncompiled function "
                "(model._orig_mod for a compiled module)",
            )
        if look.once is not None:
            raise _once_differentiable(look.once, name)
        repairs |= look.repairs
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return GraphFacts(frozenset(seen), frozenset(leaf_ids), frozenset(repairs))


def leaves_of(output: Tensor) -> set[int]:
    """Return the ``id`` of every leaf tensor that a graph reaches, whatever it holds."""
    stack, found = [output.grad_fn], set[int]()
    seen = set(stack)
    while stack:
        node: Any = stack.pop()
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        fresh = {child for child, _ in getattr(node, "next_functions", ())} - seen
        seen |= fresh
        stack += fresh
    return found


@dataclass(frozen=True)
class _Look:
    """What the type of a graph's node says.

    Attributes:
        leaf: whether it stands for a leaf tensor.
        compiled: whether it is the backward of a compiled function.
        once: name of the custom function that can be differentiated once only.
        repairs: the kernel that has to be replaced.
    """

    leaf: bool
    compiled: bool
    once: str | None
    repairs: frozenset[str]


@functools.lru_cache(maxsize=256)
def _look(node: type) -> _Look:
    """Look at a type of nodes; a graph has many nodes of few types."""
    kind = node.__name__
    forward: Any = getattr(node, "_forward_cls", None)
    backward: Any = getattr(forward, "backward", None)
    once = hasattr(backward, "__wrapped__") and backward.__code__.co_filename == torch.autograd.function.__file__
    return _Look(
        leaf=kind == "AccumulateGrad",
        compiled=kind.startswith("CompiledFunction"),
        once=forward.__name__ if once else None,
        repairs=frozenset(kernel for kernel in (CUDNN_RNN, WEIGHT_NORM) if kind.startswith(kernel)),
    )


def _once_differentiable(function: str, name: str) -> ObjectiveError:
    return ObjectiveError(
        passed=f"{name}, which calls {function}, an autograd.Function marked once_differentiable",
        expected="functions whose backward is itself differentiable; this one would lose its curvature silently",
        do="write its backward in torch operations without the once_differentiable mark",
    )
