"""Layers that respond to hyperparameters: the exact gate, nothing changed at first, one response for each example."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypergrad.solvers.best_response import (
    BestResponse,
    Choice,
    Domain,
    Dropout,
    Hyperparameter,
    Hyperparameters,
    Integer,
    Log,
    Logit,
    NormResponse,
    Real,
    ResponseLayer,
    WeightResponse,
    convert,
)

D = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def two(*, per_example: bool = True, scale: float = 0.5) -> Hyperparameters:
    settings = {
        "a": Hyperparameter(0.3, Real(), scale=scale, per_example=per_example),
        "b": Hyperparameter([0.1, 0.7], Logit(), scale=scale, per_example=per_example),
    }
    return Hyperparameters(settings, dtype=D)


def stirred(model: nn.Module) -> Any:
    """Give every parameter a random value, so that no gate is shut."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=100 + number))
    return model


def test_a_sigmoid_gate_is_the_exact_response_of_ridge_regression() -> None:
    """Vᵀw*(λ) = sigmoid(−λ + 2 log d − log N) ⊙ s0, to 1e-12 for λ from −6 to 4, a λ for each example."""
    n, m = 30, 5
    x, t = normal(n, m), normal(n, seed=1)
    left, d, right = torch.linalg.svd(x, full_matrices=False)
    hparams = Hyperparameters({"decay": Hyperparameter(1.0, Log())}, dtype=D)
    layer = WeightResponse(nn.Linear(m, m, bias=False, dtype=D), hparams, "sigmoid")
    least_squares: Any = (left.T @ t) / d
    general: Any = layer.general
    response: Any = layer.response
    offset = layer.weight_gate.offset
    assert offset is not None
    with torch.no_grad():
        general.weight.zero_()
        response.weight.copy_(least_squares[:, None] * right)
        layer.weight_gate.slope.fill_(-1)
        offset.copy_(2 * d.log() - torch.tensor(float(n), dtype=D).log())
    for value in torch.linspace(-6, 4, 21, dtype=D).tolist():
        with torch.no_grad():
            hparams.location.fill_(value)
        with hparams.perturbed(n), torch.no_grad():
            decays, predictions = hparams["decay"], layer(x).sum(-1)
        for row, (decay, found) in enumerate(zip(decays, predictions, strict=True)):
            weights = torch.linalg.solve(x.T @ x / n + decay * torch.eye(m, dtype=D), x.T @ t / n)
            assert abs(float(x[row] @ weights - found)) <= 1e-12
        weights = torch.linalg.solve(x.T @ x / n + hparams["decay"] * torch.eye(m, dtype=D), x.T @ t / n)
        gates = layer.weight_gate().detach() * least_squares
        assert float((right @ weights - gates).abs().max()) <= 1e-12


class Everything(nn.Module):
    def __init__(self, hparams: Hyperparameters) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4, padding_idx=0)
        self.volume = nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2))
        self.plane = nn.Sequential(nn.Conv2d(2, 4, 2, padding=1, padding_mode="circular"), nn.BatchNorm2d(4))
        self.line = nn.Sequential(nn.Conv1d(4, 4, 3, groups=2, bias=False), nn.BatchNorm1d(4), nn.GroupNorm(2, 4))
        self.drop = Dropout(hparams, "rate")
        self.norm = nn.LayerNorm((2, 4))
        self.flat = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, words: Tensor, x: Tensor) -> Tensor:
        x = self.plane(self.volume(x).flatten(2, 3)).flatten(2).tanh()
        x = self.drop(self.line(x)).mean(-1)[:, None] + self.words(words)
        value: Tensor = self.head(self.flat(self.norm(x).mean(1)))
        return value


def everything() -> tuple[Everything, Hyperparameters, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    hparams = Hyperparameters({"rate": Hyperparameter(0.2, Logit(0, 0.9)), "a": Hyperparameter(0.4, Real())}, dtype=D)
    model = Everything(hparams).double()
    return model, hparams, (torch.randint(7, (5, 2)), normal(5, 1, 3, 3, 3))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"centred": True}, {"gate": "sigmoid"}], ids=["linear", "centred", "sigmoid"])
