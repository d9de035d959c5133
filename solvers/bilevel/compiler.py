"""The compiler of whole hypergradients: its settings, and a count of what it compiled."""

from __future__ import annotations

import functools
import re
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch

from hypergrad.errors import InputError
from hypergrad.settings import check_numbers

TOLERANCES = {torch.float32: 1e-2, torch.float64: 1e-7}
"""Largest relative difference between a compiled and an eager product, by dtype; other dtypes: 5e-2."""
SKINNY = 16
"""Columns up to which the CPU's matrix product is several times faster with both factors transposed."""

LIBRARY = re.compile(r"G\['(?!__import_)|G\['__import_(torch|hypergrad|contextlib)(_dot_|')|__import__\('torch'\)")
"""What compiled code need not look at before each call: names of torch and of this library, which stay."""


@final
@dataclass(frozen=True)
class Compiled:
    """How :class:`~hypergrad.Implicit` compiles: ``compile=True`` is ``compile=Compiled()``.

    Args:
        cuda_graphs: whether the compiled kernels are captured in CUDA graphs and replayed, which saves their launches:
            torch's mode ``reduce-overhead``, on a CUDA device only. The first three hypergradients are compared with
            eager products then: torch warms up, captures and replays.
        tolerance: largest relative difference between compiled and eager products that is taken for rounding,
            above 0. By default 1e-2 for float32, where an activation may switch by rounding, 1e-7 for float64 and 5e-2
            for other dtypes.

    Raises:
        InputError: a setting out of range; ``cuda_graphs`` with parameters that are not on a CUDA device.

    Example:
        >>> import hypergrad as hg
        >>> hg.Implicit(hg.Neumann(10, step=0.1), compile=hg.Compiled(tolerance=1e-4)).compile
        Compiled(cuda_graphs=False, tolerance=0.0001)
    """

    cuda_graphs: bool = False
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no switch and a tolerance that is not positive."""
        if not isinstance(self.cuda_graphs, bool):
            raise InputError(f"Compiled(cuda_graphs={self.cuda_graphs!r})", "True or False", "pass one of these")
        check_numbers(self, "tolerance", above=0)

    def check_device(self, device: torch.device) -> None:
        """Raise :class:`~hypergrad.errors.InputError` for CUDA graphs on another device."""
        if self.cuda_graphs and device.type != "cuda":
            raise InputError(
                passed=f"Compiled(cuda_graphs=True) with params on {device}",
                expected="params on a CUDA device",
                do="leave cuda_graphs out: on other devices there are no CUDA graphs",
            )

    def limit(self, dtype: torch.dtype) -> float:
        """Return the largest relative difference that counts as rounding."""
        return TOLERANCES.get(dtype, 5e-2) if self.tolerance is None else self.tolerance

    @property
    def probes(self) -> int:
        """How many hypergradients are compared with eager products: replays of CUDA graphs begin at the third."""
        return 3 if self.cuda_graphs else 1

    def options(self, device: torch.device) -> dict[str, Any]:
        """Return the options of ``torch._inductor``: random numbers as in eager mode, and what is fast here."""
        options: dict[str, Any] = {"fallback_random": True}
        if self.cuda_graphs:
            options["triton.cudagraphs"] = True
        if device.type == "cpu":
            options |= {"cpp_wrapper": True, "post_grad_custom_pre_pass": _transposing()}
        return options


class Compiler:
    """Compiles functions whole, each in a code object of its own, and counts.

    Attributes:
        count: graphs compiled so far.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        """Keep the options."""
        self.options, self.count = options, 0

    def __call__(self, function: types.FunctionType) -> Callable[..., Any]:
        """Return ``function`` compiled at its first call and for each new form of its arguments.

        torch keeps compiled code with the code object, and counts there how often it compiled: a copy belongs to this
        compiler alone and goes when it goes.
        """
        copy = types.FunctionType(
            function.__code__.replace(),
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        options: dict[str, Any] = {"guard_filter_fn": _watched}
        return torch.compile(copy, backend=self.backend, fullgraph=True, dynamic=False, options=options)

    def backend(self, graph: Any, inputs: Any) -> Any:
        """Compile one graph."""
        import torch._inductor

        self.count += 1
        with warnings.catch_warnings():  # the compiler's own, about kernels that this device does not have
            warnings.simplefilter("ignore")
            return torch._inductor.compile(graph, inputs, options=self.options)


def _watched(entries: Any) -> list[bool]:
    """Return what to look at: arguments, what the user's functions reach, and torch's switches."""
    return [LIBRARY.search(entry.name) is None for entry in entries]


@functools.cache
def _transposing() -> Any:
    """Return a pass over the graph that computes products A B with a narrow B as (Bᵀ Aᵀ)ᵀ.

    The CPU's libraries take 13 instead of 55 µs for the two products of a logistic regression of 64 features, 10
    classes and 200 examples.
    """
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class Transposing(CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            for node in list(graph.nodes):
                if node.op == "call_function" and node.target is torch.ops.aten.mm.default:
                    _transpose(graph, node)

        def uuid(self) -> Any:
            return get_hash_for_files((__file__,))

    return Transposing()


def _transpose(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    value = node.meta["val"]
    rows, columns = value.shape
    if not (isinstance(rows, int) and isinstance(columns, int) and 1 < columns <= SKINNY and rows >= 2 * SKINNY):
        return
    turn, multiply = torch.ops.aten.permute.default, torch.ops.aten.mm.default
    left, right = node.args
    assert isinstance(left, torch.fx.Node)
    assert isinstance(right, torch.fx.Node)
    with graph.inserting_before(node):
        factors = []
        for factor in (right, left):
            turned = graph.call_function(turn, (factor, [1, 0]))
            turned.meta["val"] = factor.meta["val"].permute(1, 0)
            factors.append(turned)
        product = graph.call_function(multiply, tuple(factors))
        product.meta["val"] = value.new_empty(columns, rows)
        back = graph.call_function(turn, (product, [1, 0]))
        back.meta["val"] = product.meta["val"].permute(1, 0)
    node.replace_all_uses_with(back)
    graph.erase_node(node)
