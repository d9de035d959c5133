"""Hyperparameters of another kind beside those of a best response: a game with a known answer, resumption, refusals."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.solvers.best_response import Hyperparameter, Hyperparameters, Real, SelfTuning, convert
from tests.bad_input.common import refused
from tests.best_response.test_training import D, normal

R = 0.1
HALF = normal(4, 4)
C, B = HALF @ HALF.T / 4 + torch.eye(4, dtype=D), normal(4, 3, seed=1)
E, T = normal(4, seed=2), normal(4, seed=3)
ALGORITHM = hg.Implicit(hg.CG(rtol=1e-10), stationarity=math.inf)


def linear() -> nn.Module:
    module: nn.Module = nn.utils.skip_init(nn.Linear, 1, 4, dtype=D)
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.1)
    return module


def game(*, batches: Any = None, own: bool = True) -> tuple[SelfTuning, Hyperparameters, Tensor]:
    """g = ½ yᵀCy − yᵀ(Bλ + e + z), f = ½|y − t|² + R/2 (|λ|² + |z|²): λ by the response, z by the implicit function."""
    hparams = Hyperparameters({"x": Hyperparameter([0.0, 0.0, 0.0], Real(), scale=0.5)}, dtype=D)
    model, z = convert(linear(), hparams, centred=True), torch.zeros(4, dtype=D, requires_grad=True)

    def train_loss(batch: Tensor) -> Tensor:
        y, push = model(batch), hparams["x"] @ B.T + E + z
        value: Tensor = (0.5 * ((y @ C) * y).sum(-1) - (y * push).sum(-1)).mean()
        return value

    def valid_loss(batch: Tensor) -> Tensor:
        value: Tensor = 0.5 * (model(batch) - T).square().sum(-1).mean()
        return value + R / 2 * (hparams.unconstrained("x").square().sum() + z.square().sum())

    data = batches or hg.Fixed(torch.zeros(8, 1, dtype=D))
    other = model if own else linear()
    tuning = SelfTuning(
        model,
        train_loss,
        valid_loss,
        data,
        data,
        weights=torch.optim.SGD(model.parameters(), lr=0.2),
        hyperparameters=torch.optim.SGD([hparams.location, z], lr=0.3),
        besides=hg.Live(other, {"z": z}, train_loss, valid_loss, ALGORITHM),
        train_period=5,
    )
    return tuning, hparams, z


@pytest.mark.filterwarnings("ignore::hypergrad.errors.ReachWarning")
def test_one_outer_step_moves_both_kinds_to_the_optimum() -> None:
    tuning, hparams, z = game()
    tuning.fit(6 * 450)
    slope = torch.linalg.solve(C, torch.cat([B, torch.eye(4, dtype=D)], dim=1))
    best = torch.linalg.solve(slope.T @ slope + R * torch.eye(7, dtype=D), slope.T @ (T - torch.linalg.solve(C, E)))
    found = torch.cat([hparams.location.detach(), z.detach()])
    assert float((found - best).norm() / best.norm()) < 1e-6
    assert z.grad is None, "the gradients are the optimizer's for the length of a step"


@pytest.mark.filterwarnings("ignore::hypergrad.errors.ReachWarning")
def test_a_resumed_run_goes_on_bit_for_bit() -> None:
    def batches() -> hg.TensorSampler:
        return hg.TensorSampler(normal(12, 1, seed=5), batch_size=4)

    class Rows:
        """Batches that are tensors, not tuples of one."""

        def __init__(self) -> None:
            self.inner = batches()

        def draw(self) -> Tensor:
            (rows,) = self.inner.draw()
            return rows

        def full(self) -> Tensor:
            (rows,) = self.inner.full()
            return rows

        def state_dict(self) -> dict[str, Any]:
            return self.inner.state_dict()

        def load_state_dict(self, state: Any) -> None:
            self.inner.load_state_dict(state)

    whole, _, expected = game(batches=Rows())
    whole.fit(40)
    first, _, _ = game(batches=Rows())
    first.fit(17)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second, hparams, z = game(batches=Rows())
    second.load_state_dict(torch.load(file, weights_only=True))
    second.fit(23)
    assert torch.equal(z, expected)
    assert torch.equal(hparams.location, whole.hparams.location)


def test_a_face_of_another_model_is_refused() -> None:
    with refused(hg.errors.InputError, passed="besides=Live", expected="same converted", do="hypergrad.Live(model"):
        game(own=False)


def test_a_failed_step_leaves_batches_and_tensors() -> None:
    tuning, hparams, z = game()
    tuning.fit(5)
    location = hparams.location.detach().clone()

    def failing(*_: Any) -> None:
        raise ZeroDivisionError

    assert tuning.phase == "valid"
    tuning._besides.live.backward = failing  # type: ignore[method-assign, union-attr]
    with pytest.raises(ZeroDivisionError):
        tuning.step()
    assert tuning.phase == "valid"
    assert torch.equal(hparams.location, location)
    assert not bool(z.any())
