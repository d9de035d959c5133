"""One hypergradient as pure functions of tensors, which torch.compile takes whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hypergrad.objective import UserFunction
from hypergrad.tree import Tree

Loss = Callable[[Tree, Tree, Any], Tensor]
Carry = dict[str, Any]
Answer = dict[str, Any]


@final
@dataclass(frozen=True)
class Losses:
    """The objectives as functions of (params, hparams, batch)."""

    inner: Loss
    outer: Loss
    penalty: Loss | None

    @classmethod
    def of(cls, parts: dict[str, UserFunction]) -> Losses:
        """Return the user's own functions, without the checks around them."""
        penalty = parts.get("penalty")
        return cls(_pure(parts["inner"]), _pure(parts["outer"]), None if penalty is None else _pure(penalty))


def _pure(part: UserFunction) -> Loss:
    function = part.function
    if part.takes_batch:
        return lambda params, hparams, batch: function(params, hparams, batch).reshape(())
    return lambda params, hparams, batch: function(params, hparams).reshape(())


def dot(left: Tree, right: Tree) -> Tensor:
    """Return the inner product."""
    first, *others = ((left[key] * right[key]).sum() for key in left)
    return sum(others, start=first)


def length(tree: Tree) -> Tensor:
    """Return the Euclidean norm."""
    return dot(tree, tree).sqrt()


def _vjp(function: Callable[[Tree, Tree], Tree], params: Tree, hparams: Tree) -> tuple[Tree, Any]:
    """Return the function's value and its vector-Jacobian product."""
    found: Any = torch.func.vjp(function, params, hparams)
    return found[0], found[1]


class System:
    """H q = b inside a graph: products with H, the diagonal that is known of it, and the mixed product.

    All products of one graph are reverse passes through one record of ∇_θ g, as in eager mode.
    """

    def __init__(self, losses: Losses, params: Tree, hparams: Tree, batch: Any, numbers: Tree) -> None:
        """Record the gradients."""

        def gradient(loss: Loss) -> Callable[[Tree, Tree], Tree]:
            return lambda params, hparams: torch.func.grad(lambda p: loss(p, hparams, batch))(params)

        self.residual: Tree
        self._pull: Any
        self.residual, self._pull = _vjp(gradient(losses.inner), params, hparams)
        self.diagonal: Tree | None = None
        self._pull_penalty: Any = None
        damping = numbers.get("damping")
        if losses.penalty is not None:
            shrinkage, self._pull_penalty = _vjp(gradient(losses.penalty), params, hparams)
            self.residual = {key: value + shrinkage[key] for key, value in self.residual.items()}
            self.diagonal = self._pull_penalty({key: torch.ones_like(value) for key, value in params.items()})[0]
        if damping is not None:
            rest = self.diagonal or {key: torch.zeros_like(value) for key, value in params.items()}
            self.diagonal = {key: value + damping for key, value in rest.items()}

    def product(self, v: Tree) -> Tree:
        """Return (H + damping · I) v."""
        data: Tree = self._pull(v)[0]
        d = self.diagonal
        return data if d is None else {key: value + d[key] * v[key] for key, value in data.items()}

    def mixed(self, q: Tree) -> Tree:
        """Return (∂²g/∂θ∂λ)ᵀ q."""
        found: Tree = self._pull(q)[1]
        if self._pull_penalty is None:
            return found
        rest = self._pull_penalty(q)[1]
        return {key: value + rest[key] for key, value in found.items()}

    def inverse(self, curvature: Tensor) -> Tree:
        """Return 1 / max(d, c/100), the inverse of :class:`~hypergrad.PenaltyDiagonal`."""
        assert self.diagonal is not None
        kept = {key: torch.maximum(d, 0.01 * curvature.abs()) for key, d in self.diagonal.items()}
        return {key: torch.where(d > 0, d, 1.0).reciprocal() for key, d in kept.items()}


class NeumannGraph:
    """The iteration of :class:`~hypergrad.Neumann`, as its eager form makes it."""

    def begin(self, system: System, b: Tree, numbers: Tree, start: Tree | None, vector: Tree | None) -> Carry:
        """Return x = b, and α from one product with the last solve's top vector where it is not given."""
        carry: Carry = {"b": b, "x": b, "before": b, "lengths": [length(b)], "size": length(b)}
        if vector is None:
            return {**carry, "step": numbers["step"]}
        image = system.product(vector)
        quotient = dot(vector, image)
        gap = length({key: value - quotient * vector[key] for key, value in image.items()})
        size, curvature = length(image), quotient.abs() + gap
        tiny = torch.finfo(size.dtype).tiny
        following = {k: torch.where(size > 0, v / size.clamp(min=tiny), vector[k]) for k, v in image.items()}
        step = torch.where(curvature > 0, 1 / curvature, 1.0)
        return {**carry, "step": step, "vector": following}

    def advance(self, system: System, carry: Carry, numbers: Tree, count: int) -> Carry:
        """Add ``count`` terms; the lengths of the last two terms are kept."""
        x, before, b, lengths = carry["x"], carry["before"], carry["b"], list(carry["lengths"])
        for term in range(count):
            image = system.product(x)
            before, x = x, {key: b[key] + (x[key] - carry["step"] * image[key]) for key in x}
            if term >= count - 2:
                lengths.append(length({key: x[key] - before[key] for key in x}))
        return {**carry, "x": x, "before": before, "lengths": lengths[-2:]}

    def end(self, carry: Carry) -> tuple[Tree, list[Tensor]]:
        """Return α x, and ‖b‖, ‖x‖ and the lengths of the last two terms."""
        q = {key: carry["step"] * value for key, value in carry["x"].items()}
        return q, [carry["size"], length(carry["x"]), *carry["lengths"]]

    def checked(self, carry: Carry) -> tuple[Tree, Tree]:
        """Return s and r with H s = b − r: all but the last term, and that term."""
        x, before = carry["x"], carry["before"]
        return {k: carry["step"] * v for k, v in before.items()}, {k: v - before[k] for k, v in x.items()}


