"""Layers whose weights respond to hyperparameters: general weights plus rows that gates rescale."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from hypergrad.errors import InputError
from hypergrad.solvers.best_response.hyperparameters import Hyperparameters

GateKind = Literal["linear", "sigmoid"]
LINEAR, EMBEDDING, LAYER_NORM = (nn.Linear,), (nn.Embedding,), (nn.LayerNorm,)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHANNEL_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)
KNOWN: tuple[type[nn.Module], ...] = (*LINEAR, *CONVOLUTIONS, *EMBEDDING, *LAYER_NORM, *CHANNEL_NORMS)
"""Layers that :func:`~hypergrad.solvers.best_response.convert` replaces."""


@final
class Gate(nn.Module):
    """One number for each output unit and each perturbation: V λ, or sigmoid(V λ + c).

    Attributes:
        slope: V, of shape (units, h); 0 at first for the linear gate, so that it is shut.
        offset: c, of shape (units,), for the sigmoid gate only.
    """

    slope: nn.Parameter
    offset: nn.Parameter | None

    def __init__(self, units: int, hparams: Hyperparameters, kind: GateKind, like: Tensor, *, centred: bool) -> None:
        """Start shut, or half open with random slopes."""
        super().__init__()
        self._shared, self.centred = (hparams,), centred  # a tuple, since this module is not the owner
        slope = like.new_zeros(units, hparams.size)
        if kind == "sigmoid":
            slope.normal_(std=hparams.size**-0.5)
        self.slope = nn.Parameter(slope)
        self.offset = nn.Parameter(like.new_zeros(units)) if kind == "sigmoid" else None

    def forward(self) -> Tensor:
        """Return the gates, of shape (units,), or (n, units) with a row for each example."""
        code = self._shared[0].code(centred=self.centred).to(self.slope)
        gates = nn.functional.linear(code, self.slope, self.offset)
        return gates if self.offset is None else gates.sigmoid()


class ResponseLayer(nn.Module, ABC):
    """A layer with general weights, and response weights whose share the gates decide.

    Attributes:
        path: the layer's name in the model, for messages.
        units_shape: shape of the units in the output.
        weight_gate: one number for each unit, for the response weights.
        bias_gate: the same for the response bias, ``None`` without one.
        bias_response: b1.
    """

    units_shape: torch.Size
    weight_gate: Gate
    bias_gate: Gate | None
    bias_response: nn.Parameter | None

    def __init__(self, path: str) -> None:
        """Remember the name."""
        super().__init__()
        self.path = path

    def _place(self, gates: Tensor, x: Tensor, out: Tensor, spatial: int) -> Tensor:
        """Return the gates with the dimensions that the output has."""
        shape = (*self.units_shape, *([1] * spatial))
        if gates.dim() == 1:
            return gates.reshape(shape)
        rows = gates.shape[0]
        if x.dim() == 0 or out.dim() <= len(shape) or x.shape[0] != rows:
            raise InputError(
                passed=f"an input of shape {tuple(x.shape)} to {self.path!r}, with perturbations of {rows} examples",
                expected=f"the {rows} examples in the first dimension",
                do="keep the examples in the first dimension, pass examples=, which counts them in a batch, or give "
                "the hyperparameters per_example=False",
            )
        return gates.reshape(rows, *([1] * (out.dim() - 1 - len(shape))), *shape)

    def _shared_gates(self, gate: Gate) -> Tensor:
        gates: Tensor = gate()
        if gates.dim() != 1:
            raise InputError(
                passed=f"the weights of {self.path!r}, with a perturbation for each example",
                expected="one perturbation for all examples, so that there is one set of weights",
                do="give every hyperparameter per_example=False, or call the layer instead of reading its weights",
            )
        return gates

    @abstractmethod
    def response_parameters(self) -> list[nn.Parameter]:
        """Return W1, b1 and what the gates learn."""

    def _gates(self, hparams: Hyperparameters, kind: GateKind, weight: Tensor, *, bias: bool, centred: bool) -> None:
        units = self.units_shape.numel()
        self.weight_gate = Gate(units, hparams, kind, weight, centred=centred)
        self.bias_gate = Gate(units, hparams, kind, weight, centred=centred) if bias else None
        start = weight.new_zeros(self.units_shape) if kind == "sigmoid" else weight.new_ones(self.units_shape)
        self.bias_response = nn.Parameter(start) if bias else None

    def _learnt_by_gates(self) -> list[nn.Parameter]:
        found = [*self.weight_gate.parameters()]
        if self.bias_gate is not None and self.bias_response is not None:
            found += [*self.bias_gate.parameters(), self.bias_response]
        return found


@final
class WeightResponse(ResponseLayer):
    """A linear map, a convolution or an embedding with weights that respond.

    out = W0 x + b0 + gate(λ) ⊙ (W1 x) + gate'(λ) ⊙ b1, a gate for each output unit or channel.

    Args:
        layer: the layer whose weights are the general ones; it is taken over, not copied.
        hparams: what the gates read.
        gate: ``"linear"`` or ``"sigmoid"``.
        centred: whether gates read the perturbation alone.
        path: name for messages.

    Cost: twice that of the layer.
    """

    general: nn.Module
    response: nn.Module

    def __init__(
        self, layer: Any, hparams: Hyperparameters, gate: GateKind = "linear", *, centred: bool = False, path: str = ""
    ) -> None:
        """Draw fresh response weights behind shut gates (linear), or zero ones behind open gates (sigmoid)."""
        super().__init__(path)
        weight = layer.weight.detach()
        self.units_shape = torch.Size(weight.shape[-1:] if isinstance(layer, EMBEDDING) else weight.shape[:1])
        self._spatial = len(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else 0
        bias = getattr(layer, "bias", None)
        self.general, response = layer, copy.deepcopy(layer)
        response.reset_parameters()
        response.requires_grad_(requires_grad=True)
        if bias is not None:
            response.register_parameter("bias", None)
        if gate == "sigmoid":
            nn.init.zeros_(response.weight)
        self.response = response
        self._gates(hparams, gate, weight, bias=bias is not None, centred=centred)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output under the present hyperparameters."""
        out: Tensor = self.general(x)
        answer = self._place(self.weight_gate(), x, out, self._spatial) * self.response(x)
        out = out + answer
        if self.bias_gate is not None and self.bias_response is not None:
            shift = self.bias_response.reshape(*self.units_shape, *([1] * self._spatial))
            out = out + self._place(self.bias_gate(), x, out, self._spatial) * shift
        return out

    @property
    def weight(self) -> Tensor:
        """The present weights, W0 + gate(λ) ⊙ W1."""
        gates = self._shared_gates(self.weight_gate)
        general: Any = self.general.weight
        response: Any = self.response.weight
        dims = 0 if isinstance(self.general, EMBEDDING) else general.dim() - 1
        weight: Tensor = general + gates.reshape(-1, *([1] * dims)) * response
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The present bias, b0 + gate'(λ) ⊙ b1, or ``None``."""
        if self.bias_gate is None or self.bias_response is None:
            return None
        general: Any = self.general.bias
        bias: Tensor = general + self._shared_gates(self.bias_gate) * self.bias_response
        return bias

    def response_parameters(self) -> list[nn.Parameter]:
        """Return W1, b1 and what the gates learn."""
        return [*self.response.parameters(), *self._learnt_by_gates()]


