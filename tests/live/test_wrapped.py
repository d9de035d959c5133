"""Ordinary things around a model that could make a hypergradient silently wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as Quantised

import hypergrad as hg
from hypergrad.errors import CurvatureWarning, TreeError, WrappedModuleError
from tests.bad_input.common import refused
from tests.live.common import EXACT, X, Y, decay, hypergradient, losses, net, shrinkage

UNROLLED = hg.Unrolled(3, hg.GradientDescent(lr=0.1))
each_algorithm = pytest.mark.parametrize("algorithm", [EXACT, UNROLLED], ids=["implicit", "unrolled"])


def compiled(thing: Any) -> Any:
    return torch.compile(thing, backend="aot_eager")


@each_algorithm
def test_compiled_closures_are_right(algorithm: Any) -> None:
    model, weight = net(), decay(-2)
    expected = hypergradient(model, weight, algorithm)
    train, valid = losses(model, weight)
    found = hypergradient(model, weight, algorithm, inner=compiled(train), outer=compiled(valid))
    assert torch.allclose(found, expected, rtol=1e-10)


@each_algorithm
def test_a_compiled_module_that_trains_and_is_called_in_the_losses_is_right(algorithm: Any) -> None:
    model, weight = net(), decay(-2)
    expected = hypergradient(model, weight, algorithm)
    fast = compiled(model)
    fast(X).sum().backward()
    model.zero_grad()
    train, valid = losses(model, weight, fast)
    assert torch.allclose(hypergradient(model, weight, algorithm, inner=train, outer=valid), expected, rtol=1e-10)


@pytest.fixture
def ddp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[nn.Module], nn.Module]]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield nn.parallel.DistributedDataParallel
    finally:
        torch.distributed.destroy_process_group()


class Experiment:
    def __init__(self, wrapped: nn.Module) -> None:
        self.parts = {"net": wrapped}

    def loss(self) -> Tensor:
        value: Tensor = (self.parts["net"](X) - Y).square().mean()
        return value


def test_ddp_that_a_closure_calls_is_refused_where_it_is_passed(ddp: Callable[[nn.Module], nn.Module]) -> None:
    model, weight = net(), decay(-2)
    wrapped = ddp(model)
    train, valid = losses(model, weight)

    def called() -> Tensor:
        return train() + wrapped(X).square().mean()  # type: ignore[no-any-return]

    words = {"passed": "calls wrapped of type DistributedDataParallel", "do": "model.module"}
    with refused(WrappedModuleError, model, {"w": weight}, **words):
        hg.Live(model, [weight], called, valid, EXACT)
    with refused(WrappedModuleError, model, {"w": weight}, passed=("outer", "self.parts['net']")):
        hg.Live(model, [weight], train, Experiment(wrapped).loss, EXACT)


HIDDEN: dict[str, nn.Module] = {}


def test_a_wrapped_module_that_is_found_when_it_is_called_is_refused(ddp: Callable[[nn.Module], nn.Module]) -> None:
    model, weight = net(), decay(-2)
    secret = iter([ddp(model)])
    train, valid = losses(model, weight)

    def called() -> Tensor:
        HIDDEN.setdefault("net", nn.Identity())
        fetched = HIDDEN["net"] if not secret.__length_hint__() else next(secret)  # type: ignore[attr-defined]
        HIDDEN["net"] = fetched
        return train() + fetched(X).square().mean()  # type: ignore[no-any-return]

    hyper = hg.Live(model, [weight], called, valid, EXACT)
    try:
        with pytest.raises(WrappedModuleError, match="calls a module of type DistributedDataParallel"):
            hyper.backward()
    finally:
        HIDDEN.clear()


def test_data_parallel_in_a_closure_is_refused() -> None:
    model, weight = net(), decay(-2)
    wrapped = nn.DataParallel(model)
    with refused(WrappedModuleError, model, {"w": weight}, passed=("inner", "DataParallel"), do="model.module"):
        hg.Live(model, [weight], losses(model, weight, wrapped)[0], lambda: weight, EXACT)


class DetachedSquare(torch.autograd.Function):
    """Right to first order; its curvature is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = 2 * x.detach() * grads[0]
        return slope