class CGGraph:
    """The iteration of :class:`~hypergrad.CG`; steps after its end change nothing."""

    def begin(self, system: System, b: Tree, numbers: Tree, start: Tree | None, vector: Tree | None) -> Carry:
        """Return the first residual and direction."""
        x = {key: torch.zeros_like(value) for key, value in b.items()} if start is None else start
        r = b
        if start is not None:
            image = system.product(start)
            r = {key: value - image[key] for key, value in b.items()}
        z = self._preconditioned(system, r, numbers)
        size, now = length(b), length(r)
        zero = torch.zeros_like(size)
        return {
            "b": b,
            "x": x,
            "r": r,
            "p": z,
            "rz": dot(r, z),
            "best": x,
            "size": size,
            "length": now,
            "least": now,
            "bent": zero > 0,
            "made": zero,
            "target": torch.maximum(numbers["rtol"] * size, numbers["atol"]),
        }

    def advance(self, system: System, carry: Carry, numbers: Tree, count: int) -> Carry:
        """Take ``count`` steps."""
        x, r, p, best = carry["x"], carry["r"], carry["p"], carry["best"]
        rz, now, least, bent, made = (carry[name] for name in ("rz", "length", "least", "bent", "made"))
        for _ in range(count):
            q = system.product(p)
            curvature = dot(p, q)
            over = bent | (now <= carry["target"])
            made = made + torch.where(over, 0.0, 1.0)
            bent = bent | ((curvature <= 0) & ~over)
            still = bent | over
            alpha = torch.where(still, 0.0, rz / curvature)
            x = {key: value + alpha * p[key] for key, value in x.items()}
            r = {key: value - alpha * q[key] for key, value in r.items()}
            z = self._preconditioned(system, r, numbers)
            before, rz = rz, dot(r, z)
            now = rz.sqrt() if z is r else length(r)
            better, least = now < least, torch.minimum(now, least)
            best = {key: torch.where(better, value, best[key]) for key, value in x.items()}
            beta = torch.where(still, 0.0, rz / before)
            p = {key: value + beta * p[key] for key, value in z.items()}
        moved = {"x": x, "r": r, "p": p, "best": best, "rz": rz, "length": now, "least": least}
        return {**carry, **moved, "bent": bent, "made": made}

    def end(self, carry: Carry) -> tuple[Tree, list[Tensor]]:
        """Return the iterate of the smallest residual, and ‖b‖, ‖r‖, the smallest ‖r‖, steps made, and bent."""
        dtype = carry["size"].dtype
        names = ("size", "length", "least", "made", "target")
        return carry["best"], [*(carry[name] for name in names), carry["bent"].to(dtype)]

    def checked(self, carry: Carry) -> tuple[Tree, Tree]:
        """Return s and r with H s = b − r: the last iterate and its residual."""
        return carry["x"], carry["r"]

    def _preconditioned(self, system: System, r: Tree, numbers: Tree) -> Tree:
        curvature = numbers.get("curvature")
        if curvature is None:
            return r
        inverse = system.inverse(curvature)
        return {key: inverse[key] * value for key, value in r.items()}


Method = NeumannGraph | CGGraph


def graph(losses: Losses, method: Method, count: int, *, last: bool) -> Any:
    """Return the function that begins, or goes on from ``carry``, makes ``count`` products and may end."""

    def run(
        params: Tree, hparams: Tree, batch: Any, outer_batch: Any, numbers: Tree, start: Any, vector: Any, carry: Any
    ) -> Answer:
        device = next(iter(params.values())).device.type
        slopes: Any = None
        with torch.autocast(device, enabled=False), sdpa_kernel(SDPBackend.MATH):
            if carry is None:
                slopes, value = torch.func.grad_and_value(lambda p, h: losses.outer(p, h, outer_batch), argnums=(0, 1))(
                    params, hparams
                )
                outer = {"value": value, "hparams": slopes[1]}
            else:
                outer = carry["outer"]
            system = System(losses, params, hparams, batch, numbers)
            if carry is None:
                carry = method.begin(system, slopes[0], numbers, start, vector)
            carry = method.advance(system, carry, numbers, count)
            if not last:
                return {**carry, "outer": outer}
            return _ended(system, method, carry, outer)

    return run


def _ended(system: System, method: Method, carry: Carry, outer: Answer) -> Answer:
    q, told = method.end(carry)
    mixed = system.mixed(q)
    grads = {key: value - mixed[key] for key, value in outer["hparams"].items()}
    slope = dot(q, system.residual).abs()
    scales = [outer["value"], slope, length(system.residual), length(outer["hparams"]), length(grads)]
    solved, rest = method.checked(carry)
    return {
        "value": outer["value"],
        "grads": grads,
        "direct": outer["hparams"],
        "b": carry["b"],
        "solution": q,
        "solved": solved,
        "rest": rest,
        "vector": carry.get("vector"),
        "numbers": torch.stack([*scales, *told]),
    }