@final
class NormResponse(ResponseLayer):
    """A layer, batch or group normalisation with weights that respond.

    out = x̂ ⊙ (w0 + gate(λ) ⊙ w1) + b0 + gate'(λ) ⊙ b1, where x̂ is the normalised input.

    Args:
        layer: the normalisation, with affine weights; it is taken over, not copied.
        hparams: what the gates read.
        gate: ``"linear"`` or ``"sigmoid"``.
        centred: whether gates read the perturbation alone.
        path: name for messages.
    """

    normalize: nn.Module
    general_weight: nn.Parameter
    general_bias: nn.Parameter | None
    weight_response: nn.Parameter

    def __init__(
        self, layer: Any, hparams: Hyperparameters, gate: GateKind = "linear", *, centred: bool = False, path: str = ""
    ) -> None:
        """Take the affine weights out of the layer."""
        super().__init__(path)
        self._last = isinstance(layer, LAYER_NORM)
        self.general_weight, self.general_bias = layer.weight, layer.bias
        layer.register_parameter("weight", None)
        layer.register_parameter("bias", None)
        self.normalize = layer
        weight = self.general_weight.detach()
        self.units_shape = weight.shape
        self.weight_response = nn.Parameter(torch.zeros_like(weight) if gate == "sigmoid" else torch.ones_like(weight))
        self._gates(hparams, gate, weight, bias=self.general_bias is not None, centred=centred)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output under the present hyperparameters."""
        normal: Tensor = self.normalize(x)
        spatial = 0 if self._last else x.dim() - 2
        shape = (*self.units_shape, *([1] * spatial))
        gates = self._place(self.weight_gate(), x, normal, spatial)
        out = normal * (self.general_weight.reshape(shape) + gates * self.weight_response.reshape(shape))
        if self.general_bias is not None and self.bias_gate is not None and self.bias_response is not None:
            gates = self._place(self.bias_gate(), x, normal, spatial)
            out = out + self.general_bias.reshape(shape) + gates * self.bias_response.reshape(shape)
        return out

    @property
    def weight(self) -> Tensor:
        """The present weights, w0 + gate(λ) ⊙ w1."""
        gates = self._shared_gates(self.weight_gate).reshape(self.units_shape)
        return self.general_weight + gates * self.weight_response

    @property
    def bias(self) -> Tensor | None:
        """The present bias, b0 + gate'(λ) ⊙ b1, or ``None``."""
        if self.general_bias is None or self.bias_gate is None or self.bias_response is None:
            return None
        gates = self._shared_gates(self.bias_gate).reshape(self.units_shape)
        return self.general_bias + gates * self.bias_response

    def response_parameters(self) -> list[nn.Parameter]:
        """Return w1, b1 and what the gates learn."""
        return [self.weight_response, *self._learnt_by_gates()]


