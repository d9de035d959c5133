"""Hyperparameters that are tuned during training: their perturbations, and what layers and losses read of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor, nn

from hypergrad.errors import InputError, TreeError, did_you_mean
from hypergrad.settings import check_count, check_number, check_numbers
from hypergrad.solvers.best_response.domains import Domain


@final
@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter, or several of one kind.

    Args:
        initial: where it starts, in its own units; several numbers make a vector.
        domain: the values it can take: :class:`Real`, :class:`Log`, :class:`Logit`, :class:`Integer`,
            :class:`Choice`, or an object with ``value`` and ``inverse``.
        scale: initial standard deviation σ of its perturbation, above 0, in units of the unconstrained λ.
        per_example: whether each example of a batch gets a perturbation of its own; False for what acts on a tensor
            that all examples share (weight decay, DropConnect).

    Raises:
        InputError: no domain, an initial value outside it, or a scale that is not above 0.
    """

    initial: float | Sequence[float]
    domain: Domain = cast("Domain", None)  # noqa: RUF009 - refused below, with what to do
    scale: float = 0.5
    per_example: bool = True

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if not isinstance(self.domain, Domain) or isinstance(self.domain, type):
            raise InputError(
                passed=f"Hyperparameter(domain={self.domain!r})",
                expected="an object that says which values it can take",
                do="pass Real(), Log(), Logit(low, high), Integer(low, high) or Choice(options)",
            )
        check_numbers(self, "scale", above=0)
        if not math.isfinite(self.scale):
            raise InputError(f"Hyperparameter(scale={self.scale})", "a finite number", "pass about 0.5")
        self.start()

    def start(self) -> list[float]:
        """Return the unconstrained initial values."""
        values = [self.initial] if isinstance(self.initial, int | float) else list(self.initial)
        if not values:
            raise InputError("Hyperparameter(initial=[])", "at least one number", "pass where it starts")
        for value in values:
            check_number("Hyperparameter", "initial", value, above=-math.inf, below=math.inf)
        return [self.domain.inverse(float(value)) for value in values]


@final
@dataclass(frozen=True)
class _Point:
    """What layers and losses see at the moment.

    Attributes:
        unconstrained: λ or λ + ε, of shape (h,), or (n, h) with a row for each example.
        shift: the same less a constant λ: what centred gates read.
        linearised: whether the model is to answer with its linearisation along ε.
    """

    unconstrained: Tensor
    shift: Tensor
    linearised: bool = False