class Square(DetachedSquare):
    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = 2 * x * grads[0]
        return slope


def bent(model: nn.Module, function: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x) + function(model(x))


def test_a_custom_function_whose_backward_loses_curvature_is_named() -> None:
    model, weight = net(), decay(-2)
    train, valid = losses(model, weight, bent(model, DetachedSquare.apply))
    hyper = hg.Live(model, [weight], train, valid, EXACT)
    with pytest.warns(CurvatureWarning, match=r"DetachedSquare are .*% off .*ctx.saved_tensors"):
        hyper.backward()
    assert hyper.probe_cost == hg.Cost(inner_gradients=7, products=1, outer_gradients=2, outer_values=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_custom_function_with_a_whole_backward_is_right_and_gives_no_alarm(dtype: torch.dtype) -> None:
    found = []
    for function in (Square.apply, torch.square):
        model, weight = net().to(dtype), torch.full((), -2.0, dtype=dtype, requires_grad=True)
        call = bent(model, function)

        def train(model: Any = model, weight: Tensor = weight, call: Any = call) -> Tensor:
            error: Tensor = (call(X.to(weight)) - Y.to(weight)).square().mean() + weight.exp() * shrinkage(model)
            return error

        def valid(weight: Tensor = weight, call: Any = call) -> Tensor:
            error: Tensor = (call(X.to(weight)) - 2 * Y.to(weight)).square().mean()
            return error

        found.append(hypergradient(model, weight, inner=lambda train=train: train(), outer=lambda valid=valid: valid()))
    assert torch.allclose(found[0], found[1], rtol=1e-4)


def test_first_order_methods_do_not_mind_the_curvature() -> None:
    model, weight = net(), decay(-2)
    train, valid = losses(model, weight, bent(model, DetachedSquare.apply))
    hg.Live(model, [weight], train, valid, hg.F2SA(step_size=0.01)).backward()


def test_a_check_names_the_function_that_loses_curvature() -> None:
    def inner(params: Any, hparams: Any) -> Tensor:
        function: Any = DetachedSquare.apply
        loss: Tensor = (function(params["w"]) - hparams["x"]).square().sum() + params["w"].square().sum()
        return loss

    problem = hg.Problem(inner, lambda params, _: params["w"].square().sum())
    start = {"w": torch.ones(2, dtype=torch.float64)}, {"x": torch.full((2,), 2.0, dtype=torch.float64)}
    result = hg.check(problem, *start, hg.Implicit(hg.Dense(), inner=hg.LBFGS(steps=200)), verbose=False)
    assert result.verdict == "disagrees"
    assert "DetachedSquare" in result.cause


class Scaled(nn.Module):
    """A model that holds its own hyperparameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.arch = nn.ParameterDict({"weight": nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def of_itself(model: Scaled) -> tuple[Any, Any]:
    def train() -> Tensor:
        loss: Tensor = (model(X) - Y).square().mean() + model.arch["weight"].exp() * shrinkage(model.body)
        return loss

    return train, lambda: (model(X) - 2 * Y).square().mean()


@pytest.mark.parametrize("given", ["list", "dict", "module"])
@each_algorithm
def test_the_models_own_parameters_can_be_hyperparameters(given: str, algorithm: Any) -> None:
    model = Scaled()
    own: Any = model.arch["weight"]
    hparams: Any = {"list": [own], "dict": {"w": own}, "module": model.arch}[given]
    hg.Live(model, hparams, *of_itself(model), algorithm).backward()
    apart, weight = net(), decay(-2)
    assert torch.equal(own.grad, hypergradient(apart, weight, algorithm))
    assert all(p.grad is None for p in model.body.parameters())


def test_the_whole_model_as_hyperparameters_leaves_nothing_to_train() -> None:
    model = Scaled()
    with refused(TreeError, model, passed="no tensors"):
        hg.Live(model, model, *of_itself(model), EXACT).backward()


SHARED: dict[str, tuple[Callable[[nn.Module, Tensor], Any], tuple[str, ...]]] = {
    "twice": (lambda _, weight: [weight, weight], ("hparams['0']", "hparams['1']")),
    "view of a parameter": (
        lambda model, weight: {"w": weight, "v": next(model.parameters()).data[0].requires_grad_()},
        ("hparams['v']", "parameter '0.weight'"),
    ),
    "data of a parameter": (
        lambda model, weight: {"w": weight, "v": next(model.parameters()).detach().requires_grad_()},
        ("hparams['v']", "parameter '0.weight'"),
    ),
    "view of another": (
        lambda _, weight: {"w": weight, "v": weight.data.view(1).requires_grad_()},
        ("hparams['w']", "hparams['v']"),
    ),
}


@pytest.mark.parametrize("fault", SHARED)
def test_hyperparameters_that_share_memory_are_refused(fault: str) -> None:
    model, weight = net(), decay(-2)
    make, names = SHARED[fault]
    with refused(TreeError, model, {"w": weight}, passed=("shares memory", *names), do="copy"):
        hg.Live(model, make(model, weight), *losses(model, weight), EXACT)


def test_neighbours_in_one_buffer_share_nothing() -> None:
    model, flat = net(), torch.zeros(3, dtype=torch.float64)
    first, second = (flat[place].detach().requires_grad_() for place in (0, 2))
    train, valid = losses(model, first)
    hg.Live(model, [first, second], lambda: train() + second * shrinkage(model), valid, EXACT).backward()
    assert second.grad is not None


class Held(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value, requires_grad=value.is_floating_point() or value.is_complex())

    def forward(self, x: Tensor) -> Tensor:
        return x


ODD: dict[str, tuple[Tensor, str, str]] = {
    "complex": (torch.ones(2, dtype=torch.complex128), "complex128", "view_as_real"),
    "sparse": (torch.eye(2, dtype=torch.float64).to_sparse(), "sparse_coo", ".to_dense()"),
}


@pytest.mark.parametrize("kind", ODD)
def test_complex_and_sparse_parameters_are_refused(kind: str) -> None:
    value, passed, remedy = ODD[kind]
    model, weight = Held(value), decay()
    with pytest.raises(TreeError, match=passed) as caught:
        hg.Live(model, [weight], lambda: 2 * weight, lambda: weight, EXACT).backward()
    assert remedy in caught.value.do
    assert weight.grad is None


@pytest.mark.filterwarnings("ignore:.*quantized:UserWarning")
def test_a_quantised_tensor_is_refused() -> None:
    value = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    problem = hg.Problem(lambda params, hparams: params["w"].sum(), lambda params, hparams: params["w"].sum())
    with pytest.raises(TreeError, match="qint8") as caught:
        hg.hypergradient(problem, {"w": value}, {"x": torch.ones(1)}, EXACT)
    assert "dequantize" in caught.value.do


@pytest.mark.filterwarnings("ignore:.*quant:UserWarning", "ignore:.*quant:DeprecationWarning")
def test_quantised_layers_without_parameters_are_ordinary() -> None:
    """What a frozen quantised layer computes is data to the rest."""
    linear = Quantised(2, 2)
    features = linear(X.float()).double().detach()
    model, weight = net(), decay(-2)
    train, valid = losses(model, weight, lambda _: model(features))
    assert torch.isfinite(hypergradient(model, weight, inner=train, outer=valid))


def test_one_tensor_as_parameter_and_as_hyperparameter_of_functions_is_two_arguments() -> None:
    shared = torch.tensor([0.5, 1.0], dtype=torch.float64)
    problem = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum(),
        lambda params, hparams: params["w"].square().sum(),
    )
    found = hg.hypergradient(problem, {"w": shared}, {"x": shared}, hg.Implicit(hg.CG())).grads["x"]
    assert torch.allclose(found, 2 * shared)
