"""Dropout whose rate a gradient can reach."""

from __future__ import annotations

import math
from typing import Literal, final

import torch
from torch import Tensor, nn

from hypergrad.hyperparameters.module import HyperparameterModule
from hypergrad.settings import check_choice, check_number


@final
class Dropout(HyperparameterModule):
    """Dropout with a differentiable rate p = sigmoid(λ), the same for all its layers.

    ``"concrete"``: entries are multiplied by (1 − z) / (1 − p), z = sigmoid((logit p + logit u) / temperature) with u
    uniform: a relaxed Bernoulli variable. ``"gaussian"``: by 1 + √(p / (1 − p)) ε with ε standard normal, which has the
    mean and variance of dropout.

    Layers that are a part of the model come from :meth:`layer`: they read the rate here and own nothing, so the rate
    is no weight of the model. For a rate that is tuned through best-response weights, with a rate for each example, use
    :class:`hypergrad.best_response.Dropout`.

    Args:
        initial: p at the start, between 0 and 1.
        kind: the noise.
        temperature: of the relaxed Bernoulli variable, above 0. Masks get hard as it tends to 0, and gradients noisy;
            their mean is 1 only then.
        dtype: of λ, by default torch's default.
        device: of λ.

    Attributes:
        logit_rate: λ, of shape ().

    Raises:
        InputError: settings out of range.

    Source: Gal, Hron, Kendall (2017) for ``"concrete"``; Srivastava et al. (2014), section 10, for ``"gaussian"``.
    Deviation: no entropy term, since the outer loss judges the rate.

    Example:
        >>> import torch, hypergrad as hg
        >>> drop = hg.Dropout(0.2)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), drop.layer(), torch.nn.Linear(4, 1))
        >>> [name for name, _ in model.named_parameters()]
        ['0.weight', '0.bias', '2.weight', '2.bias']
        >>> model(torch.ones(2, 3)).sum().backward()
        >>> drop.logit_rate.grad.shape
        torch.Size([])
    """

    def __init__(
        self,
        initial: float = 0.1,
        kind: Literal["concrete", "gaussian"] = "concrete",
        *,
        temperature: float = 0.1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Check the settings and start at the initial rate."""
        super().__init__()
        self.kind, self.temperature = kind, temperature
        check_number("Dropout", "initial", initial, above=0, below=1)
        check_choice(self, "kind", ("concrete", "gaussian"))
        check_number("Dropout", "temperature", temperature, above=0)
        start = math.log(initial) - math.log1p(-initial)
        self.logit_rate = nn.Parameter(torch.tensor(start, dtype=dtype, device=device))

    @property
    def rate(self) -> Tensor:
        """The rate p, between 0 and 1."""
        return self.logit_rate.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return x with noise from torch's random numbers; in evaluation mode, x."""
        return self.noisy(x) if self.training else x

    def noisy(self, x: Tensor) -> Tensor:
        """Return x with noise, in evaluation mode, too."""
        logit = self.logit_rate.to(x.dtype)
        if self.kind == "gaussian":  # √(p / (1 − p)) = exp(λ / 2)
            return x * (1 + (logit / 2).exp() * torch.randn_like(x))
        uniform = torch.rand_like(x)
        noise = torch.log(uniform + torch.finfo(x.dtype).tiny) - torch.log1p(-uniform)
        kept = torch.sigmoid(-(logit + noise) / self.temperature)
        return x * kept * (1 + logit.exp())  # 1 / (1 − p) = 1 + exp λ

    def layer(self) -> DropoutLayer:
        """Return a layer for a model, without parameters of its own."""
        return DropoutLayer(self)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"kind={self.kind!r}, temperature={self.temperature:g}"


@final
class DropoutLayer(nn.Module):
    """A place in a model where a :class:`Dropout` acts while the model is in training mode."""

    def __init__(self, dropout: Dropout) -> None:
        """Remember where the rate is."""
        super().__init__()
        self._shared = (dropout,)  # a tuple, since this module is not the owner

    def forward(self, x: Tensor) -> Tensor:
        """Return x with noise in training mode."""
        return self._shared[0].noisy(x) if self.training else x