@final
class Hyperparameters(nn.Module):
    """All hyperparameters of a self-tuning network, with the scales of their perturbations.

    A loss or an augmentation reads r(λ + ε) as ``hparams["name"]``: of shape (n,) during a perturbed step, a row for
    each example, and a plain number otherwise (one more dimension for a vector). It carries no gradient: a gradient
    reaches λ only through the layers that :func:`convert` made.

    Args:
        hparams: one :class:`Hyperparameter` under each name.
        dtype: of λ and the scales, by default torch's default.
        device: of λ and the scales.

    Attributes:
        location: λ, unconstrained, a vector of length h.
        raw_scale: s, a vector of length h; the standard deviations are σ = softplus(s).

    Raises:
        InputError: no hyperparameters, or one without a domain.

    Example:
        >>> from hypergrad.solvers.best_response import Logit
        >>> hparams = Hyperparameters({"dropout": Hyperparameter(0.05, Logit(0, 0.9))})
        >>> hparams["dropout"]
        tensor(0.0500)
        >>> with hparams.perturbed(rows=8):
        ...     hparams["dropout"].shape
        torch.Size([8])
    """

    location: nn.Parameter
    raw_scale: nn.Parameter
    per_example: Tensor

    def __init__(
        self,
        hparams: Mapping[str, Hyperparameter],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Check what is passed, and go to the initial values."""
        super().__init__()
        self.settings = _checked(hparams)
        starts = {name: setting.start() for name, setting in self.settings.items()}
        scales = [s for name, entry in self.settings.items() for s in [entry.scale] * len(starts[name])]
        each = [p for name, entry in self.settings.items() for p in [entry.per_example] * len(starts[name])]
        location = [value for values in starts.values() for value in values]
        ends = torch.tensor([len(values) for values in starts.values()]).cumsum(0).tolist()
        self._places = {
            name: slice(end - len(values), end) for (name, values), end in zip(starts.items(), ends, strict=True)
        }
        self.location = nn.Parameter(torch.tensor(location, dtype=dtype, device=device))
        raw = torch.tensor(scales, dtype=torch.float64)
        raw = raw + torch.log(-torch.expm1(-raw))  # the inverse of softplus
        self.raw_scale = nn.Parameter(raw.to(self.location))
        self.register_buffer("per_example", torch.tensor(each, device=device), persistent=False)
        self._any_per_example = any(each)
        self._point: _Point | None = None
        self._around: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of entries of all hyperparameters together, h."""
        return self.location.numel()

    @property
    def scales(self) -> Tensor:
        """Standard deviations of the perturbations, σ = softplus(s)."""
        return nn.functional.softplus(self.raw_scale)

    def entropy(self) -> Tensor:
        """Return the entropy of the perturbations, H = Σ log(σ √(2πe)), in nats."""
        return self.scales.log().sum() + self.size * 0.5 * math.log(2 * math.pi * math.e)

    def __getitem__(self, name: str) -> Tensor:
        """Return r(λ + ε) of a hyperparameter, without a gradient."""
        entries = self.unconstrained(name).detach()
        return self.settings[name].domain.value(entries)

    def unconstrained(self, name: str) -> Tensor:
        """Return λ + ε of a hyperparameter with its gradient, for a term of the validation loss that names λ itself."""
        if name not in self.settings:
            raise TreeError(
                passed=f"the hyperparameter {name!r}{did_you_mean(name, self.settings)}",
                expected=f"one of {list(self.settings)}",
                do="rename it, or add it to Hyperparameters",
            )
        point = self.location if self._point is None else self._point.unconstrained
        entries = point[..., self._places[name]]
        return entries[..., 0] if isinstance(self.settings[name].initial, int | float) else entries

    @contextmanager
    def perturbed(self, rows: int | None = None, *, noise: bool = True, linearised: bool = False) -> Iterator[None]:
        """Let layers and losses see λ + ε inside the block, with ε ~ N(0, diag(σ²)) from torch's random numbers.

        Args:
            rows: number of examples, each with a perturbation of its own; ``None`` for one for all.
            noise: whether there is a perturbation at all.
            linearised: whether the model answers with its linearisation along ε.
        """
        if rows is not None:
            check_count("perturbed", "rows", rows, do="pass the number of examples in the batch")
        point = self.location + self._noise(rows) if noise else self.location
        before, self._point = self._point, _Point(point, point - self.location.detach(), linearised)
        try:
            yield
        finally:
            self._point = before

    def _noise(self, rows: int | None) -> Tensor:
        if rows is None or not self._any_per_example:
            return self.scales * torch.randn_like(self.location)
        drawn = torch.randn(rows, self.size, dtype=self.location.dtype, device=self.location.device)
        return self.scales * torch.where(self.per_example, drawn, drawn[:1])

    @property
    def linearised(self) -> bool:
        """Whether the model is to answer with its linearisation now."""
        return self._point is not None and self._point.linearised

    @contextmanager
    def linearising(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Let gates read zeros inside the block, and give those, a leaf that requires grad, and the perturbation."""
        if self._point is None or not self._point.linearised:
            raise RuntimeError("linearising outside of a linearised step")
        before, leaf = self._point, torch.zeros_like(self._point.shift, requires_grad=True)
        self._point = _Point(before.unconstrained, leaf)
        self._around = self.location.detach() + leaf
        try:
            yield leaf, before.shift.detach()
        finally:
            self._point, self._around = before, None

    def code(self, *, centred: bool) -> Tensor:
        """Return what the gates read now: of shape (h,), or (n, h) with a row for each example.

        Args:
            centred: whether they read λ + ε − stopgrad(λ) instead of λ + ε.
        """
        if self._point is None:
            return torch.zeros_like(self.location) if centred else self.location
        if self._point.linearised:
            raise InputError(
                passed="a call of a part of the model, outside of the model's own forward",
                expected="calls of the whole model, which are linearised",
                do="call model(...) in the training loss, and put what it is to do into its forward",
            )
        if centred:
            return self._point.shift
        return self._point.unconstrained if self._around is None else self._around

    def extra_repr(self) -> str:
        """Return the settings."""
        return "\n".join(f"{name}: {setting}" for name, setting in self.settings.items())


def _checked(hparams: object) -> dict[str, Hyperparameter]:
    if not isinstance(hparams, Mapping) or not hparams:
        raise InputError(
            passed=f"hparams={hparams!r}",
            expected="a mapping of names to hyperparameters, at least one",
            do='write Hyperparameters({"dropout": Hyperparameter(0.05, Logit(0, 0.9))})',
        )
    for name, setting in hparams.items():
        if not isinstance(setting, Hyperparameter):
            raise InputError(
                passed=f"hparams[{name!r}]={setting!r}, which has no domain",
                expected="a Hyperparameter, which says where it starts and which values it can take",
                do="write Hyperparameter(initial, domain) with Real(), Log(), Logit(), Integer() or Choice()",
            )
    return dict(hparams)