def test_a_converted_model_behaves_as_before(options: Any, training: bool) -> None:
    """To 1e-12, with the same running statistics, in both modes, perturbed or not; the model itself is untouched."""
    model, hparams, inputs = everything()
    model.train(training)
    before = copy.deepcopy(model.state_dict())
    converted = convert(model, hparams, **options)
    torch.manual_seed(5)
    expected = model(*inputs)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    model.load_state_dict(before)
    torch.manual_seed(5)
    assert float((converted(*inputs) - expected).detach().abs().max()) <= 1e-12
    assert buffers
    found = {name.replace("module.", "").replace("normalize.", ""): value for name, value in converted.named_buffers()}
    assert set(found) == set(buffers)
    assert all(float((found[name].double() - value).abs().max()) <= 1e-12 for name, value in buffers.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    converted.eval()
    with hparams.perturbed(5):
        perturbed = converted(*inputs)
    assert float((perturbed - converted(*inputs)).detach().abs().max()) <= 1e-12


def test_every_layer_of_a_model_with_all_kinds_is_replaced_and_gets_its_gradients() -> None:
    model, hparams, inputs = everything()
    converted = convert(model, hparams)
    replaced = [part for part in converted.modules() if isinstance(part, ResponseLayer)]
    assert len(replaced) == 11
    names = {id(parameter): name for name, parameter in converted.named_parameters()}
    general, response = converted.general_parameters(), converted.response_parameters()
    assert {id(p) for p in general} | {id(p) for p in response} == set(names)
    assert len(general) == len(list(model.parameters()))
    with hparams.perturbed(5):
        grads = torch.autograd.grad(converted(*inputs).square().sum(), response, allow_unused=True)
    slopes = [g for p, g in zip(response, grads, strict=True) if names[id(p)].endswith("gate.slope")]
    assert len(slopes) == 20
    assert all(g is not None and float(g.abs().max()) > 0 for g in slopes)


PLAIN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (5, 4)),
    "linear-of-sequences": (lambda: nn.Linear(4, 3), (5, 2, 4)),
    "linear-without-bias": (lambda: nn.Linear(4, 3, bias=False), (5, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 2), (5, 2, 4)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 2, groups=2, stride=2), (5, 2, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(1, 3, 2), (5, 1, 3, 3, 3)),
    "layer-norm": (lambda: nn.LayerNorm((2, 3)), (5, 4, 2, 3)),
    "group-norm": (lambda: nn.GroupNorm(2, 4), (5, 4, 3)),
    "batch-norm": (lambda: nn.BatchNorm1d(4).eval(), (5, 4)),
    "batch-norm-2d": (lambda: nn.BatchNorm2d(4).eval(), (5, 4, 2, 2)),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_each_example_sees_the_layer_at_its_own_hyperparameters(kind: str) -> None:
    """W(λ) = W0 + V λ ⊙ W1 by rows, written out for a plain layer and each example alone."""
    make, shape = PLAIN[kind]
    plain, hparams = make().double(), two()
    layer: Any = stirred(convert(plain, hparams)).module
    x = normal(*shape, seed=9)
    with hparams.perturbed(5):
        found = layer(x)
        points = torch.cat([hparams.unconstrained("a")[:, None], hparams.unconstrained("b")], 1).detach()
    assert float((points[0] - points[1]).abs().min()) > 0
    norm = isinstance(layer, NormResponse)
    if not norm:
        w0, w1, b0 = layer.general.weight, layer.response.weight, layer.general.bias
    else:
        w0, w1, b0 = layer.general_weight, layer.weight_response, layer.general_bias
    for row, point in enumerate(points):
        gates = (layer.weight_gate.slope * point).sum(-1)
        spread = gates.reshape(w0.shape) if norm else gates.view(-1, *[1] * (w0.dim() - 1))
        now = {"weight": w0 + spread * w1}
        if b0 is not None:
            gates = (layer.bias_gate.slope * point).sum(-1).reshape(b0.shape)
            now["bias"] = b0 + gates * layer.bias_response
        alone = torch.func.functional_call(plain, now, (x[row : row + 1],))
        assert torch.allclose(found[row], alone[0], rtol=0, atol=1e-12)


