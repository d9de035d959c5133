"""The exact hypergradients that benchmarks compare with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.exact import (
    MOVE,
    Exact,
    Softmax,
    convnet,
    derivatives,
    extremes,
    logistic,
    made_up,
    optimum,
    penalties,
    ridge,
)
from benchmarks.problems import task


@pytest.fixture
def softmax() -> Softmax:
    return Softmax(made_up())


def test_the_hessian_of_softmax_is_that_of_autograd(softmax: Softmax) -> None:
    rng = np.random.default_rng(3)
    theta, logs = rng.standard_normal(softmax.shape), penalties("made up", "spread", softmax.shape)
    arrays = {**softmax.data, "params.weight": theta, "hparams.weight": logs}
    problem = task("logistic", arrays)
    # class by class, as the dense matrix has it
    columns = torch.from_numpy(theta.T.ravel().copy())
    inner = lambda flat: problem.inner({"weight": flat.view(theta.T.shape).T}, problem.hparams)  # noqa: E731
    expected = derivatives(inner, columns)[1].numpy()
    np.testing.assert_allclose(softmax.hessian(theta, logs), expected, rtol=1e-10, atol=1e-14)
    v = rng.standard_normal(softmax.shape)
    product = (expected @ v.T.ravel()).reshape(theta.T.shape).T
    np.testing.assert_allclose(softmax.product(theta, logs, v), product, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(softmax.factor(theta, logs)(product), v, rtol=1e-8)


def test_features_that_are_nowhere_are_left_out_of_the_factorisation() -> None:
    data = made_up()
    data["x"][:, 2] = 0.0
    softmax = Softmax(data)
    logs = penalties("made up", "spread", softmax.shape)
    theta, _ = optimum(softmax, logs)
    assert len(softmax.hessian(theta, logs)) == 7 * 3
    v = np.random.default_rng(0).standard_normal(softmax.shape)
    np.testing.assert_allclose(softmax.factor(theta, logs)(softmax.product(theta, logs, v)), v, rtol=1e-8)


@pytest.mark.parametrize("kind", ["spread", "equal"])
def test_a_hypergradient_of_softmax_regression_meets_central_differences(softmax: Softmax, kind: str) -> None:
    exact = logistic("made up", kind)
    logs = exact.arrays["hparams.weight"]
    direction = np.asarray(np.random.default_rng(5).standard_normal(logs.shape))

    def outer(amount: float) -> float:
        theta, _ = optimum(softmax, logs + amount * direction)
        p = softmax.probabilities(theta, "_valid")
        return float(-np.log(p[np.arange(len(p)), softmax.data["y_valid"]]).mean())

    slope = (outer(1e-4) - outer(-1e-4)) / 2e-4
    assert exact.answers[0] @ direction.ravel() == pytest.approx(slope, rel=1e-6)


def test_later_steps_move_penalties_against_the_hypergradients_sign(softmax: Softmax) -> None:
    exact = logistic("made up", "equal", steps=3)
    assert len(exact.answers) == 3
    first, second = exact.arrays["hparams.weight"], exact.arrays["later.1.hparams.weight"]
    np.testing.assert_allclose(second, first - MOVE * np.sign(exact.answers[0].reshape(first.shape)))
    theta = exact.arrays["later.2.params.weight"]
    assert np.abs(softmax.inner_gradient(theta, exact.arrays["later.2.hparams.weight"])).max() < 1e-14


def test_ridge_meets_its_optimum_and_central_differences() -> None:
    exact = ridge(small=True)
    problem = task("ridge", exact.arrays)
    theta = problem.params["weight"].requires_grad_()
    (gradient,) = torch.autograd.grad(problem.inner({"weight": theta}, problem.hparams), theta)
    assert gradient.abs().max() < 1e-14
    x, y = exact.arrays["x"], exact.arrays["y"]
    direction = np.asarray(np.random.default_rng(5).standard_normal(exact.arrays["hparams.weight"].shape))

    def outer(amount: float) -> float:
        logs = exact.arrays["hparams.weight"] + amount * direction
        found = np.stack(
            [np.linalg.solve(x.T @ x / len(x) + np.diag(np.exp(logs[:, c])), x.T @ y[:, c] / len(x)) for c in range(3)]
        )
        return float(problem.outer({"weight": torch.from_numpy(found.T)}, problem.hparams))

    slope = (outer(1e-4) - outer(-1e-4)) / 2e-4
    assert float((exact.answers[0] * direction.ravel()).sum()) == pytest.approx(slope, rel=1e-6)


def test_the_convnet_is_a_minimum_whose_hypergradient_autograd_confirms() -> None:
    pytest.importorskip("sklearn")
    exact = convnet(train=40, valid=20, width=1)
    problem = task("convnet", exact.arrays)
    params = {key: value.requires_grad_() for key, value in problem.params.items()}
    hparams = {key: value.requires_grad_() for key, value in problem.hparams.items()}
    gradient = torch.autograd.grad(problem.inner(params, hparams), list(params.values()), create_graph=True)
    assert max(float(part.detach().abs().max()) for part in gradient) < 1e-7
    flat = torch.cat([part.flatten() for part in gradient])
    rows = [torch.autograd.grad(entry, list(params.values()), retain_graph=True) for entry in flat]
    matrix = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    slope = torch.cat(
        [part.flatten() for part in torch.autograd.grad(problem.outer(params, hparams), [*params.values()])]
    )
    found = torch.autograd.grad(flat, list(hparams.values()), -torch.linalg.solve(matrix, slope))
    assert exact.error(torch.cat([part.flatten() for part in found]).numpy()) < 1e-9


def test_extremes_are_the_hessians_eigenvalues(softmax: Softmax) -> None:
    logs = penalties("made up", "spread", softmax.shape)
    theta, near = optimum(softmax, logs)
    values = np.linalg.eigvalsh(softmax.hessian(theta, logs))
    condition, top = extremes(softmax, theta, logs, near, steps=400)
    assert top == pytest.approx(values[-1], rel=1e-2)
    assert condition == pytest.approx(values[-1] / values[0], rel=2e-2)


def test_an_error_is_the_worst_of_the_steps_and_infinite_where_it_is_no_number() -> None:
    exact = Exact({}, [np.array([3.0, 4.0]), np.array([1.0, 0.0])], 1.0, 1.0)
    assert exact.error(np.array([3.0, 4.0, 1.0, 0.5])) == 0.5
    assert exact.error(np.array([3.0, np.nan, 1.0, 0.0])) == float("inf")
