"""What the live face refuses, and what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
from hypergrad.errors import (
    InputError,
    NonFiniteError,
    ObjectiveError,
    ReachWarning,
    TreeError,
    UnreachedError,
    UnsupportedError,
    WrappedModuleError,
)
from tests.bad_input.common import NAN, ZEROTH_ORDER, inner, refused, unchanged


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.head(self.norm(self.body(x)).tanh())
        return value


X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2).sin()


Y = X.sum(1, keepdim=True).cos()


IDENTITY = hg.Implicit(hg.Identity(0.1), stationarity=math.inf)


def live(
    model: Any, hparams: Any, algorithm: Any = IDENTITY, *, train: Callable[..., Any] | None = None, **options: Any
) -> hg.Live:
    weight = next(iter(hparams.parameters() if isinstance(hparams, nn.Module) else hparams))

    def train_loss() -> Tensor:
        shrink: Tensor = weight.exp().sum() * sum(p.square().sum() for p in model.parameters())
        loss: Tensor = (model(X) - Y).square().mean()
        return loss + shrink

    def valid_loss() -> Tensor:
        value: Tensor = (model(X) - 2 * Y).square().mean()
        return value

    return hg.Live(model, hparams, train or train_loss, valid_loss, algorithm, **options)


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def decay() -> Tensor:
    return torch.zeros((), dtype=torch.float64, requires_grad=True)


def test_a_live_module_keeps_its_buffers_grads_and_random_state() -> None:
    model, weight = net(), decay()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with unchanged(model):
        live(model, [weight]).backward()
    assert weight.grad is not None


def test_a_live_model_wrapped_in_data_parallel_is_refused() -> None:
    model, weight = nn.DataParallel(net()), decay()
    with refused(WrappedModuleError, model, {"w": weight}, passed="DataParallel", do="pass model.module"):
        live(model, [weight])


def test_a_live_model_wrapped_in_ddp_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, weight = nn.parallel.DistributedDataParallel(net()), decay()
        with refused(
            WrappedModuleError, model, {"w": weight}, passed="DistributedDataParallel", do="pass model.module"
        ):
            live(model, [weight])
    finally:
        torch.distributed.destroy_process_group()


def test_a_compiled_live_model_is_refused() -> None:
    model: Any = torch.compile(net(), backend="eager")
    weight = decay()
    with refused(WrappedModuleError, model, {"w": weight}, passed="OptimizedModule", do="model._orig_mod"):
        live(model, [weight])


def test_a_compiled_part_of_a_live_model_is_named() -> None:
    model = net()
    model.body = torch.compile(model.body, backend="eager")  # type: ignore[assignment]
    weight = decay()
    with refused(WrappedModuleError, model, {"w": weight}, passed=("model.body", "OptimizedModule")):
        live(model, [weight])


def test_a_live_model_that_is_no_module_is_refused() -> None:
    weight = decay()
    with refused(
        InputError, {"w": weight}, passed="function", expected="torch.nn.Module", do="hypergrad.hypergradient"
    ):
        hg.Live(inner, [weight], lambda: weight, lambda: weight, IDENTITY)  # type: ignore[arg-type]


BAD_LIVE_HPARAMS: dict[str, tuple[Callable[[], Any], tuple[str, ...], tuple[str, ...]]] = {
    "no-grad": (
        lambda: [torch.zeros(2, dtype=torch.float64)],
        ("'0'", "does not require grad"),
        ("requires_grad=True",),
    ),
    "no-leaf": (lambda: {"w": decay() * 2}, ("'w'", "no leaf tensor"), ("that very tensor",)),
    "bare-tensor": (lambda: torch.zeros(3, dtype=torch.float64, requires_grad=True), ("Tensor",), ("[",)),
    "integer": (lambda: [torch.zeros(2, dtype=torch.int64)], ("'0'", "int64"), (".float()",)),
    "number": (lambda: {"w": 0.5}, ("'w'", "float"), ("torch.as_tensor",)),
    "empty": (list, ("no tensors",), ()),
    "frozen-module": (lambda: nn.Linear(1, 1).requires_grad_(requires_grad=False), ("no tensors",), ()),
}


@pytest.mark.parametrize("fault", BAD_LIVE_HPARAMS)
def test_live_hyperparameters_are_leaf_tensors_that_require_grad(fault: str) -> None:
    make, passed, do = BAD_LIVE_HPARAMS[fault]
    model, hparams = net(), make()
    with refused(TreeError, model, passed=("hparams", *passed), do=do):
        hg.Live(model, hparams, lambda: model(X).mean(), lambda: model(X).mean(), IDENTITY)


@pytest.mark.parametrize("kind", ["dtype", "device"])
def test_live_hyperparameters_share_the_models_dtype_and_device(kind: str) -> None:
    model = net()
    weight = torch.zeros((), dtype=torch.float32, requires_grad=True)
    if kind == "device":
        weight = torch.zeros((), dtype=torch.float64, device="meta", requires_grad=True)
    with refused(TreeError, model, {"w": weight}, passed="float32" if kind == "dtype" else "meta", do=".to("):
        live(model, [weight]).backward()


ELSEWHERE = [
    ZEROTH_ORDER,
    *(hg.SRBA(step_size=0.1), hg.FSLA(step_size=0.1), hg.MRBO(step_size=0.1), hg.SUSTAIN(step_size=0.1)),
    *(hg.VRBO(step_size=0.1), hg.PZOBO(step_size=0.1), hg.BSVRBv1(), hg.BSVRBv2()),
]


@pytest.mark.parametrize("algorithm", ELSEWHERE, ids=lambda algorithm: type(algorithm).__name__)
def test_what_evaluates_elsewhere_wants_live_hyperparameters_that_can_be_replaced(algorithm: Any) -> None:
    model, weight = net(), decay()
    name = type(algorithm).__name__
    with refused(UnsupportedError, model, {"w": weight}, passed=name, do=("torch.nn.Module", "Implicit")):
        live(model, [weight], algorithm)


@pytest.mark.parametrize(
    "algorithm",
    [
        *(hg.SOBA(step_size=0.1), hg.SABA(step_size=0.1), hg.AmIGO(step_size=0.1), hg.StocBiO(step_size=0.1)),
        *(hg.TTSA(step_size=0.1), hg.F2SA(step_size=0.1), hg.BOME(step_size=0.1)),
        hg.BOREP(step_size=0.1, linear_step_size=0.1),
    ],
    ids=lambda algorithm: type(algorithm).__name__,
)
def test_what_stays_at_the_present_hyperparameters_sees_through_a_closure(algorithm: Any) -> None:
    """The same gradient as for hyperparameters in a module, which are replaced during the call."""
    model, weight = net(), decay()
    module = nn.ParameterDict({"w": nn.Parameter(torch.zeros((), dtype=torch.float64))})
    for hyper in (live(model, [weight], algorithm), live(model, module, algorithm)):
        hyper.backward()
        hyper.backward()
    assert weight.grad is not None
    assert float(weight.grad) != 0
    assert module["w"].grad is not None
    assert torch.equal(weight.grad, module["w"].grad)


@pytest.mark.parametrize("algorithm", [hg.CG(), hg.Implicit, None], ids=["linear solver", "class", "none"])
def test_what_is_no_algorithm_is_refused_by_the_live_face(algorithm: Any) -> None:
    model, weight = net(), decay()
    with refused(InputError, model, {"w": weight}, passed="algorithm", do="Implicit"):
        live(model, [weight], algorithm)


def test_zeroth_order_moves_the_hyperparameters_of_a_module() -> None:
    model = net()
    hparams = nn.ParameterDict({"w": nn.Parameter(torch.zeros((), dtype=torch.float64))})

    def train() -> Tensor:
        value: Tensor = (model(X) - Y).square().mean() + hparams["w"].exp() * model.head.weight.square().sum()
        return value

    with unchanged(model):
        live(model, hparams, ZEROTH_ORDER, train=train).backward()
    assert hparams["w"].grad is not None
    assert float(hparams["w"].grad) != 0


@pytest.mark.parametrize("role", ["inner", "outer", "penalty"])
def test_a_live_loss_with_another_signature_is_refused_where_it_is_passed(role: str) -> None:
    model, weight = net(), decay()
    losses: dict[str, Any] = {"inner": lambda: weight, "outer": lambda: weight, role: lambda a, b: weight}
    with refused(InputError, model, {"w": weight}, passed=f"{role}=", expected=f"{role}(batch)", do="close over"):
        hg.Live(model, [weight], algorithm=IDENTITY, **losses)


@pytest.mark.parametrize("role", ["inner", "outer"])
def test_a_live_loss_that_is_no_function_is_refused_where_it_is_passed(role: str) -> None:
    model, weight = net(), decay()
    losses: dict[str, Any] = {"inner": lambda: weight, "outer": lambda: weight, role: weight.detach()}
    with refused(InputError, model, {"w": weight}, passed=f"{role}=", expected="function"):
        hg.Live(model, [weight], algorithm=IDENTITY, **losses)


def test_a_live_loss_that_is_no_scalar_leaves_the_random_state() -> None:
    model, weight = net(), decay()
    hyper = live(model, [weight], train=lambda: nn.functional.dropout(model(X), 0.5))
    with refused(ObjectiveError, model, {"w": weight}, passed=("inner", "(6, 1)"), do=".mean()"):
        hyper.backward()


def test_a_live_hyperparameter_that_no_loss_uses_is_named_and_gets_no_grad() -> None:
    model, weight, ghost = net(), decay(), decay()
    with refused(UnreachedError, model, {"w": weight, "g": ghost}, passed="['1']"):
        live(model, [weight, ghost]).backward()


def test_nan_leaves_the_grads_of_live_hyperparameters_alone() -> None:
    model, weight = net(), decay()
    weight.grad = torch.tensor(7.0, dtype=torch.float64)
    hyper = live(model, [weight], train=lambda: (model(X) * weight).mean() * NAN)
    with refused(NonFiniteError, model, {"w": weight}, passed="'body.weight'"):
        hyper.backward()


def test_an_unused_parameter_of_a_live_model_is_left_out_and_the_rest_is_right() -> None:
    model, weight = net(), decay()
    reference = live(model, [weight])
    reference.backward()
    expected, weight.grad = weight.grad, None
    model.spare = nn.Linear(3, 3).double()
    spare = {f"spare.{name}" for name, _ in model.spare.named_parameters()}

    def train() -> Tensor:
        used = [p for name, p in model.named_parameters() if name not in spare]
        value: Tensor = (model(X) - Y).square().mean() + weight.exp() * sum(p.square().sum() for p in used)
        return value

    hyper = live(model, [weight], train=train)
    with unchanged(model), pytest.warns(ReachWarning, match=r"\['spare.weight', 'spare.bias'\].*left out"):
        hyper.backward()
    assert expected is not None
    assert weight.grad is not None
    assert torch.equal(weight.grad, expected)
    hyper.backward()  # said once
    assert torch.equal(weight.grad, 2 * expected)


def test_an_unused_parameter_is_found_without_moving_the_random_state() -> None:
    model, weight = net(), decay()
    model.spare = nn.Linear(3, 3).double()

    def train() -> Tensor:
        dropped = nn.functional.dropout(model(X), 0.5)
        value: Tensor = (dropped - Y).square().mean() + weight.exp() * model.body.weight.square().sum()
        return value

    with unchanged(model), pytest.warns(ReachWarning, match="spare"):
        live(model, [weight], train=train).backward()


def test_a_live_model_of_which_the_training_loss_uses_nothing_is_refused() -> None:
    model, weight = net(), decay()

    def train() -> Tensor:
        return weight.square()

    hyper = live(model, [weight], train=train)
    with refused(UnreachedError, model, {"w": weight}, passed="'head.weight'", do="names"):
        hyper.backward()


@pytest.mark.parametrize("where", ["inner", "outer", "penalty"])
def test_a_parameter_bound_before_the_loss_is_refused(where: str) -> None:
    """It would be a constant in the functional call: curvature and mixed derivatives would lose its part silently."""
    model, decay = Net().double(), torch.zeros(2, dtype=torch.float64, requires_grad=True)
    before = list(model.head.parameters())

    def shrinkage(params: list[Any]) -> Tensor:
        return decay.exp().sum() * torch.stack([p.square().sum() for p in params]).sum()

    def penalty() -> Tensor:
        return shrinkage(before if where == "penalty" else list(model.head.parameters()))

    def loss(name: str) -> Callable[[], Tensor]:
        return lambda: (
            (model(X) - Y).square().mean()
            + (shrinkage(before) if where == name else shrinkage(list(model.head.parameters())))
        )

    hyper = hg.Live(model, [decay], loss("inner"), loss("outer"), IDENTITY, penalty=penalty)
    for _ in range(2):
        with refused(ObjectiveError, model, passed=(where, "head.weight"), do=("before", where)):
            hyper.backward()
    assert decay.grad is None