def test_an_embedding_responds_in_every_column_and_for_each_example() -> None:
    hparams, words = two(), torch.tensor([[1, 2], [1, 0], [3, 3]])
    layer: Any = stirred(convert(nn.Embedding(4, 6, dtype=D), hparams)).module
    with hparams.perturbed(3):
        found, a, b = layer(words), hparams.unconstrained("a"), hparams.unconstrained("b")
    for row in range(3):
        gates = layer.weight_gate.slope @ torch.cat([a[row : row + 1], b[row]])
        table = layer.general.weight + gates * layer.response.weight
        assert torch.allclose(found[row], table[words[row]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [*PLAIN, "embedding"])
def test_weights_can_be_read_where_all_examples_share_them(kind: str) -> None:
    make, shape = PLAIN.get(kind, (lambda: nn.Embedding(7, 4), (5, 2)))
    plain, hparams = make().double(), two(per_example=False)
    layer: Any = stirred(convert(plain, hparams)).module
    x = torch.arange(10).view(5, 2) % 7 if kind == "embedding" else normal(*shape, seed=9)
    with hparams.perturbed(5):
        now = {"weight": layer.weight} | ({"bias": layer.bias} if layer.bias_gate is not None else {})
        assert torch.allclose(layer(x), torch.func.functional_call(plain, now, (x,)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("centred", [False, True])
def test_the_linearised_answer_and_its_gradients_are_those_of_the_derivative_by_hand(centred: bool) -> None:
    """y(0) + J ε for W0' tanh(W0 x + b0) + b0', written out; both to 1e-12."""
    hparams = two()
    plain = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    model: BestResponse = stirred(convert(plain, hparams, centred=centred))
    if not centred:
        with torch.no_grad():
            hparams.location.zero_()  # around λ = 0 both kinds of gates are shut
    x = normal(5, 4, seed=3)
    torch.manual_seed(1)
    with hparams.perturbed(5, linearised=True):
        found = model(x)
    torch.manual_seed(1)
    noise = hparams.scales.detach() * torch.randn(5, 3, dtype=D)
    first, last = model.module[0], model.module[2]  # type: ignore[index]

    def shift(layer: Any, value: Tensor) -> Tensor:
        moved: Tensor = (noise @ layer.weight_gate.slope.T) * (value @ layer.response.weight.T)
        shifted: Tensor = (noise @ layer.bias_gate.slope.T) * layer.bias_response
        return moved + shifted

    hidden = (x @ first.general.weight.T + first.general.bias).tanh()
    slope = (1 - hidden.square()) * shift(first, x)
    expected = hidden @ last.general.weight.T + last.general.bias
    expected = expected + slope @ last.general.weight.T + shift(last, hidden)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    response = model.response_parameters()
    pairs = [torch.autograd.grad(value.pow(3).sum(), response) for value in (found, expected)]
    for mine, theirs in zip(*pairs, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) <= 1e-12


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.norm(self.first(x))
        x = nn.functional.scaled_dot_product_attention(x, x, x) + x.softmax(-1)
        return {"out": self.last(x), "note": "kept", "mask": torch.ones(2)}


def test_the_linearisation_goes_through_attention_and_batch_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against central differences of the model itself, to the differences' own accuracy of 1e-7."""
    hparams, x, noise = two(), normal(5, 3, 4), normal(5, 3, seed=7)
    model = convert(Mixed().double(), hparams, centred=True)
    with torch.no_grad():
        for parameter in model.response_parameters():
            parameter.copy_(normal(*parameter.shape))
    size = 1.0
    monkeypatch.setattr(Hyperparameters, "_noise", lambda self, rows: size * noise)
    with hparams.perturbed(5, linearised=True):
        found = model(x)
    assert found["note"] == "kept"
    assert torch.equal(found["mask"], torch.ones(2))
    answers = []
    for size in (1e-6, -1e-6):  # noqa: B007
        with hparams.perturbed(5):
            answers.append(model(x)["out"])
    expected = model(x)["out"] + (answers[0] - answers[1]) / 2e-6
    assert torch.allclose(found["out"], expected, rtol=0, atol=1e-7)


def test_dropout_takes_the_rate_of_each_example_and_none_in_evaluation() -> None:
    hparams = Hyperparameters({"rate": Hyperparameter(0.3, Logit(0, 0.9), scale=1.0)}, dtype=D)
    layer, x = Dropout(hparams, "rate"), torch.ones(4, 40_000, dtype=D)
    torch.manual_seed(0)
    with hparams.perturbed(4):
        out, rates = layer(x), hparams["rate"]
    dropped = (out == 0).double().mean(1)
    assert float(rates.max() - rates.min()) > 0.1
    deviation = (rates * (1 - rates) / 40_000).sqrt()
    assert bool(((dropped - rates).abs() < 4 * deviation).all())
    for row, rate in zip(out, rates, strict=True):
        assert torch.allclose(row[row != 0], 1 / (1 - rate), rtol=0, atol=1e-12)
    whole = Dropout(hparams, "rate", channels=True)(torch.ones(3, 50, 4, dtype=D))
    assert 0 < float((whole == 0).double().mean()) < 1
    assert bool(((whole == whole[..., :1]).all(-1)).all())
    assert layer.eval()(x) is x


VALUES: dict[str, tuple[Domain, list[float]]] = {
    "real": (Real(), [-3.0, 0.0, 2.5]),
    "log": (Log(), [1e-6, 1.0, 50.0]),
    "logit": (Logit(-1, 0.9), [-0.9, 0.0, 0.89]),
    "integer": (Integer(-2, 24), [-2, 0, 7, 24]),
    "choice": (Choice((8, 16, 64)), [8, 16, 64]),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_domain_gives_back_the_value_it_starts_from(kind: str) -> None:
    domain, values = VALUES[kind]
    found = domain.value(torch.tensor([domain.inverse(value) for value in values], dtype=D))
    assert torch.allclose(found, torch.tensor(values, dtype=D), rtol=1e-12, atol=1e-12)


def test_whole_numbers_have_equal_shares_of_the_stretched_sigmoid_and_both_ends() -> None:
    places = torch.linspace(0.0005, 0.9995, 1000, dtype=D)
    counts = torch.bincount(Integer(0, 4).value(places.logit()).long())
    assert counts.tolist() == [200] * 5
    picked = Choice((1.5, 8, 3)).value(places.logit())
    assert [int((picked == option).sum()) for option in (1.5, 8, 3)] == [333, 334, 333]
    assert Integer(0, 24).value(torch.tensor([-80.0, 80.0])).tolist() == [0, 24]


def test_layers_see_the_continuous_value_of_a_whole_number() -> None:
    hparams = Hyperparameters({"holes": Hyperparameter(1, Integer(0, 4), scale=0.5)}, dtype=D)
    with hparams.perturbed(64):
        used, seen = hparams["holes"], hparams.code(centred=False)[:, 0]
    assert set(used.tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert len(set(used.tolist())) > 1
    assert len(set(seen.tolist())) == 64
    assert torch.equal(used, (5 * seen.sigmoid()).floor())
    assert not used.requires_grad


def test_a_perturbation_has_its_scale_and_only_some_hyperparameters_have_one_for_each_example() -> None:
    settings = {"each": Hyperparameter(0.0, Real(), 0.5), "shared": Hyperparameter(0.0, Real(), 2.0, per_example=False)}
    hparams = Hyperparameters(settings, dtype=D)
    assert torch.allclose(hparams.scales, torch.tensor([0.5, 2.0], dtype=D), rtol=1e-12, atol=0)
    torch.manual_seed(0)
    with hparams.perturbed(20_000):
        each, shared = hparams["each"], hparams["shared"]
    assert abs(float(each.std()) - 0.5) < 0.01
    assert abs(float(each.mean())) < 0.015
    assert len(set(shared.tolist())) == 1
    draws = []
    for _ in range(4000):
        with hparams.perturbed():
            draws.append(hparams["shared"])
            assert hparams["each"].dim() == 0
    assert abs(float(torch.stack(draws).std()) - 2) < 0.1


def test_the_entropy_is_that_of_the_normal_distribution() -> None:
    hparams = two(scale=0.7)
    expected = 3 * torch.distributions.Normal(torch.tensor(0.0, dtype=D), 0.7).entropy()
    assert torch.allclose(hparams.entropy(), expected, rtol=0, atol=1e-12)


def test_what_is_skipped_frozen_or_shared_keeps_its_ways() -> None:
    shared, hparams = nn.Linear(4, 4), two()
    model = nn.ModuleDict(
        {"one": shared, "two": shared, "rnn": nn.LSTM(4, 4), "frozen": nn.Linear(4, 4), "named": nn.Linear(4, 4)}
    )
    model["frozen"].requires_grad_(requires_grad=False)
    converted: Any = convert(model, hparams, skip=["named", nn.LSTM]).module
    assert isinstance(converted["one"], WeightResponse)
    assert converted["one"] is converted["two"]
    assert [type(converted[name]) for name in ("rnn", "frozen", "named")] == [nn.LSTM, nn.Linear, nn.Linear]


def test_conversion_is_repeatable_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    made: list[Any] = [convert(nn.utils.skip_init(nn.Linear, 3, 2), two(), seed=seed).module for seed in (4, 4, 5)]
    assert torch.equal(state, torch.get_rng_state())
    weights = [layer.response.weight for layer in made]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