@final
class Dropout(nn.Module):
    """Dropout whose rate is a hyperparameter, with a rate for each example while it is perturbed.

    An entry is dropped with probability r(λ + ε) and the others are divided by 1 − r. In evaluation mode it does
    nothing. No gradient reaches the rate: it is tuned through the layers that respond to it.

    Args:
        hparams: where the rate is read.
        name: the hyperparameter, whose domain must end below 1: :class:`Logit` (0, 0.9).
        channels: whether whole channels, dimension 1, are dropped.

    Raises:
        InputError: a name that is not there, or a rate that is a vector or lies outside [0, 1).
    """

    def __init__(self, hparams: Hyperparameters, name: str, *, channels: bool = False) -> None:
        """Check the hyperparameter."""
        super().__init__()
        self._shared, self.name, self.channels = (hparams,), name, channels
        rate = hparams.unconstrained(name)
        ends = hparams.settings[name].domain.value(torch.tensor([-50.0, 50.0], dtype=torch.float64))
        if rate.dim() or not (float(ends.min()) >= 0 and float(ends.max()) < 1):
            raise InputError(
                passed=f"the dropout rate {name!r} with {hparams.settings[name]!r}",
                expected="one number that stays at or above 0 and below 1",
                do="give it the domain Logit(0, 0.9)",
            )

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries in training mode."""
        if not self.training:
            return x
        rate = self._shared[0][self.name].to(x)
        if rate.dim():
            if x.dim() == 0 or x.shape[0] != rate.shape[0]:
                raise InputError(
                    passed=f"an input of shape {tuple(x.shape)} to Dropout, with rates of {rate.shape[0]} examples",
                    expected=f"the {rate.shape[0]} examples in the first dimension",
                    do="keep the examples in the first dimension, or pass examples=, which counts them in a batch",
                )
            rate = rate.reshape(-1, *([1] * (x.dim() - 1)))
        shape = (*x.shape[:2], *([1] * (x.dim() - 2))) if self.channels else x.shape
        drawn = torch.rand(shape, dtype=x.dtype, device=x.device)
        return x * (drawn >= rate) / (1 - rate)

    def extra_repr(self) -> str:
        """Return the rate's name."""
        return repr(self.name)
