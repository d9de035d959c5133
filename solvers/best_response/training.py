"""Self-tuning: a network, its response to the hyperparameters, and the hyperparameters learn in one run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.utils import _pytree

from hypergrad import guards, saved
from hypergrad.algorithm import check_finite
from hypergrad.data import Sampler
from hypergrad.errors import InputError, UnreachedError
from hypergrad.settings import check_count, check_number
from hypergrad.solvers.best_response.besides import Besides, LiveFace
from hypergrad.solvers.best_response.checks import check_optimizer, check_sampler, closure_of
from hypergrad.solvers.best_response.convert import BestResponse
from hypergrad.solvers.best_response.passes import apply, evaluating, gradients, guarded_buffers, seed_all, tensors_of

Loss = Callable[..., Tensor]
FORMAT = 1


@final
@dataclass(frozen=True)
class TuningStep:
    """What one step did.

    Attributes:
        number: steps made so far, this one included.
        phase: ``"train"`` or ``"valid"``.
        loss: the training or validation loss before the step, a 0-d tensor, without the entropy.
    """

    number: int
    phase: Literal["train", "valid"]
    loss: Tensor


def count_examples(batch: Any) -> int | None:
    """Return the length of the first tensor of a batch that has a dimension, ``None`` if there is none.

    >>> count_examples((torch.zeros(8, 3), torch.zeros(8)))
    8
    """
    tensors = (value for value in _pytree.tree_leaves(batch) if isinstance(value, Tensor) and value.dim())
    first = next(tensors, None)
    return None if first is None else first.shape[0]


@final
class SelfTuning:
    """Train a converted model and tune its hyperparameters in one run (Self-Tuning Networks, Delta-STN).

    With λ the unconstrained hyperparameters, r(λ) what the losses use, φ the converted model's parameters and
    ε ~ N(0, diag(σ²)) anew for each example,

    - a training step moves φ to lessen E_ε L_T(φ(λ + ε), r(λ + ε)), so that φ learns the response w*(λ) around λ;
    - a validation step moves λ, and s where σ = softplus(s) is tuned, to lessen E_ε L_V(φ(λ + ε)) − τ H(σ), with the
      entropy H = Σ log(σ √(2πe)). Without ``scales`` it moves λ to lessen L_V(φ(λ)).

    ``train_period`` training steps and ``valid_period`` validation steps alternate, after ``warmup`` training steps. A
    validation step sees the model in evaluation mode. dF/dλ is that of the response as learnt: biased until the
    response is right, and wrong where the layers cannot express it.

    A centred model (``convert(..., centred=True)``) makes this Delta-STN: in a training step the general weights get
    the gradient of the loss without a perturbation, and the response's parameters that of the loss of the linearised
    model, y(0) + J ε, at r(λ + ε).

    Args:
        model: what :func:`~hypergrad.solvers.best_response.convert` returned. The losses call it.
        train_loss: ``train_loss(batch)`` or ``train_loss()``, a scalar. It reads ``hparams["name"]`` for what acts on
            the loss or the data.
        valid_loss: ``valid_loss(batch)`` or ``valid_loss()``, a scalar, in which λ enters through the model only.
        train_data: where training batches come from.
        valid_data: where validation batches come from.
        weights: a torch optimizer of the model's parameters, or of some of them.
        hyperparameters: a torch optimizer of ``hparams.location``.
        scales: a torch optimizer of ``hparams.raw_scale``, ``None`` to hold the scales fixed.
        entropy_weight: τ, at least 0. Where the validation loss has the curvature k the scale goes to √(τ/k).
        train_period: training steps in a row, at least 1; the papers take 2 (STN) and 5 (Delta-STN).
        valid_period: validation steps in a row, at least 1.
        warmup: training steps before the first validation step, at least 0; the papers take 5 epochs.
        besides: :class:`hypergrad.Live` of the converted model, for hyperparameters of another kind, such as weights of
            examples: each validation step asks it for their hypergradient, on the next training batch and on its own,
            at λ without a perturbation. Give their tensors to ``hyperparameters`` as well, so that one outer step moves
            all of them.
        examples: ``examples(batch)``, the number of examples in a batch or ``None`` for one perturbation for all; by
            default the length of its first tensor.
        seed: seed of the perturbations and of all random numbers inside a step, which are new at every step. The
            random state outside stays as it is.

    Cost: a training step is one gradient of the training loss; for a centred model one more, and two reverse passes
    through the model that stay differentiable. A validation step is one gradient of the validation loss. A converted
    layer takes two passes of the plain one. No product with a Hessian, no unrolling. ``besides`` adds what its
    algorithm costs to a validation step.

    Raises:
        InputError: a model that was not converted, a loss, sampler or optimizer that does not fit, or a number out of
            range.
        UnreachedError: at a validation step: a loss that does not depend on the hyperparameters.
        NonFiniteError: NaN or infinity in a loss or gradient; no parameter moves then.

    Source: MacKay, Vicol, Lorraine, Duvenaud and Grosse, "Self-Tuning Networks" (ICLR 2019); Bae and Grosse,
    "Delta-STN" (NeurIPS 2020). Deviations: gates start shut and the response bias b1 at 1, so that a converted model
    behaves as before; there is no learnt scalar on the general weights; both gradients of a Delta-STN training step
    are taken at one point and applied in one step of the optimizer.

    Example:
        >>> import torch
        >>> from hypergrad import TensorSampler
        >>> from hypergrad.solvers.best_response import Hyperparameter, Hyperparameters, Log, SelfTuning, convert
        >>> hparams = Hyperparameters({"decay": Hyperparameter(1.0, Log(), per_example=False)})
        >>> model = convert(torch.nn.Linear(2, 1), hparams)
        >>> def train_loss(batch):
        ...     x, y = batch
        ...     return (model(x) - y).square().mean() + hparams["decay"] * model.module.weight.square().sum()
        >>> def valid_loss(batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        >>> x = torch.linspace(0, 40, 40).sin().reshape(20, 2)
        >>> train, valid = (TensorSampler(part, part.sum(1, keepdim=True), batch_size=5) for part in x.split(10))
        >>> tuning = SelfTuning(
        ...     model, train_loss, valid_loss, train, valid,
        ...     weights=torch.optim.SGD(model.parameters(), lr=0.1),
        ...     hyperparameters=torch.optim.Adam([hparams.location], lr=0.1),
        ... )
        >>> tuning.fit(300).phase
        'valid'
        >>> bool(hparams["decay"] < 1)
        True
    """

    def __init__(
        self,
        model: BestResponse,
        train_loss: Loss,
        valid_loss: Loss,
        train_data: Sampler,
        valid_data: Sampler,
        *,
        weights: torch.optim.Optimizer,
        hyperparameters: torch.optim.Optimizer,
        scales: torch.optim.Optimizer | None = None,
        entropy_weight: float = 1e-3,
        train_period: int = 2,
        valid_period: int = 1,
        warmup: int = 0,
        besides: LiveFace | None = None,
        examples: Callable[[Any], int | None] = count_examples,
        seed: int = 0,
    ) -> None:
        """Check what is passed; nothing is computed yet."""
        if not isinstance(model, BestResponse):
            raise InputError(
                passed=f"model of type {type(model).__name__}",
                expected="a model whose weights respond to the hyperparameters",
                do="pass what best_response.convert(model, hparams) returned, and call it in the losses",
            )
        for name, count, least in (("train_period", train_period, 1), ("valid_period", valid_period, 1)):
            check_count("SelfTuning", name, count, least=least, do=f"pass {name} steps in a row, at least {least}")
        check_count("SelfTuning", "warmup", warmup, least=0)
        check_count("SelfTuning", "seed", seed, least=0)
        check_number("SelfTuning", "entropy_weight", entropy_weight, least=0, below=float("inf"))
        self.model, self.hparams = model, model.hparams
        self._losses = {"train": closure_of("train_loss", train_loss), "valid": closure_of("valid_loss", valid_loss)}
        self._data = {
            "train": check_sampler("train_data", train_data),
            "valid": check_sampler("valid_data", valid_data),
        }
        if not callable(examples):
            raise InputError(f"SelfTuning(examples={examples!r})", "examples(batch) -> int", "leave it out")
        self._count = examples
        self._besides = None if besides is None else Besides(besides, model)
        self.weights, self.hyperparameters, self.scales = weights, hyperparameters, scales
        self.entropy_weight, self.seed, self.warmup = entropy_weight, seed, warmup
        self.train_period, self.valid_period = train_period, valid_period
        self.step_number = 0
        self._response = {id(parameter) for parameter in model.response_parameters()}
        self._check_optimizers()

    @property
    def phase(self) -> Literal["train", "valid"]:
        """What the next step is."""
        if self.step_number < self.warmup:
            return "train"
        place = (self.step_number - self.warmup) % (self.train_period + self.valid_period)
        return "train" if place < self.train_period else "valid"

    def step(self) -> TuningStep:
        """Make one training or validation step.

        Raises:
            NonFiniteError: NaN or infinity; parameters, buffers and samplers are as they were before.
        """
        phase = self.phase
        data = self._data[phase]
        positions, device = {name: part.state_dict() for name, part in self._data.items()}, self.hparams.location.device
        with guards.pinned_rng(device, autocast=True), torch.enable_grad():
            seed_all((self.seed * 1_000_003 + self.step_number) % 2**63, device)
            try:
                batch = data.draw()
                loss = self._train(batch) if phase == "train" else self._validate(batch)
            except BaseException:
                for name, part in self._data.items():
                    part.load_state_dict(positions[name])
                raise
        self.step_number += 1
        return TuningStep(self.step_number, phase, loss)

    def fit(self, steps: int) -> TuningStep:
        """Make a number of steps, at least 1, and return what the last one did."""
        check_count("fit", "steps", steps, do="pass the number of steps to make")
        for _ in range(steps - 1):
            self.step()
        return self.step()

    def state_dict(self) -> dict[str, Any]:
        """Return a snapshot of the whole run, ready for ``torch.save`` and a load with ``weights_only=True``.

        After :meth:`load_state_dict` a run goes on bit for bit.
        """
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {"format": FORMAT, "step_number": self.step_number, **copy.deepcopy(parts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a state that :meth:`state_dict` returned.

        Raises:
            InputError: a state of another run; everything stays as it was.
        """
        parts = self._parts()
        if not isinstance(state, Mapping) or set(state) != {"format", "step_number", *parts}:
            found = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise saved.unfit(f"with the entries {found}", f"{sorted({'format', 'step_number', *parts})}")
        if state["format"] != FORMAT:
            raise saved.unfit(f"of format {state['format']!r}", f"format {FORMAT}")
        check_count("load_state_dict", "step_number", state["step_number"], least=0)
        before = self.state_dict()
        try:
            for name, part in parts.items():
                saved.load_part(name, part.load_state_dict, copy.deepcopy(state[name]))
        except InputError:
            for name, part in parts.items():
                part.load_state_dict(before[name])
            raise
        self.step_number = state["step_number"]

    def _parts(self) -> dict[str, Any]:
        parts = {
            "model": self.model,
            "hparams": self.hparams,
            "weights": self.weights,
            "hyperparameters": self.hyperparameters,
            "scales": self.scales,
            "train_data": self._data["train"],
            "valid_data": self._data["valid"],
            "besides": self._besides,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _train(self, batch: Any) -> Tensor:
        rows = self._rows(batch)
        tuned = tensors_of(self.weights)
        with guarded_buffers(self.model):
            if not self.model.centred:
                with self.hparams.perturbed(rows):
                    loss = self._losses["train"](batch)
                grads = gradients("train_loss", loss, tuned)
            else:
                with self.hparams.perturbed(noise=False):
                    loss = self._losses["train"](batch)
                general = [parameter for parameter in tuned if id(parameter) not in self._response]
                grads = gradients("train_loss", loss, general)
                with guarded_buffers(self.model, keep=True):
                    with self.hparams.perturbed(rows, linearised=True):
                        linear = self._losses["train"](batch)
                    grads |= gradients("train_loss", linear, [p for p in tuned if id(p) in self._response])
            self._check_grads("train", loss, grads)
        apply([self.weights], grads)
        return loss.detach()

    def _validate(self, batch: Any) -> Tensor:
        tuning = self.scales is not None
        rows = self._rows(batch) if tuning else None
        with guarded_buffers(self.model, keep=True), evaluating(self.model):
            with self.hparams.perturbed(rows, noise=tuning):
                loss = self._losses["valid"](batch)
            objective = loss - self.entropy_weight * self.hparams.entropy().to(loss) if tuning else loss
            moved = [self.hparams.location, *([self.hparams.raw_scale] if tuning else [])]
            grads = gradients("valid_loss", objective, moved)
            if grads.get(self.hparams.location) is None:
                raise UnreachedError(
                    list(self.hparams.settings),
                    passed="valid_loss, which does not depend on the hyperparameters",
                    expected="a loss that calls the converted model, through which the hyperparameters enter",
                    do="call what best_response.convert returned in valid_loss, not the model before, with gradients",
                )
            self._check_grads("valid", loss, grads)
        if self._besides is not None:
            grads |= self._besides.gradients(self._data["train"].draw(), batch)
        apply([self.hyperparameters, *([self.scales] if self.scales is not None else [])], grads)
        return loss.detach()

    def _rows(self, batch: Any) -> int | None:
        rows = self._count(batch)
        if rows is not None:
            check_count("examples(batch)", "rows", rows, do="return the number of examples in the batch, or None")
        return rows

    def _check_grads(self, phase: str, loss: Tensor, grads: Mapping[Tensor, Tensor]) -> None:
        names = {id(value): name for name, value in self.model.named_parameters()}
        names |= {id(self.hparams.location): "location", id(self.hparams.raw_scale): "raw_scale"}
        found = {names.get(id(tensor), "a parameter"): grad for tensor, grad in grads.items()}
        when = f"at step {self.step_number}"
        check_finite("the loss", {phase: loss.detach()}, when=when)
        check_finite(f"the gradient of the {phase} loss with respect to", found, when=when)

    def _check_optimizers(self) -> None:
        others = [] if self._besides is None else self._besides.tensors
        wanted: dict[str, tuple[Any, list[Tensor], str]] = {
            "weights": (self.weights, list(self.model.parameters()), "parameters of the converted model"),
            "hyperparameters": (
                self.hyperparameters,
                [self.hparams.location, *others],
                "hparams.location, and nothing else"
                if self._besides is None
                else "hparams.location and besides.hparams",
            ),
            "scales": (self.scales, [self.hparams.raw_scale], "hparams.raw_scale, and nothing else"),
        }
        for name, (optimizer, tensors, expected) in wanted.items():
            if optimizer is None and name == "scales":
                continue
            check_optimizer(name, optimizer, tensors, expected)
        if not any(id(tensor) in self._response for tensor in tensors_of(self.weights)):
            raise InputError(
                passed="weights=, an optimizer of none of the response's parameters",
                expected="parameters of the converted model, with those of its response",
                do="build it after the conversion: weights=torch.optim.SGD(model.parameters(), lr=0.01)",
            )
