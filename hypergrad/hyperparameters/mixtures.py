"""Weights on a simplex: of the terms of a loss, and of the domains that training data come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from hypergrad.errors import InputError, TreeError, did_you_mean
from hypergrad.hyperparameters.module import HyperparameterModule, check_index
from hypergrad.settings import check_number


@final
class LossWeights(HyperparameterModule):
    """Weights of named losses, w = floor + (1 − K · floor) softmax(λ), which sum to 1.

    Args:
        names: names of the K losses, at least 2.
        floor: smallest weight, at least 0 and below 1 / K.
        entropy: factor of :meth:`bonus`, at least 0.
        initial: weights at the start, above the floor, with the sum 1; by default equal.
        dtype: of λ, by default torch's default.
        device: of λ.

    Attributes:
        loss_weights: λ, of shape (K,).

    Raises:
        InputError: names that are no two different strings, settings out of range.
        TreeError: at a call, losses of other names.

    Example:
        >>> import torch, hypergrad as hg
        >>> weights = hg.LossWeights(["class", "depth"], floor=0.1)
        >>> weights({"class": torch.tensor(1.0), "depth": torch.tensor(3.0)})
        tensor(2., grad_fn=<SumBackward0>)
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        floor: float = 0.0,
        entropy: float = 0.0,
        initial: Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Check the settings and start at the initial weights."""
        super().__init__()
        self.names = _check_names("LossWeights", names)
        self.floor, self.entropy = floor, entropy
        check_number("LossWeights", "floor", floor, least=0, below=1 / len(self.names))
        check_number("LossWeights", "entropy", entropy, least=0)
        self.loss_weights = nn.Parameter(_start("LossWeights", initial, len(self.names), floor, dtype, device))

    def weights(self) -> Tensor:
        """Return the weights in the order of the names, of shape (K,)."""
        return _floored(self.loss_weights, self.floor)

    def forward(self, losses: Mapping[str, Tensor] | Sequence[Tensor]) -> Tensor:
        """Return Σ wₖ lossₖ, of scalar losses by name or in order.

        Raises:
            TreeError: other names than those of the weights, or another number of losses.
        """
        if isinstance(losses, Mapping):
            extra = [f"{name!r}{did_you_mean(name, self.names)}" for name in losses if name not in self.names]
            missing = [name for name in self.names if name not in losses]
            if extra or missing:
                raise TreeError(
                    passed=f"losses with missing names {missing} and extra names [{', '.join(extra)}]",
                    expected=f"the names {self.names}",
                    do="pass one scalar loss for each name",
                )
            losses = [losses[name] for name in self.names]
        if len(losses) != len(self.names):
            raise TreeError(f"{len(losses)} losses", f"one for each of {self.names}", "pass them by name")
        return (self.weights() * torch.stack([loss.reshape(()) for loss in losses])).sum()

    def bonus(self) -> Tensor:
        """Return entropy · H(w), in nats: subtract it from the outer loss, so that the weights stay spread."""
        weights = self.weights()
        return self.entropy * -torch.xlogy(weights, weights).sum()

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"{self.names}, floor={self.floor:g}, entropy={self.entropy:g}"


@final
class DomainMixture(HyperparameterModule):
    """Shares of k domains of training data, p = floor + (1 − k · floor) softmax(λ).

    ``mixture(domains)`` returns the weights p[d] / q[d] of a batch's examples, by which a loss over examples that were
    drawn from the domains with shares q has the expectation of one drawn with shares p, and is differentiable in p.
    :meth:`draw` draws domains by p itself, for training without weights; no gradient passes through the draw.

    Args:
        domains: the number k of domains, at least 2, or their names.
        floor: smallest share, at least 0 and below 1 / k.
        initial: shares at the start, above the floor, with the sum 1; by default equal.
        drawn: the shares q that data are drawn with, above 0 with the sum 1; by default equal.
        dtype: of λ, by default torch's default.
        device: of λ.

    Attributes:
        domain_shares: λ, of shape (k,).

    Raises:
        InputError: settings out of range; at a call, domains that are no tensor of whole numbers.

    Example:
        >>> import torch, hypergrad as hg
        >>> mixture = hg.DomainMixture(2, initial=[0.75, 0.25])
        >>> mixture(torch.tensor([0, 0, 1])).detach()
        tensor([1.5000, 1.5000, 0.5000])
    """

    drawn: Tensor

    def __init__(
        self,
        domains: int | Sequence[str],
        *,
        floor: float = 0.0,
        initial: Sequence[float] | None = None,
        drawn: Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Check the settings and start at the initial shares."""
        super().__init__()
        names = [str(place) for place in range(domains)] if isinstance(domains, int) else domains
        self.names, self.floor = _check_names("DomainMixture", names), floor
        check_number("DomainMixture", "floor", floor, least=0, below=1 / len(self.names))
        start = _start("DomainMixture", initial, len(self.names), floor, dtype, device)
        self.domain_shares = nn.Parameter(start)
        shares = _on_simplex("DomainMixture", "drawn", drawn, len(self.names), 0.0)
        self.register_buffer("drawn", shares.to(start))

    def shares(self) -> Tensor:
        """Return p, of shape (k,)."""
        return _floored(self.domain_shares, self.floor)

    def forward(self, domains: Tensor) -> Tensor:
        """Return p[d] / q[d] for the domain d of each example, of the shape of ``domains``."""
        return (self.shares() / self.drawn)[check_index("DomainMixture", domains)]

    @torch.no_grad()
    def draw(self, size: int, generator: torch.Generator | None = None) -> Tensor:
        """Return the domains of ``size`` examples drawn by p, int64."""
        return torch.multinomial(self.shares(), size, replacement=True, generator=generator)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"{self.names}, floor={self.floor:g}"


def _check_names(call: str, names: Iterable[str]) -> list[str]:
    found = [] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if len(found) < 2 or len(set(found)) < len(found) or not all(isinstance(name, str) for name in found):
        raise InputError(
            passed=f"{call}({names!r})",
            expected="two or more different names",
            do=f'write {call}(["first", "second"])',
        )
    return found


def _on_simplex(call: str, name: str, shares: Sequence[float] | None, count: int, floor: float) -> Tensor:
    if shares is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    given = torch.as_tensor(shares, dtype=torch.float64)
    if given.shape != (count,) or not bool((given > floor).all()) or not abs(float(given.sum()) - 1) < 1e-4:
        raise InputError(
            passed=f"{call}({name}={shares!r})",
            expected=f"{count} numbers above {floor:g} that sum to 1",
            do=f"leave {name} out for equal ones",
        )
    return given


def _start(
    call: str,
    initial: Sequence[float] | None,
    count: int,
    floor: float,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    shares = _on_simplex(call, "initial", initial, count, floor)
    logarithms = ((shares - floor) / (1 - count * floor)).log()
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return (logarithms - logarithms.mean()).to(dtype=dtype, device=device)


def _floored(raw: Tensor, floor: float) -> Tensor:
    return floor + (1 - raw.numel() * floor) * raw.softmax(-1)
