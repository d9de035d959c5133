"""Self-tuning runs: known answers of games, the scales' balance, the two phases, and exact resumption."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.solvers.best_response import (
    Dropout,
    Hyperparameter,
    Hyperparameters,
    Integer,
    Logit,
    Real,
    SelfTuning,
    WeightResponse,
    convert,
)
from tests.bad_input.common import unchanged

D = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def quadratic_game(*, centred: bool, scale: float, cycles: int) -> tuple[float, float]:
    """Play g = ½ yᵀCy − yᵀ(Bλ + e), f = ½|y − t|² + R/2 |λ|² and return the relative errors of dy*/dλ and λ."""
    half = normal(4, 4)
    C, B = half @ half.T / 4 + torch.eye(4, dtype=D), normal(4, 3, seed=1)
    e, t, R = normal(4, seed=2), normal(4, seed=3), 0.1
    hparams = Hyperparameters({"x": Hyperparameter([0.0, 0.0, 0.0], Real(), scale=scale)}, dtype=D)
    model = convert(nn.Linear(1, 4, dtype=D), hparams, centred=centred)

    def train_loss(batch: Tensor) -> Tensor:
        y, push = model(batch), hparams["x"] @ B.T + e
        value: Tensor = (0.5 * ((y @ C) * y).sum(-1) - (y * push).sum(-1)).mean()
        return value

    def valid_loss(batch: Tensor) -> Tensor:
        value: Tensor = 0.5 * (model(batch) - t).square().sum(-1).mean()
        return value + R / 2 * hparams.unconstrained("x").square().sum()

    data = hg.Fixed(torch.zeros(8, 1, dtype=D))
    weights = torch.optim.SGD(model.parameters(), lr=0.2)
    outer = torch.optim.SGD([hparams.location], lr=0.3)
    tuning = SelfTuning(
        model, train_loss, valid_loss, data, data, weights=weights, hyperparameters=outer, train_period=5
    )
    tuning.fit(6 * cycles)
    layer: Any = model.module
    assert isinstance(layer, WeightResponse)
    found = layer.bias_response[:, None] * layer.bias_gate.slope  # type: ignore[index, union-attr]
    slope = torch.linalg.solve(C, B)
    best = torch.linalg.solve(slope.T @ slope + R * torch.eye(3, dtype=D), slope.T @ (t - torch.linalg.solve(C, e)))
    errors = (found - slope).norm() / slope.norm(), (hparams.location - best).norm() / best.norm()
    return float(errors[0].detach()), float(errors[1].detach())


@pytest.mark.parametrize("centred", [False, True], ids=["stn", "delta-stn"])
def test_a_quadratic_game_is_solved_with_its_response(centred: bool) -> None:
    """dy*/dλ = C⁻¹B and the bilevel optimum, both to 1e-6."""
    slope, optimum = quadratic_game(centred=centred, scale=0.5, cycles=350)
    assert slope < 1e-6
    assert optimum < 1e-6


@pytest.mark.parametrize("centred", [False, True], ids=["stn", "delta-stn"])
def test_without_perturbations_the_response_stays_unknown(centred: bool) -> None:
    """With σ = 1e-6 the response is not identified and λ does not arrive: what dropped sampling would look like."""
    slope, optimum = quadratic_game(centred=centred, scale=1e-6, cycles=100)
    assert 0.85 < slope < 1.05
    assert optimum > 0.5


@pytest.mark.parametrize("start", [0.1, 0.04])
def test_a_scale_settles_where_the_entropy_balances_the_curvature(start: float) -> None:
    """σ → √(τ/k) = 0.0632456 for τ = 1e-2 and k = 2.5; the drawn noise has its exact second moment by construction."""
    hparams = Hyperparameters({"x": Hyperparameter(0.7, Real(), scale=start)}, dtype=D)
    model = convert(nn.Linear(1, 1, dtype=D), hparams, centred=True)
    layer: Any = model.module
    with torch.no_grad():
        layer.general.bias.zero_()
        layer.bias_gate.slope.fill_(1)

    def valid_loss(batch: Tensor) -> Tensor:
        noise = ((hparams.unconstrained("x") - hparams.location) / hparams.scales).detach()
        value: Tensor = 2.5 / 2 * model(batch).square().mean() / noise.square().mean()
        return value

    data = hg.Fixed(torch.zeros(64, 1, dtype=D))
    tuning = SelfTuning(
        model,
        lambda batch: model(batch).mean(),
        valid_loss,
        data,
        data,
        weights=torch.optim.SGD(model.parameters(), lr=0.0),
        hyperparameters=torch.optim.SGD([hparams.location], lr=0.0),
        scales=torch.optim.SGD([hparams.raw_scale], lr=20.0),
        entropy_weight=1e-2,
        train_period=1,
    )
    tuning.fit(2 * 100)
    assert abs(float(hparams.scales.detach()) - (1e-2 / 2.5) ** 0.5) < 1e-9


class Net(nn.Module):
    """A net with all that a step could move: dropout, batch statistics, a whole number."""

    def __init__(self, hparams: Hyperparameters) -> None:
        super().__init__()
        self.body, self.norm, self.drop = nn.Linear(4, 8), nn.BatchNorm1d(8), Dropout(hparams, "rate")
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.head(self.drop(self.norm(self.body(x)).tanh()))
        return value


def run(
    *,
    centred: bool = False,
    tuned: bool = True,
    spoil: Callable[[str, Tensor], Tensor] = lambda phase, loss: loss,
    sees: Callable[[str, Any], None] = lambda phase, model: None,
    **options: Any,
) -> SelfTuning:
    torch.manual_seed(0)
    settings = {"rate": Hyperparameter(0.2, Logit(0, 0.9)), "shift": Hyperparameter(2, Integer(0, 4))}
    hparams = Hyperparameters(settings, dtype=D)
    model = convert(Net(hparams).double(), hparams, centred=centred)
    x, y = normal(40, 4), normal(40, 1, seed=1)

    def train_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        sees("train", model)
        shift = hparams["shift"].reshape(-1, 1)
        return spoil("train", (model(batch[0] + 0.01 * shift) - batch[1]).square().mean())

    def valid_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        sees("valid", model)
        return spoil("valid", (model(batch[0]) - batch[1]).square().mean())

    return SelfTuning(
        model,
        train_loss,
        valid_loss,
        hg.TensorSampler(x[:24], y[:24], batch_size=8),
        hg.TensorSampler(x[24:], y[24:], batch_size=8),
        weights=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        hyperparameters=torch.optim.Adam([hparams.location], lr=0.01),
        scales=torch.optim.RMSprop([hparams.raw_scale], lr=0.01) if tuned else None,
        **{"warmup": 3, **options},
    )


def everything(tuning: SelfTuning) -> list[Tensor]:
    parts = [*tuning.model.state_dict().values(), *tuning.hparams.state_dict().values()]
    return [value.clone() for value in parts]


both = pytest.mark.parametrize("centred", [False, True], ids=["stn", "delta-stn"])


def test_phases_alternate_after_the_warm_up() -> None:
    tuning, seen = run(warmup=3, train_period=2, valid_period=1), []
    for number in range(1, 10):
        phase = tuning.phase
        step = tuning.step()
        assert (step.number, step.phase) == (number, phase)
        seen.append(phase[0])
    assert "".join(seen) == "ttt" + "ttv" * 2
    assert "".join(run(warmup=0, train_period=1, valid_period=3).phase[0] for _ in range(1)) == "t"
    tuning, seen = run(warmup=0, train_period=1, valid_period=3), []
    for _ in range(6):
        seen.append(tuning.step().phase[0])
    assert "".join(seen) == "tvvvtv"


@both
@pytest.mark.parametrize("tuned", [False, True])
def test_each_phase_moves_what_it_should(centred: bool, tuned: bool) -> None:
    """Training the weights, validation λ and, if they are tuned, the scales; buffers move in training only."""
    modes: list[tuple[str, bool]] = []
    tuning = run(
        centred=centred, tuned=tuned, warmup=1, sees=lambda phase, model: modes.append((phase, model.module.training))
    )
    for _ in range(7):
        hparams = [tuning.hparams.location.detach().clone(), tuning.hparams.raw_scale.detach().clone()]
        weights = [value.detach().clone() for value in tuning.model.parameters()]
        buffers = [value.clone() for value in tuning.model.buffers()]
        phase = tuning.step().phase
        still = [torch.equal(a, b) for a, b in zip(tuning.model.parameters(), weights, strict=True)]
        assert torch.equal(tuning.hparams.location, hparams[0]) == (phase == "train")
        assert torch.equal(tuning.hparams.raw_scale, hparams[1]) == (phase == "train" or not tuned)
        assert all(still) == (phase == "valid")
        counts = [int(new - old) for new, old in zip(tuning.model.buffers(), buffers, strict=True) if not old.dim()]
        assert counts == [int(phase == "train")]
    assert set(modes) == {("train", True), ("valid", False)}
    assert tuning.model.module.training


@both
def test_a_step_leaves_grads_and_random_numbers_as_they_were(centred: bool) -> None:
    tuning = run(centred=centred, warmup=1)
    for tensor in (*tuning.model.parameters(), *tuning.hparams.parameters()):
        tensor.grad = torch.ones_like(tensor)
    state = torch.get_rng_state()
    tuning.fit(4)
    assert torch.equal(torch.get_rng_state(), state)
    for tensor in (*tuning.model.parameters(), *tuning.hparams.parameters()):
        assert torch.equal(tensor.grad, torch.ones_like(tensor))  # type: ignore[arg-type]


@both
def test_a_resumed_run_goes_on_bit_for_bit(centred: bool) -> None:
    for stop in (2, 5, 6):
        one, other = run(centred=centred), run(centred=centred)
        one.fit(stop)
        file = io.BytesIO()
        torch.save(one.state_dict(), file)
        losses = [one.step().loss for _ in range(8)]
        torch.rand(3)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert [float(other.step().loss) for _ in range(8)] == [float(loss) for loss in losses]
        assert all(torch.equal(a, b) for a, b in zip(everything(one), everything(other), strict=True))


def test_a_saved_state_is_a_snapshot() -> None:
    tuning = run()
    state = tuning.state_dict()
    before = {name: value.clone() for name, value in state["model"].items()}
    tuning.fit(6)
    assert all(torch.equal(value, before[name]) for name, value in state["model"].items())
    assert state["step_number"] == 0


def test_perturbations_are_new_at_every_step_and_follow_the_seed() -> None:
    losses = [[float(run(seed=seed).step().loss)] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    drawn: list[Tensor] = []
    tuning = run(sees=lambda phase, model: drawn.append(model.hparams.unconstrained("rate").detach()))
    tuning.fit(2)
    assert drawn[0].shape == (8,)
    assert not torch.equal(*drawn)


def test_validation_is_not_perturbed_unless_scales_are_tuned() -> None:
    for tuned in (False, True):
        shapes: list[tuple[str, int]] = []

        def look(phase: str, model: Any, shapes: list[tuple[str, int]] = shapes) -> None:
            shapes.append((phase, model.hparams["rate"].dim()))

        run(tuned=tuned, warmup=0, sees=look).fit(3)
        assert shapes == [("train", 1), ("train", 1), ("valid", int(tuned))]


def test_delta_training_gives_each_part_its_own_gradient() -> None:
    """General weights: the loss without a perturbation. Response: that of the linearised model. Both at one point."""
    hparams = Hyperparameters({"x": Hyperparameter([0.2, -0.4], Real(), scale=0.8)}, dtype=D)
    model = convert(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double(), hparams, centred=True)
    with torch.no_grad():
        for parameter in model.response_parameters():
            parameter.copy_(normal(*parameter.shape))
    batch, noise = normal(6, 3), normal(6, 2, seed=4)

    def train_loss(x: Tensor) -> Tensor:
        value: Tensor = (model(x) - hparams["x"]).square().mean()
        return value

    before = [p.detach().clone() for p in (*model.general_parameters(), *model.response_parameters())]
    expected = torch.autograd.grad((model(batch) - hparams["x"]).square().mean(), model.general_parameters())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hyperparameters, "_noise", lambda self, rows: noise)
        with hparams.perturbed(6, linearised=True):
            loss = train_loss(batch)
        expected += torch.autograd.grad(loss, model.response_parameters())
        tuning = SelfTuning(
            model,
            train_loss,
            train_loss,
            hg.Fixed(batch),
            hg.Fixed(batch),
            weights=torch.optim.SGD(model.parameters(), lr=1.0),
            hyperparameters=torch.optim.SGD([hparams.location], lr=0.1),
        )
        tuning.step()
    after = [*model.general_parameters(), *model.response_parameters()]
    for old, new, slope in zip(before, after, expected, strict=True):
        assert torch.allclose(new, old - slope, rtol=0, atol=1e-12)


@both
@pytest.mark.parametrize("phase", ["train", "valid"])
def test_nan_moves_nothing(centred: bool, phase: str) -> None:
    wrong = {"on": False}
    tuning = run(
        centred=centred,
        warmup=0,
        spoil=lambda now, loss: loss * float("nan") if wrong["on"] and now == phase else loss,
    )
    tuning.fit(2 if phase == "valid" else 1)
    before, wrong["on"] = everything(tuning), True
    position = tuning.state_dict()
    with (
        unchanged(tuning.hparams),
        pytest.raises(hg.errors.NonFiniteError, match=f"'{phase}'"),
    ):
        tuning.step()
    assert all(torch.equal(a, b) for a, b in zip(before, everything(tuning), strict=True))
    assert [tuning.state_dict()[name] for name in ("train_data", "valid_data", "step_number")] == [
        position[name] for name in ("train_data", "valid_data", "step_number")
    ]
    wrong["on"] = False
    again = run(centred=centred, warmup=0)
    again.fit(2 if phase == "valid" else 1)
    assert float(tuning.step().loss) == float(again.step().loss)


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.AdamW, torch.optim.Adagrad]
)
def test_any_torch_optimizer_serves(kind: Any) -> None:
    tuning = run(warmup=0)
    tuning.weights = kind(tuning.model.parameters(), lr=0.01)
    tuning.hyperparameters = kind([tuning.hparams.location], lr=0.01)
    tuning.scales = kind([tuning.hparams.raw_scale], lr=0.01)
    before = everything(tuning)
    tuning.fit(6)
    assert all(bool(torch.isfinite(value).all()) for value in everything(tuning))
    assert not all(torch.equal(a, b) for a, b in zip(before, everything(tuning), strict=True))


@pytest.mark.slow
def test_a_tuned_dropout_rate_reaches_what_a_grid_of_rates_reaches() -> None:
    """Digits with wrong labels: from the rate 0.05 one run ends within 5% of the best of six runs with fixed rates."""
    from sklearn.datasets import load_digits

    from examples import self_tuning

    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(x))
    train, valid = order[:400], order[400:1000]
    given = y[train].clone()
    given[:120] = torch.randint(10, (120,))

    def plain(rate: float) -> float:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Dropout(rate), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        sampler, losses = hg.TensorSampler(x[train], given, batch_size=100), []
        for step in range(1, 2501):
            rows, labels = sampler.draw()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(rows), labels).backward()
            optimizer.step()
            if step % 85 == 0:
                with torch.no_grad():
                    losses.append(float(nn.functional.cross_entropy(model.eval()(x[valid]), y[valid])))
                model.train()
        return sum(losses[-5:]) / 5

    grid = {rate: plain(rate) for rate in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)}
    reached = self_tuning.main()
    assert min(grid.values()) < 0.95 * grid[0.05], "a problem on which the rate matters"
    assert reached <= 1.05 * min(grid.values()), f"{reached} against {grid}"
