"""Weight decay with rates of its own for tensors, channels or single weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, final

import torch
from torch import Tensor, nn

from hypergrad.errors import InputError
from hypergrad.hyperparameters.module import HyperparameterModule
from hypergrad.settings import check_choice, check_function, check_number
from hypergrad.tree import NamedTree, Tree

Per = Literal["model", "tensor", "channel", "weight"]


@final
class WeightDecay(HyperparameterModule):
    """The penalty ½ Σᵢ exp(λᵢ) θᵢ², with one log rate λ for the model, a tensor, an output channel or each weight.

    Its gradient is rate · θ, as in torch's optimizers. It is elementwise, with the Hessian diagonal exp(λ): give it
    apart as ``penalty=``, to :class:`~hypergrad.Live` the module itself and to :class:`~hypergrad.Problem` its
    :meth:`penalty`, and products walk through the data's graph only.

    The names of the hyperparameters are those of the weights with ``/`` for every dot, or ``log_rate`` for one rate.
    The model stays the user's; it is read at every call, and is not a part of this module.

    Args:
        model: the module whose weights are shrunk.
        per: what has a rate of its own. A channel is an entry of the first dimension.
        initial: rate at the start, above 0.
        only: ``(name, tensor) -> bool``, which weights are shrunk; by default all that require grad.

    Raises:
        InputError: a choice that does not exist, a rate that is not above 0, or no weights.

    Example:
        >>> import torch, hypergrad as hg
        >>> model = torch.nn.Linear(3, 2)
        >>> decay = hg.WeightDecay(model, per="channel", initial=0.1, only=lambda name, _: name == "weight")
        >>> {name: tuple(rate.shape) for name, rate in decay.rates().items()}
        {'weight': (2, 1)}
        >>> torch.allclose(decay(), 0.05 * model.weight.square().sum())
        True
    """

    def __init__(
        self,
        model: nn.Module,
        per: Per = "tensor",
        *,
        initial: float = 1e-4,
        only: Callable[[str, Tensor], bool] | None = None,
    ) -> None:
        """Make the log rates."""
        super().__init__()
        self.per, self.only = per, only
        if not isinstance(model, nn.Module):
            raise InputError(f"WeightDecay({type(model).__name__})", "the module whose weights are shrunk", "pass it")
        check_choice(self, "per", ("model", "tensor", "channel", "weight"))
        check_function(self, "only", "(name, tensor) -> bool", "leave only out to shrink all weights")
        check_number("WeightDecay", "initial", initial, above=0)
        self._model = (model,)  # a tuple, since this module is not the owner
        weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.names = [name for name, value in weights.items() if only is None or only(name, value)]
        if not self.names:
            raise InputError(
                passed=f"WeightDecay(...), whose only= keeps none of {list(weights)}",
                expected="at least one weight that requires grad",
                do="leave only out to shrink all weights",
            )
        start = torch.tensor(float(initial), dtype=torch.float64).log()
        for name in self.names[:1] if per == "model" else self.names:
            like = weights[name].detach()
            rate = nn.Parameter(like.new_empty(_rate_shape(like.shape, per)).fill_(start))
            self.register_parameter(self._key(name), rate)

    def _key(self, name: str) -> str:
        return "log_rate" if self.per == "model" else name.replace(".", "/")

    def rates(self, hparams: Mapping[str, Tensor] | None = None) -> Tree:
        """Return the rates by the names of the weights, in a shape that broadcasts to the weight's."""
        raw = NamedTree("hparams", dict(self.named_parameters()) if hparams is None else hparams)
        return {name: raw[self._key(name)].exp() for name in self.names}

    def forward(self, batch: object = None) -> Tensor:
        """Return the penalty of the model's present weights."""
        return self._sum(dict(self._model[0].named_parameters()), self.rates())

    def penalty(self, params: Mapping[str, Tensor], hparams: Mapping[str, Tensor]) -> Tensor:
        """Return the penalty of ``params`` under the log rates in ``hparams``, which may hold other tensors, too."""
        return self._sum(params, self.rates(hparams))

    def _sum(self, params: Mapping[str, Tensor], rates: Tree) -> Tensor:
        return 0.5 * torch.stack([(rates[name] * params[name].square()).sum() for name in self.names]).sum()

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"per={self.per!r}, weights={len(self.names)}"


def _rate_shape(shape: torch.Size, per: Per) -> tuple[int, ...]:
    if per == "weight":
        return tuple(shape)
    if per == "channel":
        return (*shape[:1], *[1] * (len(shape) - 1))
    return ()
