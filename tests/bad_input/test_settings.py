"""Settings out of range are refused where they are passed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import hypergrad as hg
from hypergrad.errors import (
    InputError,
    TreeError,
)
from tests.bad_input.common import NAN, NEWTON, PROBLEM, SGD, STEP, inner, refused, start, trained

SINGLE_LOOP: tuple[Any, ...] = (
    *(hg.SOBA, hg.SABA, hg.SRBA, hg.FSLA, hg.AmIGO, hg.StocBiO, hg.TTSA, hg.MRBO, hg.SUSTAIN, hg.VRBO),
    *(hg.F2SA, hg.BOME, hg.PZOBO, hg.SPABA, hg.BSA),
)
LOOPED = ("iterations", "adjoint_iterations")
FIRST: dict[Any, dict[str, Any]] = {
    hg.Unrolled: {"steps": 5, "inner": STEP},
    hg.ForwardMode: {"steps": 5, "inner": STEP},
    hg.ZerothOrder: {"inner": hg.Newton()},
    hg.ZoRD: {"inner": hg.Newton()},
    **{kind: {"step_size": 0.1} for kind in SINGLE_LOOP},
    hg.BOREP: {"step_size": 0.1, "linear_step_size": 0.1},
    hg.NormalizedMomentum: {"params": [torch.zeros(2)], "lr": 0.1},
    hg.MAID: {"strong_convexity": 1.0, "smoothness": 1.0},
    hg.Intersection: {"domains": [hg.Box(0, 1)]},
    hg.GradientDescent: {"lr": 0.1},
    hg.Adam: {"lr": 0.1},
    hg.TorchOptimizer: {"optimizer": torch.optim.SGD, "steps": 5},
    hg.TorchRule: {"optimizer": torch.optim.SGD},
    hg.Stochastic: {"optimizer": torch.optim.SGD},
    hg.Checkpoint: {"directory": "nowhere"},
    hg.outer.Torch: {"optimizer": torch.optim.SGD},
    hg.Accumulated: {"sampler": hg.Fixed(0)},
    hg.Population: {"problem": PROBLEM, "algorithm": NEWTON, "outer": SGD},
    hg.LoaderSampler: {"loader": DataLoader(TensorDataset(torch.zeros(2)))},
}


COUNTS: dict[Any, tuple[str, ...]] = {
    hg.Auto: ("most",),
    hg.CG: ("max_steps", "check_every"),
    hg.MINRES: ("max_steps", "check_every"),
    hg.GMRES: ("max_steps", "restart", "check_every"),
    hg.NormalCG: ("max_steps", "check_every"),
    hg.Dense: ("max_size",),
    hg.Jacobi: ("probes", "refresh"),
    hg.PenaltyDiagonal: ("refresh",),
    hg.NystromPreconditioner: ("rank", "refresh"),
    hg.Nystrom: ("rank",),
    hg.Recycled: ("keep",),
    hg.Refined: ("max_steps",),
    hg.Neumann: ("power_steps",),
    hg.Stochastic: ("steps",),
    hg.Newton: ("steps", "max_size"),
    hg.LBFGS: ("steps", "memory"),
    hg.TorchOptimizer: ("steps",),
    hg.TorchRule: ("steps",),
    hg.GradientDescent: ("steps",),
    hg.Adam: ("steps",),
    hg.Unrolled: ("steps", "truncate"),
    hg.ForwardMode: ("steps", "guide", "max_exact"),
    hg.ZerothOrder: ("directions", "max_runs"),
    hg.ZoRD: ("candidates", "nearest", "memory", "max_size"),
    **dict.fromkeys((hg.SOBA, hg.SABA, hg.SPABA, hg.FSLA, hg.StocBiO, hg.MRBO), LOOPED),
    hg.SRBA: ("period", *LOOPED),
    hg.AmIGO: ("inner_steps", "linear_steps", *LOOPED),
    hg.StocBiO: ("inner_steps", *LOOPED),
    hg.BSA: ("inner_steps", "terms", *LOOPED),
    hg.TTSA: ("terms", *LOOPED),
    hg.SUSTAIN: ("terms", *LOOPED),
    hg.VRBO: ("inner_steps", "period", *LOOPED),
    hg.F2SA: ("inner_steps", *LOOPED),
    hg.BOME: ("inner_steps", *LOOPED),
    hg.PZOBO: ("inner_steps", "directions", *LOOPED),
    hg.BOREP: ("interval", "inner_steps", *LOOPED),
    hg.BSVRBv1: ("blocks", *LOOPED),
    hg.BSVRBv2: ("blocks", *LOOPED),
    hg.EpochSGD: ("epochs", "steps"),
    hg.HOAG: ("patience",),
    hg.MAID: ("backtracks", "budgets"),
    hg.Intersection: ("sweeps",),
    hg.EarlyStopping: ("patience",),
    hg.Checkpoint: ("every",),
    hg.outer.LBFGSB: ("iterations", "memory"),
    hg.Accumulated: ("batches",),
    hg.LoaderSampler: ("longest",),
    hg.Averaging: ("begin",),
    hg.Population: ("rung", "eta"),
    hg.Every: ("inner", "outer"),
    hg.OnPlateau: ("patience", "longest", "outer"),
}


ABOVE_ZERO: dict[Any, tuple[str, ...]] = {
    hg.Auto: ("accuracy", "memory"),
    hg.Compiled: ("tolerance",),
    hg.Identity: ("scale",),
    hg.Neumann: ("step",),
    hg.Newton: ("tolerance",),
    hg.LBFGS: ("tolerance",),
    hg.GradientDescent: ("lr",),
    hg.Adam: ("lr", "eps"),
    hg.ZerothOrder: ("step_size",),
    hg.ZoRD: ("radius", "length_scale", "noise"),
    **dict.fromkeys((hg.SOBA, hg.SABA, hg.SRBA, hg.AmIGO, hg.StocBiO), ("step_size", "linear_step_size")),
    **dict.fromkeys((hg.BSA, hg.TTSA), ("step_size", "linear_step_size")),
    hg.SPABA: ("step_size", "linear_step_size", "probability"),
    **dict.fromkeys((hg.FSLA, hg.MRBO, hg.SUSTAIN), ("step_size", "linear_step_size", "momentum")),
    hg.VRBO: ("step_size", "linear_step_size"),
    hg.F2SA: ("step_size", "penalty", "penalised_step_size"),
    hg.BOME: ("step_size", "inner_step_size", "eta"),
    hg.PZOBO: ("step_size", "radius"),
    hg.BOREP: ("step_size", "linear_step_size", "radius"),
    hg.EpochSGD: ("step_size", "radius"),
    hg.NormalizedMomentum: ("lr",),
    hg.HOAG: ("start", "floor", "demand", "grow", "lipschitz"),
    hg.MAID: (*("strong_convexity", "accuracy", "linear", "step", "descent", "decrease", "shrink", "tighten"),),
    hg.BSVRBv1: ("mu", "inner_step", "alpha", "beta"),
    hg.BSVRBv2: ("radius", "inner_step", "linear_step", "alpha", "beta"),
    hg.LVHBA: ("step_size", "inner_step_size", "center_step_size", "gamma1", "gamma2", "bound", "penalty"),
    hg.Intersection: ("tolerance",),
    hg.ProgressBar: ("interval",),
    hg.outer.Torch: ("clip", "clip_value"),
    hg.Averaging: ("decay",),
    hg.Simplex: ("total",),
    hg.Ball: ("radius",),
}


NOT_NEGATIVE: dict[Any, tuple[str, ...]] = {
    hg.CG: ("rtol", "atol"),
    hg.MINRES: ("rtol", "atol"),
    hg.GMRES: ("rtol", "atol"),
    hg.NormalCG: ("rtol", "atol"),
    hg.Refined: ("rtol", "atol"),
    hg.Neumann: ("terms",),
    hg.ZoRD: ("queries",),
    hg.StocBiO: ("terms",),
    hg.MRBO: ("terms",),
    hg.VRBO: ("terms",),
    hg.LVHBA: ("power",),
    hg.HOAG: ("slack", "rise", "tolerance"),
    hg.MAID: ("smoothness", "mixed", "inverse_lipschitz", "mixed_lipschitz", "direct_lipschitz", "tolerance"),
    hg.Nystrom: ("damping",),
    hg.NystromPreconditioner: ("oversample",),
    hg.Implicit: ("damping", "stationarity"),
    hg.GradientDescent: ("weight_decay", "tolerance"),
    hg.Adam: ("weight_decay", "tolerance"),
    hg.TorchRule: ("tolerance",),
    hg.EarlyStopping: ("min_delta",),
    hg.Positive: ("floor",),
    hg.outer.LBFGSB: ("gtol", "ftol"),
    hg.Every: ("warmup",),
    hg.OnPlateau: ("min_delta", "warmup"),
}


BELOW_ONE: dict[Any, tuple[str, ...]] = {
    hg.GradientDescent: ("momentum",),
    hg.Adam: ("beta1", "beta2"),
    hg.NormalizedMomentum: ("momentum",),
    hg.OnPlateau: ("smoothing",),
}


CHOICES: dict[Any, tuple[str, ...]] = {
    hg.Unrolled: ("keep",),
    hg.ForwardMode: ("mode", "distribution"),
    hg.ZerothOrder: ("mode",),
    hg.LVHBA: ("projection",),
    hg.HOAG: ("schedule", "linear_schedule"),
    hg.Population: ("unit",),
    hg.ProgressBar: ("style",),
}


HYPERPARAMETERS = {
    "Augmentation": ("strengths", "outside"),
    "AugmentationNetwork": ("channels", "width", "depth", "scale"),
    "DomainMixture": ("domains", "floor", "initial", "drawn"),
    "Dropout": ("initial", "kind", "temperature"),
    "ExampleWeights": ("n", "initial"),
    "Hyperparameter": ("bounds", "shape"),
    "LabelSmoothing": ("classes", "initial", "per"),
    "LearningRateSchedule": ("steps", "initial", "knots", "pieces", "bounds"),
    "LossWeights": ("floor", "entropy", "initial"),
    "SoftLabels": ("n", "classes", "confidence"),
    "WeightDecay": ("initial",),
}
"""In tests/hyperparameters."""

TESTED_APART = {
    ("Box", "low"),
    ("Box", "high"),
    ("ForwardMode", "directions"),
    ("TensorSampler", "batch_size"),
    ("LBFGSB", "bounds"),
    ("Scipy", "function"),
    ("Partition", "batch_size"),
    ("HOAG", "reach"),
    ("MAID", "grow"),
    ("MAID", "loosen"),
    *((name, setting) for name in ("BSVRBv1", "BSVRBv2") for setting in ("sampled", "gamma")),
    ("Halfspace", "offset"),
    *((name, setting) for name, settings in HYPERPARAMETERS.items() for setting in settings),
    *(("OuterSchedule", name) for name in ("outer", "warmup")),  # abstract: refused through Every and OnPlateau
}


def cases(*groups: tuple[dict[Any, tuple[str, ...]], tuple[Any, ...]]) -> list[Any]:
    return [
        pytest.param(cls, name, value, id=f"{cls.__name__}-{name}={value!r}")
        for settings, values in groups
        for cls, names in settings.items()
        for name in names
        for value in values
    ]


OUT_OF_RANGE = cases(
    (COUNTS, (0, -1)),
    (ABOVE_ZERO, (0.0, -1.0, NAN)),
    (NOT_NEGATIVE, (-1, NAN)),
    (BELOW_ONE, (-0.1, 1.0, NAN)),
    (CHOICES, ("most",)),
)


@pytest.mark.parametrize(("cls", "name", "value"), OUT_OF_RANGE)
def test_a_setting_out_of_range_is_refused_where_it_is_passed(cls: Any, name: str, value: Any) -> None:
    with refused(InputError, passed=(cls.__name__, f"{name}={value!r}")):
        cls(**{**FIRST.get(cls, {}), name: value})


@pytest.mark.parametrize(
    ("cls", "name"),
    [(hg.Unrolled, "steps"), (hg.ForwardMode, "steps"), (hg.TorchOptimizer, "steps"), (hg.GradientDescent, "lr")],
)
def test_a_setting_without_a_default_is_not_to_be_left_out(cls: Any, name: str) -> None:
    with pytest.raises(InputError) as caught:
        cls(**{**FIRST.get(cls, {}), name: -1})
    assert "leave" not in caught.value.do


NO_COUNT = cases(
    (
        {
            hg.CG: ("max_steps",),
            hg.LBFGS: ("steps",),
            hg.TorchOptimizer: ("steps",),
            hg.GradientDescent: ("steps",),
            hg.Unrolled: ("steps",),
            hg.ForwardMode: ("steps",),
            hg.EarlyStopping: ("patience",),
            hg.Checkpoint: ("every",),
        },
        (2.5, "3"),
    ),
    (
        {hg.CG: ("max_steps",), hg.TorchOptimizer: ("steps",), hg.Unrolled: ("steps",), hg.Checkpoint: ("every",)},
        (None,),
    ),
)


@pytest.mark.parametrize(("cls", "name", "value"), NO_COUNT)
def test_a_count_that_is_no_whole_number_is_refused_where_it_is_passed(cls: Any, name: str, value: Any) -> None:
    with refused(InputError, passed=(cls.__name__, f"{name}={value!r}")):
        cls(**{**FIRST.get(cls, {}), name: value})


@pytest.mark.parametrize(("mode", "directions"), [("random", 0), ("random", -1), ("guided", -1)])
def test_a_number_of_directions_out_of_range_is_refused(mode: Any, directions: int) -> None:
    with refused(InputError, passed=f"ForwardMode(directions={directions})"):
        hg.ForwardMode(5, STEP, mode=mode, directions=directions)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (1.0, 1.0), (NAN, 1.0), (0.0, NAN)])
def test_an_empty_box_is_refused(low: float, high: float) -> None:
    with refused(InputError, passed=(f"low={low}", f"high={high}"), expected="low < high", do="hold it fixed"):
        hg.Box(low, high)


def test_nesterovs_form_needs_momentum() -> None:
    with refused(InputError, passed="nesterov=True", expected="momentum > 0", do="momentum=0.9"):
        hg.GradientDescent(lr=0.1, nesterov=True)


@pytest.mark.parametrize("size", [0, -1, 5])
def test_a_batch_size_out_of_range_is_refused(size: int) -> None:
    with refused(InputError, passed=(f"batch_size={size}", "4 examples"), expected="1 to 4", do="Fixed"):
        hg.TensorSampler(torch.ones(4), batch_size=size)


@pytest.mark.parametrize(
    "tensors", [(), (torch.ones(3), torch.ones(4)), (torch.tensor(1.0),)], ids=["none", "rows", "scalar"]
)
def test_data_that_cannot_be_batched_is_refused(tensors: tuple[Tensor, ...]) -> None:
    with refused(InputError, passed="shapes", expected="same number of rows", do="row i"):
        hg.TensorSampler(*tensors, batch_size=1)


def test_a_training_rule_without_a_length_cannot_be_run() -> None:
    params, hparams = start()
    with refused(InputError, params, hparams, passed="GradientDescent without a number of steps", do="steps=100"):
        hg.hypergradient(PROBLEM, params, hparams, hg.Implicit(inner=STEP))


LOOPS: dict[str, Callable[..., object]] = {
    "iterate": lambda params, hparams, steps: hg.iterate(PROBLEM, NEWTON, params, hparams, outer=SGD, steps=steps),
    "fit": lambda params, hparams, steps: hg.Trainer(PROBLEM, NEWTON, SGD).fit(params, hparams, steps),
}


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_of_no_steps_is_refused_at_the_call(loop: str, steps: int) -> None:
    params, hparams = start()
    with refused(InputError, params, hparams, passed=f"steps={steps}", expected="steps > 0"):
        LOOPS[loop](params, hparams, steps)


def test_bad_inputs_of_an_iterator_are_refused_at_the_call() -> None:
    params, hparams = start()
    with refused(TreeError, params, hparams, passed="params"):
        hg.iterate(PROBLEM, NEWTON, {}, hparams, outer=SGD)


def test_negative_damping_of_a_differentiable_function_is_refused() -> None:
    with refused(InputError, passed="damping=-0.5"):
        hg.differentiable(lambda _, hparams: trained(hparams), inner, damping=-0.5)


def numeric_settings() -> set[tuple[str, str]]:
    """Every setting of a public class that is a number or a choice, by its annotation."""
    results = {"Cost", "Report", "Hypergradient", "LinearResult", "CheckResult", "Fitted", "Progress", "Operator"}
    results |= {"Choice", "Forecast", "Plan"}
    results |= {"Member", "Selected", "Split"}
    public = {v for m in (hg, hg.outer) for v in vars(m).values() if inspect.isclass(v) and "hypergrad" in v.__module__}
    found = set()
    for cls in public - {hg.Run, hg.outer.Oracle}:
        if cls.__name__ in results or cls.__name__.startswith("_") or issubclass(cls, Exception | str):
            continue
        for name, parameter in inspect.signature(cls).parameters.items():
            text = str(parameter.annotation)
            if name not in ("seed", "algorithm") and re.search(
                r"\b(int|float|Setting|Schedule|Literal|Keep|Mode|Distribution)\b", text
            ):
                found.add((cls.__name__, name))
    return {(cls, name) for cls, name in found if (cls, name) != ("EarlyStopping", "monitor")}


def test_every_public_setting_that_has_a_range_is_in_these_lists() -> None:
    listed = {
        (cls.__name__, name)
        for settings in (COUNTS, ABOVE_ZERO, NOT_NEGATIVE, BELOW_ONE, CHOICES)
        for cls, names in settings.items()
        for name in names
    }
    assert numeric_settings() - listed - TESTED_APART == set()
