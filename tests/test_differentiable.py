"""The autograd face: any training function, differentiable or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.testing import problems
from hypergrad.tree import Tree

DOUBLE = torch.float64
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR, dtype=DOUBLE)
Y = (X @ torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=DOUBLE) + torch.randn(60, generator=GENERATOR, dtype=DOUBLE) > 0).to(
    DOUBLE
)
START = {"w": torch.zeros(4, dtype=DOUBLE)}
loss = torch.nn.functional.binary_cross_entropy_with_logits


def outer(params: Tree) -> Tensor:
    return params["w"].pow(3).sum() + params["w"].square().sum()


def differences(value: Any, point: Tensor) -> Tensor:
    slopes = torch.zeros_like(point)
    for place in range(point.numel()):
        shift = torch.zeros_like(point)
        shift.view(-1)[place] = 1e-4
        with torch.no_grad():
            slopes.view(-1)[place] = (value(point + shift) - value(point - shift)) / 2e-4
    return slopes


def test_scikit_learn_logistic_regression() -> None:
    def fit(_: Tree, hparams: Tree) -> dict[str, Any]:
        model = LogisticRegression(C=0.5, tol=1e-12, max_iter=5000, fit_intercept=False)
        model.fit(X.numpy(), Y.numpy(), sample_weight=hparams["log_weight"].exp().numpy())
        return {"w": model.coef_[0]}

    def inner(params: Tree, hparams: Tree) -> Tensor:
        each = loss(X @ params["w"], Y, reduction="none")
        return (hparams["log_weight"].exp() * each).sum() + params["w"].square().sum()

    trained = hg.differentiable(fit, inner, linear=hg.CG(rtol=1e-12))
    point = torch.linspace(-1, 1, 60, dtype=DOUBLE).requires_grad_()
    outcome: Any = outer(trained(START, {"log_weight": point}))
    outcome.backward()
    expected = differences(lambda p: outer(trained(START, {"log_weight": p})), point.detach())
    assert point.grad is not None
    assert float((point.grad - expected).norm() / expected.norm()) < 1e-4


def test_scipy_l_bfgs() -> None:
    def inner(params: Tree, hparams: Tree) -> Tensor:
        return loss(X @ params["w"], Y) + (hparams["log_penalty"].exp() * params["w"].square()).sum()

    def fit(params: Tree, hparams: Tree) -> dict[str, Any]:
        penalty, x, y = hparams["log_penalty"].exp().numpy(), X.numpy(), Y.numpy()

        def value_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
            z = x @ w
            value = np.mean(np.logaddexp(0, z) - y * z) + penalty @ w**2
            return float(value), x.T @ (1 / (1 + np.exp(-z)) - y) / len(y) + 2 * penalty * w

        options = {"gtol": 1e-12, "ftol": 0.0, "maxiter": 2000}
        found = scipy.optimize.minimize(
            value_and_gradient, params["w"].numpy(), jac=True, method="L-BFGS-B", options=options
        )
        return {"w": found.x}

    trained = hg.differentiable(fit, inner, linear=hg.CG(rtol=1e-12))
    point = torch.tensor([-3.0, -2.0, -1.0, 0.0], dtype=DOUBLE).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: trained(START, {"log_penalty": p})["w"], (point,), eps=1e-4, atol=1e-5, fast_mode=False
    )


def closed_form_ridge(_: Tree, hparams: Tree) -> Tree:
    w: Tensor = torch.linalg.solve(X.mT @ X + torch.diag(hparams["penalty"]), X.mT @ Y)
    return {"w": w}


def ridge(params: Tree, hparams: Tree) -> Tensor:
    return 0.5 * (X @ params["w"] - Y).square().sum() + 0.5 * (hparams["penalty"] * params["w"].square()).sum()


def test_value_is_exactly_what_training_returns() -> None:
    point = {"penalty": torch.full((4,), 2.0, dtype=DOUBLE, requires_grad=True)}
    trained = hg.differentiable(closed_form_ridge, ridge)(START, point)
    plain = closed_form_ridge(START, {"penalty": point["penalty"].detach()})
    assert torch.equal(trained["w"], plain["w"])
    assert trained["w"].requires_grad


def test_penalty_apart_and_every_linear_solver_agree() -> None:
    grads = []
    data_only = lambda params, _: 0.5 * (X @ params["w"] - Y).square().sum()  # noqa: E731
    shrink = lambda params, hparams: 0.5 * (hparams["penalty"] * params["w"].square()).sum()  # noqa: E731
    for trained in (
        hg.differentiable(closed_form_ridge, ridge),
        hg.differentiable(closed_form_ridge, data_only, penalty=shrink),
        hg.differentiable(closed_form_ridge, ridge, linear=hg.MINRES(rtol=1e-10)),
        hg.differentiable(closed_form_ridge, ridge, linear=hg.Dense()),
    ):
        penalty = torch.full((4,), 2.0, dtype=DOUBLE, requires_grad=True)
        outcome: Any = outer(trained(START, {"penalty": penalty}))
        outcome.backward()
        assert penalty.grad is not None
        grads.append(penalty.grad)
    for other in grads[1:]:
        assert float((other - grads[0]).norm() / grads[0].norm()) < 1e-5


def test_hyperparameters_hidden_in_a_closure_are_found_by_the_graph() -> None:
    """The penalties come from a small network that nobody lists; both its tensors get gradients."""
    torch.manual_seed(0)
    network = nn.Linear(3, 4).double()
    features = torch.ones(3, dtype=DOUBLE)

    def penalties() -> Tensor:
        return network(features).exp()  # type: ignore[no-any-return]

    def fit(_: Tree, __: Tree) -> Tree:
        return closed_form_ridge({}, {"penalty": penalties().detach()})

    def inner(params: Tree, hparams: Tree) -> Tensor:
        return ridge(params, {"penalty": penalties()}) + 0 * hparams["none"]

    trained = hg.differentiable(fit, inner, linear=hg.CG(rtol=1e-12))
    outcome: Any = outer(trained(START, {"none": torch.zeros((), dtype=DOUBLE)}))
    outcome.backward()
    direct = penalties().detach().requires_grad_()
    value: Any = outer(closed_form_ridge({}, {"penalty": direct}))
    value.backward()
    expected = torch.autograd.grad(penalties(), [network.weight, network.bias], direct.grad)
    for parameter, wanted in zip((network.weight, network.bias), expected, strict=True):
        assert parameter.grad is not None
        assert float((parameter.grad - wanted).norm() / wanted.norm()) < 1e-6


def test_hyperparameters_may_be_functions_of_others() -> None:
    raw = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    trained = hg.differentiable(closed_form_ridge, ridge, linear=hg.CG(rtol=1e-12))

    def value(number: Tensor) -> Tensor:
        return outer(trained(START, {"penalty": number.exp().expand(4)}))

    assert torch.autograd.gradcheck(value, (raw,), eps=1e-5, atol=1e-6)


def test_one_result_may_be_used_many_times() -> None:
    penalty = torch.full((4,), 2.0, dtype=DOUBLE, requires_grad=True)
    w = hg.differentiable(closed_form_ridge, ridge, linear=hg.Dense())(START, {"penalty": penalty})["w"]
    rows = torch.stack([torch.autograd.grad(w[place], penalty, retain_graph=True)[0] for place in range(4)])
    hessian = X.mT @ X + 2 * torch.eye(4, dtype=DOUBLE)
    expected: Tensor = -torch.linalg.solve(hessian, torch.diag(w.detach()))
    assert float((rows - expected).abs().max()) < 1e-10


def test_batches_reach_the_objective() -> None:
    def fit(_: Tree, hparams: Tree) -> Tree:
        return {"w": hparams["x"] * 3}

    def inner(params: Tree, hparams: Tree, batch: Tensor) -> Tensor:
        return (params["w"] - batch * hparams["x"]).square().sum()

    x = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    w = hg.differentiable(fit, inner)({"w": torch.zeros(2, dtype=DOUBLE)}, {"x": x}, torch.tensor(3.0, dtype=DOUBLE))[
        "w"
    ]
    assert torch.allclose(torch.autograd.grad(w.sum(), x)[0], torch.full((2,), 3.0, dtype=DOUBLE))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at it itself
def test_compiled_caller_runs_it_eagerly() -> None:
    trained = hg.differentiable(closed_form_ridge, ridge, linear=hg.CG(rtol=1e-12))

    def value(penalty: Tensor) -> Tensor:
        return outer(trained(START, {"penalty": penalty})).sin() * 2

    grads = []
    for function in (value, torch.compile(value, backend="eager")):
        penalty = torch.full((4,), 2.0, dtype=DOUBLE, requires_grad=True)
        outcome: Any = function(penalty)
        outcome.backward()
        assert penalty.grad is not None
        grads.append(penalty.grad)
    assert torch.allclose(grads[0], grads[1])


def test_solve_trains_and_attaches() -> None:
    known = problems.logistic()
    point = known.hparams["log_penalty"].clone().requires_grad_()
    algorithm = hg.Implicit(hg.CG(rtol=1e-12), inner=hg.LBFGS(tolerance=1e-11))
    params = hg.solve(known.problem, known.params, {"log_penalty": point}, algorithm)
    value: Any = known.problem.outer_value(params, {"log_penalty": point})
    value.backward()
    assert point.grad is not None
    assert float((point.grad - known.hypergradient()["log_penalty"]).norm()) < 1e-9


def test_ridge_of_scikit_learn_as_a_layer_inside_a_network() -> None:
    """Features are made by a network, fitted by scikit-learn, and the network is trained through the fit."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()

    def fit(_: Tree, hparams: Tree) -> dict[str, Any]:
        model = Ridge(alpha=1.0, fit_intercept=False, tol=1e-12).fit(hparams["z"].numpy(), Y.numpy())
        return {"w": model.coef_}

    def inner(params: Tree, hparams: Tree) -> Tensor:
        return (hparams["z"] @ params["w"] - Y).square().sum() + params["w"].square().sum()

    trained = hg.differentiable(fit, inner, linear=hg.CG(rtol=1e-12))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    values = []
    for _ in range(40):
        z = network(X)
        value: Any = (z @ trained({"w": torch.zeros(3, dtype=DOUBLE)}, {"z": z})["w"] - Y).square().mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.6 * values[0]


def test_nothing_is_recorded_under_no_grad() -> None:
    with torch.no_grad():
        w = hg.differentiable(closed_form_ridge, ridge)(START, {"penalty": torch.ones(4, dtype=DOUBLE)})["w"]
    assert not w.requires_grad


@pytest.mark.parametrize("differ", [1, 3])
def test_wrong_shapes_are_refused(differ: int) -> None:
    trained = hg.differentiable(lambda params, hparams: {"w": torch.zeros(differ)}, ridge)
    with pytest.raises(hg.errors.TreeError, match=r"reshape"):
        trained(START, {"penalty": torch.ones(4, dtype=DOUBLE)})
