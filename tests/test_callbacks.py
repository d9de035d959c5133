"""The loop and its callbacks: what is written is whole, what is resumed is the same run, and the end always comes."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hypergrad as hg
import hypergrad.callbacks
from hypergrad.errors import InputError, NonFiniteError, StationarityWarning, TreeError
from hypergrad.tree import Tree

# ----------------------------------------------------------------------------------------------------------------------
# A small run with everything that can be lost
# ----------------------------------------------------------------------------------------------------------------------

GENERATOR = torch.Generator().manual_seed(0)
X, XV = (torch.randn(9, 3, dtype=torch.float64, generator=GENERATOR) for _ in range(2))
TRUTH = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
Y, YV = (x @ TRUTH + 0.3 * torch.randn(9, dtype=torch.float64, generator=GENERATOR) for x in (X, XV))


def start() -> tuple[Tree, Tree]:
    params = {"w": torch.zeros(3, dtype=torch.float64)}
    hparams = {"decay": torch.full((3,), -1.0, dtype=torch.float64), "scale": torch.tensor(0.5, dtype=torch.float64)}
    return params, hparams


def fit_loss(params: Tree, hparams: Tree, batch: Any) -> Tensor:
    x, y = (X, Y) if batch is None else batch
    return ((x @ params["w"]) * hparams["scale"].exp() - y).square().mean()


def shrink(params: Tree, hparams: Tree) -> Tensor:
    return (hparams["decay"].exp() * params["w"].square()).sum() / 10


def inner(params: Tree, hparams: Tree, batch: Any) -> Tensor:
    return fit_loss(params, hparams, batch) + shrink(params, hparams)


def outer(params: Tree, hparams: Tree, batch: Any) -> Tensor:
    x, y = (XV, YV) if batch is None else batch
    return (x @ params["w"] - y).square().mean() + hparams["scale"].square() / 50


def noisy(params: Tree, hparams: Tree, batch: Any) -> Tensor:
    x, y = (X, Y) if batch is None else batch
    return inner(params, hparams, (nn.functional.dropout(x, 0.3), y))


DESCENT = hg.GradientDescent(lr=0.1, steps=6)
LOOSE = hg.Implicit(hg.CG(rtol=1e-2), inner=DESCENT, stationarity=math.inf)
MOMENTUM = hg.Unrolled(4, hg.GradientDescent(lr=0.05, momentum=0.7), warm_start=True)


def plain() -> hg.Problem:
    return hg.Problem(inner, outer)


def batches() -> hg.Problem:
    return hg.Problem(
        inner,
        outer,
        inner_data=hg.TensorSampler(X, Y, batch_size=4, seed=1),
        outer_data=hg.TensorSampler(XV, YV, batch_size=2, seed=2),
    )


class Recorder(hg.Callback):
    """Keep what every step said."""

    def __init__(self) -> None:
        self.seen: list[hg.Progress] = []
        self.ended = 0

    def step(self, run: hg.Run, progress: hg.Progress) -> None:
        self.seen.append(progress)

    def end(self, run: hg.Run) -> None:
        self.ended += 1


def same(left: Any, right: Any) -> bool:
    """Whether two nested plain values are equal, bit for bit."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, Mapping):
        return isinstance(right, Mapping) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and repr(left) == repr(right)  # NaN is the same as NaN


def parts(error: InputError) -> tuple[str, str, str]:
    assert error.passed
    assert error.expected
    assert error.do
    return error.passed, error.expected, error.do


SGD = hg.outer.Torch(torch.optim.SGD, lr=0.1)

# ----------------------------------------------------------------------------------------------------------------------
# A run that was stopped and resumed is the same run
# ----------------------------------------------------------------------------------------------------------------------


def scheduled(scheduler: Callable[..., Any], optimizer: Any = torch.optim.SGD, **options: Any) -> hg.outer.Torch:
    return hg.outer.Torch(optimizer, scheduler, **{"lr": 0.2, **options})


LR = torch.optim.lr_scheduler
RESUMED: dict[str, Callable[[], tuple[hg.Problem, Any, hg.outer.OuterMove]]] = {
    "implicit-cg": lambda: (plain(), LOOSE, SGD),
    "implicit-cg-penalty": lambda: (
        hg.Problem(fit_loss, outer, penalty=shrink),
        hg.Implicit(hg.CG(rtol=1e-2, preconditioner=hg.PenaltyDiagonal(refresh=2)), inner=DESCENT, stationarity=1e9),
        SGD,
    ),
    "implicit-cg-nystrom": lambda: (
        plain(),
        hg.Implicit(
            hg.CG(rtol=1e-2, preconditioner=hg.NystromPreconditioner(rank=1, oversample=0, refresh=3)),
            inner=DESCENT,
            stationarity=math.inf,
        ),
        SGD,
    ),
    "implicit-neumann": lambda: (plain(), hg.Implicit(hg.Neumann(3), inner=DESCENT, stationarity=math.inf), SGD),
    "unrolled-momentum": lambda: (plain(), MOMENTUM, SGD),
    "unrolled-adam": lambda: (plain(), hg.Unrolled(4, hg.Adam(lr=0.05), keep="sqrt", warm_start=True), SGD),
    "forward-random": lambda: (plain(), hg.ForwardMode(4, hg.GradientDescent(lr=0.1), mode="random"), SGD),
    "zeroth-order-random": lambda: (plain(), hg.ZerothOrder(DESCENT, mode="RGE", warm_start=True), SGD),
    "adam": lambda: (plain(), LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1)),
    "adam-groups": lambda: (plain(), LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1, groups={"scale": {"lr": 0.3}})),
    "sgd-momentum-clipped": lambda: (plain(), LOOSE, hg.outer.Torch(torch.optim.SGD, lr=0.1, momentum=0.9, clip=0.1)),
    "lbfgs": lambda: (plain(), LOOSE, hg.outer.Torch(torch.optim.LBFGS, lr=0.5, max_iter=2)),
    "lbfgs-wolfe": lambda: (
        plain(),
        hg.Implicit(inner=hg.Newton()),
        hg.outer.Torch(torch.optim.LBFGS, max_iter=3, line_search_fn="strong_wolfe"),
    ),
    "lbfgsb": lambda: (plain(), hg.Implicit(inner=hg.Newton()), hg.outer.LBFGSB(iterations=2)),
    "step-lr": lambda: (plain(), LOOSE, scheduled(partial(LR.StepLR, step_size=2, gamma=0.5))),
    "multi-step-lr": lambda: (plain(), LOOSE, scheduled(partial(LR.MultiStepLR, milestones=[2, 5, 6], gamma=0.5))),
    "cosine": lambda: (plain(), LOOSE, scheduled(partial(LR.CosineAnnealingLR, T_max=8))),
    "one-cycle": lambda: (
        plain(),
        LOOSE,
        scheduled(partial(LR.OneCycleLR, max_lr=0.3, total_steps=8), torch.optim.Adam),
    ),
    "one-cycle-momentum": lambda: (
        plain(),
        LOOSE,
        scheduled(partial(LR.OneCycleLR, max_lr=0.3, total_steps=8), momentum=0.9),
    ),
    "plateau": lambda: (
        plain(),
        LOOSE,
        scheduled(partial(LR.ReduceLROnPlateau, patience=1, threshold=0.5, factor=0.3)),
    ),
    "lambda-lr": lambda: (plain(), LOOSE, scheduled(partial(LR.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)))),
    "sequential": lambda: (
        plain(),
        LOOSE,
        scheduled(
            lambda optimizer: LR.SequentialLR(
                optimizer,
                [LR.LinearLR(optimizer, 0.1, total_iters=2), LR.ExponentialLR(optimizer, 0.7)],
                milestones=[4],
            )
        ),
    ),
    "cyclic": lambda: (
        plain(),
        LOOSE,
        scheduled(partial(LR.CyclicLR, base_lr=0.01, max_lr=0.3, step_size_up=2, cycle_momentum=False)),
    ),
    "batches": lambda: (batches(), MOMENTUM, SGD),
    "batches-implicit": lambda: (batches(), LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1)),
    "dropout": lambda: (hg.Problem(noisy, outer), MOMENTUM, SGD),
    "dropout-and-batches": lambda: (
        hg.Problem(noisy, outer, inner_data=hg.TensorSampler(X, Y, batch_size=4)),
        LOOSE,
        hg.outer.Torch(torch.optim.LBFGS, lr=0.02, max_iter=2),
    ),
}


def run(setup: str, steps: int, *callbacks: hg.Callback, resume: Path | None = None, seed: int = 5) -> hg.Fitted:
    problem, algorithm, move = RESUMED[setup]()
    return hg.Trainer(problem, algorithm, move, callbacks, seed=seed).fit(*start(), steps, resume=resume)


def check_same_run(setup: str, directory: Path, stops: tuple[int, ...], steps: int = 7) -> None:
    whole, pieces = Recorder(), Recorder()
    expected = run(setup, steps, whole)
    run(setup, stops[0], pieces, hg.Checkpoint(directory))
    for stop in (*stops[1:], steps):
        torch.rand(3)  # the global random state must not matter
        found = run(setup, stop, pieces, hg.Checkpoint(directory), resume=directory, seed=99)
    assert [progress.step for progress in pieces.seen] == list(range(1, steps + 1))
    for left, right in zip(whole.seen, pieces.seen, strict=True):
        for name in ("hparams", "params", "outer_loss", "norm", "moved", "cost"):
            assert same(getattr(left, name), getattr(right, name)), f"{name} differs in step {left.step}"
    assert same(expected.hparams, found.hparams)
    assert same(expected.params, found.params)
    assert len({progress.outer_loss for progress in whole.seen}) > 1, "nothing moved, so nothing was tested"


@pytest.mark.parametrize("setup", RESUMED)
def test_a_resumed_run_is_the_same_run_bit_for_bit(setup: str, tmp_path: Path) -> None:
    check_same_run(setup, tmp_path, stops=(3,))


@pytest.mark.parametrize("setup", ["implicit-cg-penalty", "unrolled-adam", "dropout-and-batches", "one-cycle"])
def test_a_run_can_be_resumed_again_and_again(setup: str, tmp_path: Path) -> None:
    check_same_run(setup, tmp_path, stops=(1, 2, 5))


@pytest.mark.parametrize(
    "setup", ["plateau", "multi-step-lr", "step-lr", "cosine", "one-cycle", "lambda-lr", "sequential", "cyclic"]
)
def test_the_schedulers_of_these_runs_do_change_the_step(setup: str) -> None:
    recorder = Recorder()
    run(setup, 7, recorder)
    plainly = Recorder()
    problem, algorithm, move = RESUMED[setup]()
    assert isinstance(move, hg.outer.Torch)
    hg.Trainer(problem, algorithm, hg.outer.Torch(move.optimizer, **move.options), [plainly], seed=5).fit(*start(), 7)
    assert not same(recorder.seen[-1].moved, plainly.seen[-1].moved)


def test_a_finished_run_that_is_resumed_makes_no_further_step(tmp_path: Path) -> None:
    done = run("adam", 3, hg.Checkpoint(tmp_path))
    recorder = Recorder()
    again = run("adam", 3, recorder, resume=tmp_path)
    assert recorder.seen == []
    assert (again.steps, again.stopped, again.last) == (3, "steps", None)
    assert same(again.hparams, done.hparams)
    assert same(again.params, done.params)


def test_a_resumed_run_stops_early_at_the_same_best_step(tmp_path: Path) -> None:
    setup, values = "adam", [5.0, 1.0, 3.0, 4.0, 3.0, 2.0, 2.0]

    def stopping() -> hg.EarlyStopping:
        return hg.EarlyStopping(patience=4, monitor=lambda progress: values[progress.step - 1])

    expected = run(setup, 7, stopping())
    run(setup, 3, stopping(), hg.Checkpoint(tmp_path))
    found = run(setup, 7, stopping(), resume=tmp_path)
    assert expected.steps == found.steps == 6
    assert same(expected.hparams, found.hparams)


def test_a_state_is_plain_data_and_a_snapshot() -> None:
    problem, algorithm, move = RESUMED["dropout-and-batches"]()
    made = hg.Run(problem, algorithm, *start(), move)
    made.step()
    state = made.state_dict()

    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert all(type(key) in (str, int) for key in value)
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (Tensor, int, float, str, bool), type(value)
            assert not isinstance(value, Tensor) or not value.requires_grad

    check(state)
    kept = pickle.loads(pickle.dumps(state))
    made.step()
    assert same(state, kept)
    state["hparams"]["decay"].fill_(77.0)
    assert float(made.hparams["decay"].max()) < 77


def test_a_run_leaves_its_inputs_and_the_random_state_alone() -> None:
    params, hparams = start()
    before, random = (dict(params), dict(hparams)), torch.get_rng_state()
    versions = [value._version for value in (*params.values(), *hparams.values())]
    hg.Trainer(*RESUMED["dropout-and-batches"](), seed=1).fit(params, hparams, 3)
    assert (params, hparams) == before
    assert [value._version for value in (*params.values(), *hparams.values())] == versions
    assert all(value.grad is None and not value.requires_grad for value in (*params.values(), *hparams.values()))
    assert torch.equal(torch.get_rng_state(), random)


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints: one whole file, refused when it does not fit, never executed
# ----------------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_one_file_that_loads_as_plain_data(tmp_path: Path) -> None:
    run("adam", 2, hg.Checkpoint(tmp_path / "deep" / "folder"))
    assert [path.name for path in (tmp_path / "deep" / "folder").iterdir()] == ["checkpoint.pt"]
    state = torch.load(tmp_path / "deep" / "folder" / "checkpoint.pt", weights_only=True)
    assert state["step_number"] == 2
    assert same(state, hg.load_checkpoint(tmp_path / "deep" / "folder"))


def test_a_checkpoint_is_saved_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    class Look(hg.Callback):
        def __init__(self) -> None:
            self.found: list[int | None] = []

        def step(self, run: hg.Run, progress: hg.Progress) -> None:
            there = (tmp_path / "checkpoint.pt").exists()
            self.found.append(hg.load_checkpoint(tmp_path)["step_number"] if there else None)

    look = Look()
    run("adam", 7, hg.Checkpoint(tmp_path, every=3), look)
    assert look.found == [None, None, None, 3, 3, 3, 6], "a checkpoint comes after the other callbacks"
    assert hg.load_checkpoint(tmp_path)["step_number"] == 7


def test_a_save_that_fails_leaves_the_checkpoint_before_it_and_no_half_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("adam", 2, hg.Checkpoint(tmp_path))

    def full(state: Any, path: Any) -> None:
        Path(path).write_bytes(b"half a chec")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run("adam", 3, hg.Checkpoint(tmp_path), resume=tmp_path)
    assert hg.load_checkpoint(tmp_path)["step_number"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "pickle", "in-state"])
def test_a_checkpoint_is_never_executed(form: str, tmp_path: Path) -> None:
    bomb, blown = Bomb(tmp_path / "blown"), tmp_path / "blown"
    if form == "in-state":
        run("adam", 1, hg.Checkpoint(tmp_path))
        torch.save({**hg.load_checkpoint(tmp_path), "seed": bomb}, tmp_path / "checkpoint.pt")
    elif form == "zip":
        torch.save(bomb, tmp_path / "checkpoint.pt")
    else:
        (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(bomb))
    with pytest.raises(InputError) as caught:
        run("adam", 3, resume=tmp_path)
    assert not blown.exists()
    passed, expected, do = parts(caught.value)
    assert "checkpoint.pt, which cannot be read" in passed
    assert "hypergrad.Checkpoint" in expected
    assert "without resume" in do


@pytest.mark.parametrize("content", ["cut", "empty", "text", "tensor", "list"])
def test_a_file_that_is_no_checkpoint_is_refused_and_kept(content: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    run("adam", 1, hg.Checkpoint(tmp_path))
    if content == "tensor":
        torch.save(torch.ones(2), path)
    elif content == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"cut": path.read_bytes()[:-200], "empty": b"", "text": b"step 7"}[content])
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        run("adam", 3, hg.Checkpoint(tmp_path), resume=tmp_path)
    assert str(path) in parts(caught.value)[0]
    assert path.read_bytes() == before


def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run("adam", 3, resume=tmp_path)
    passed, _, do = parts(caught.value)
    assert str(tmp_path) in passed
    assert "checkpoint.pt" in passed
    assert "without resume" in do


def begun(setup: str) -> hg.Run:
    problem, algorithm, move = RESUMED[setup]()
    return hg.Run(problem, algorithm, *start(), move)


def halfway(setup: str = "batches") -> tuple[hg.Run, dict[str, Any]]:
    """A run after two steps, and another run's state after one."""
    other, made = begun(setup), begun(setup)
    other.step()
    made.step()
    made.step()
    return made, other.state_dict()


STATE_KEYS = (
    "format",
    "algorithm",
    "outer",
    "seed",
    "step_number",
    "hparams",
    "params",
    "algorithm_state",
    "outer_state",
    "samplers",
    "callbacks",
)


def test_the_keys_of_a_state_are_the_ones_that_are_tested_here() -> None:
    assert set(halfway()[1]) == set(STATE_KEYS)


@pytest.mark.parametrize("key", STATE_KEYS)
@pytest.mark.parametrize("fault", ["missing", "string", "none"])
def test_a_state_with_a_spoilt_entry_is_refused_and_the_run_stays(fault: str, key: str) -> None:
    made, state = halfway()
    before = made.state_dict()
    if fault == "missing":
        del state[key]
    else:
        state[key] = "nonsense" if fault == "string" else None
    with pytest.raises(InputError) as caught:
        made.load_state_dict(state)
    assert repr(key) in parts(caught.value)[0]
    assert same(made.state_dict(), before)


def cut(tensors: Tree) -> Tree:
    return {key: value[..., :1] if value.ndim else value.expand(2) for key, value in tensors.items()}


UNFIT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format": (lambda state: state | {"format": 0}, "'format': 0"),
    "hparams-renamed": (lambda state: state | {"hparams": {"decoy": state["hparams"]["decay"]}}, "'decoy'"),
    "hparams-shape": (lambda state: state | {"hparams": cut(state["hparams"])}, "'decay'"),
    "hparams-dtype": (
        lambda state: state | {"hparams": {k: v.float() for k, v in state["hparams"].items()}},
        "float32",
    ),
    "params-renamed": (lambda state: state | {"params": {"v": state["params"]["w"]}}, "'v'"),
    "params-shape": (lambda state: state | {"params": cut(state["params"])}, "'w'"),
    "params-dtype": (lambda state: state | {"params": {k: v.float() for k, v in state["params"].items()}}, "float32"),
    "algorithm-state-fields": (lambda state: state | {"algorithm_state": {"params": state["params"]}}, "fields"),
    "algorithm-state-shape": (
        lambda state: state | {"algorithm_state": state["algorithm_state"] | {"params": cut(state["params"])}},
        "'w'",
    ),
    "outer-state-empty": (lambda state: state | {"outer_state": {}}, "outer"),
    "outer-state-groups": (
        lambda state: (
            state
            | {"outer_state": state["outer_state"] | {"optimizer": {"state": {}, "param_groups": [{"params": []}]}}}
        ),
        "outer",
    ),
    "samplers-fewer": (lambda state: state | {"samplers": state["samplers"][:1]}, "samplers"),
    "samplers-other": (lambda state: state | {"samplers": [{}, {}]}, "samplers"),
    "samplers-none": (lambda state: state | {"samplers": [None, None]}, "samplers"),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_a_state_of_another_run_is_refused_and_the_run_stays(fault: str) -> None:
    made, state = halfway()
    before = made.state_dict()
    spoil, said = UNFIT[fault]
    with pytest.raises(InputError) as caught:
        made.load_state_dict(spoil(state))
    assert said in parts(caught.value)[0]
    assert same(made.state_dict(), before)
    made.step()  # and it can go on


OTHER_SETTINGS: dict[str, tuple[Callable[[], tuple[hg.Problem, Any, hg.outer.OuterMove]], tuple[str, ...]]] = {
    "algorithm": (lambda: (plain(), MOMENTUM, hg.outer.Torch(torch.optim.Adam, lr=0.1)), ("Implicit", "Unrolled")),
    "outer": (lambda: (plain(), LOOSE, hg.outer.LBFGSB()), ("Torch", "LBFGSB")),
    "optimizer": (lambda: (plain(), LOOSE, hg.outer.Torch(torch.optim.SGD, lr=0.1)), ("Adam", "SGD")),
    "scheduler": (
        lambda: (plain(), LOOSE, scheduled(partial(LR.StepLR, step_size=2), torch.optim.Adam)),
        ("scheduler",),
    ),
    "groups": (
        lambda: (plain(), LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1, groups={"scale": {"lr": 0.3}})),
        ("group",),
    ),
    "samplers": (lambda: (batches(), LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1)), ("sampler",)),
}


@pytest.mark.parametrize("what", OTHER_SETTINGS)
def test_a_checkpoint_is_refused_by_a_trainer_with_other_settings_before_anything_is_written(
    what: str, tmp_path: Path
) -> None:
    run("adam", 2, hg.Checkpoint(tmp_path))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    make, said = OTHER_SETTINGS[what]
    callbacks = [hg.Checkpoint(tmp_path), hg.History(tmp_path / "history.jsonl"), Recorder()]
    with pytest.raises(InputError) as caught:
        hg.Trainer(*make(), callbacks).fit(*start(), 4, resume=tmp_path)
    text = " ".join(parts(caught.value))
    assert all(word in text for word in said), text
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_is_refused_by_a_trainer_with_other_names(tmp_path: Path) -> None:
    run("adam", 1, hg.Checkpoint(tmp_path))
    params, hparams = start()
    renamed = {"decoy" if key == "decay" else key: value for key, value in hparams.items()}
    problem = hg.Problem(
        lambda params, hparams: inner(params, {"decay": hparams["decoy"], "scale": hparams["scale"]}, None),
        lambda params, hparams: outer(params, hparams, None),
    )
    with pytest.raises(TreeError) as caught:
        hg.Trainer(problem, LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1)).fit(params, renamed, 2, resume=tmp_path)
    passed, expected, _ = parts(caught.value)
    assert "the saved hparams" in passed
    assert "'decay' (did you mean 'decoy'?)" in passed
    assert "'decoy'" in expected


# ----------------------------------------------------------------------------------------------------------------------
# Histories
# ----------------------------------------------------------------------------------------------------------------------


def strict(line: str) -> Any:
    """Parse one line as JSON proper, which knows no NaN."""

    def never(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(line, parse_constant=never)


def test_a_history_has_one_whole_json_line_a_step(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "history.jsonl"
    recorder = Recorder()
    run("adam", 4, hg.History(path, extra=lambda progress: {"decay": progress.moved["decay"].tolist()}), recorder)
    text = path.read_text()
    assert text.endswith("\n")
    lines = [strict(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line, progress in zip(lines, recorder.seen, strict=True):
        assert line["outer_loss"] == progress.outer_loss
        assert line["norm"] == progress.norm
        assert line["decay"] == progress.moved["decay"].tolist()
        assert line["cost"]["inner_gradients"] == progress.report.cost.inner_gradients > 0
        assert line["status"] == "converged"
        assert line["inner_gradient_norm"] == progress.report.inner_gradient_norm
        assert line["step_seconds"] > 0
    assert lines == hg.read_history(path)


def test_what_is_not_known_is_null_in_a_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    run("unrolled-momentum", 1, hg.History(path))
    line = strict(path.read_text())
    assert line["residual"] is None
    assert line["implied_error"] is None


def test_nan_among_the_extra_values_is_null_in_a_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    run("adam", 1, hg.History(path, extra=lambda _: {"accuracy": math.nan, "per_class": [1.0, math.inf]}))
    line = strict(path.read_text())
    assert (line["accuracy"], line["per_class"]) == (None, [1.0, None])


def test_a_history_is_only_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    sizes: list[bytes] = []

    class Look(hg.Callback):
        def step(self, run: hg.Run, progress: hg.Progress) -> None:
            sizes.append(path.read_bytes())

    run("adam", 3, hg.History(path), Look(), hg.Checkpoint(tmp_path))
    run("adam", 5, hg.History(path), Look(), resume=tmp_path)
    assert len(sizes) == 5
    for earlier, later in itertools.pairwise(sizes):
        assert later.startswith(earlier)
        assert later.endswith(b"\n")
    assert [line["step"] for line in hg.read_history(path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("torn", ['{"step": 4, "outer_lo', "{", '{"step": 4, "outer_loss": 1.0}'])
def test_a_torn_last_line_is_ended_and_left_out(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    run("adam", 3, hg.History(path), hg.Checkpoint(tmp_path))
    whole = path.read_text()
    path.write_text(whole + torn)
    run("adam", 5, hg.History(path), resume=tmp_path)
    text = path.read_text()
    assert text.startswith(whole + torn + "\n")
    assert [strict(line)["step"] for line in text.removeprefix(whole + torn + "\n").splitlines()] == [4, 5]
    found = hg.read_history(path)
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5]
    assert "norm" in found[3], "the later of two lines for a step counts"


def test_a_history_that_was_torn_is_read_without_its_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    run("adam", 2, hg.History(path))
    path.write_text(path.read_text() + '{"step": 3, "outer_lo')
    assert [line["step"] for line in hg.read_history(path)] == [1, 2]


def test_steps_done_again_after_a_crash_count_once(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    run("adam", 2, hg.Checkpoint(tmp_path))
    run("adam", 4, hg.History(path), resume=tmp_path)  # a crash loses steps 3 and 4, which were not saved
    run("adam", 5, hg.History(path), resume=tmp_path)
    assert len(path.read_text().splitlines()) == 5
    assert [line["step"] for line in hg.read_history(path)] == [3, 4, 5]


# ----------------------------------------------------------------------------------------------------------------------
# Progress bars
# ----------------------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Four seconds pass at every look."""

    def __init__(self, first: float) -> None:
        self.now = first

    def monotonic(self) -> float:
        self.now += 4.0
        return self.now


def shown(stream: io.StringIO, steps: int, monkeypatch: pytest.MonkeyPatch, *callbacks: hg.Callback) -> str:
    monkeypatch.setattr(hypergrad.callbacks, "time", Clock(1000.0))
    run("adam", steps, *callbacks, hg.ProgressBar(stream, interval=10.0))
    return stream.getvalue()


def test_a_progress_bar_in_a_file_writes_a_line_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(io.StringIO(), 9, monkeypatch).splitlines()
    steps = [int(line.split()[1].split("/")[0]) for line in lines]
    assert "\r" not in "".join(lines)
    assert steps[-1] == 9
    assert 2 < len(steps) < 6
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(steps[:-1])), "3 steps are 12 seconds"


def test_a_progress_bar_says_where_it_is_and_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    lines = shown(io.StringIO(), 9, monkeypatch, recorder).splitlines()
    for line in lines:
        step = int(line.split()[1].split("/")[0])
        progress = recorder.seen[step - 1]
        assert line.startswith(f"step {step}/9 ")
        assert f"outer loss {progress.outer_loss:.5g}" in line
        assert f"hypergradient {progress.norm:.3g}" in line
        assert line.endswith(f"{4 * (9 - step)} s to go")


def test_a_progress_bar_on_a_terminal_rewrites_its_line_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), 5, monkeypatch)
    assert text.count("\r") == 5
    assert text.count("\n") == 1
    assert text.endswith("\n")
    lines = text.removesuffix("\n").split("\r")[1:]
    assert [line.split()[1] for line in lines] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert len({len(line) for line in lines}) == 1, "a shorter line must cover the longer one before it"


def test_a_progress_bar_in_a_file_shows_the_last_step_of_a_run_that_stops_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopping = hg.EarlyStopping(patience=1, monitor=lambda progress: progress.step)
    lines = shown(io.StringIO(), 9, monkeypatch, stopping).splitlines()
    assert lines[-1].startswith("step 2/9")


def test_the_time_to_go_counts_the_steps_of_this_sitting_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run("adam", 4, hg.Checkpoint(tmp_path))
    monkeypatch.setattr(hypergrad.callbacks, "time", Clock(1000.0))
    stream = io.StringIO()
    run("adam", 8, hg.ProgressBar(stream, interval=1.0), resume=tmp_path)
    assert [line.split("  ")[-1] for line in stream.getvalue().splitlines()] == [
        "12 s to go",
        "8 s to go",
        "4 s to go",
        "0 s to go",
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Early stopping
# ----------------------------------------------------------------------------------------------------------------------


def stopped(values: list[float], **settings: Any) -> tuple[hg.Fitted, hg.EarlyStopping, Recorder]:
    stopping = hg.EarlyStopping(monitor=lambda progress: values[progress.step - 1], **settings)
    recorder = Recorder()
    return run("adam", len(values), stopping, recorder), stopping, recorder


def test_early_stopping_returns_the_best_step_and_says_why_it_stopped() -> None:
    fitted, stopping, recorder = stopped([5.0, 2.0, 3.0, 2.5, 4.0, 1.0], patience=3)
    assert fitted.steps == 5
    assert fitted.stopped == "no value below 2 (step 2) for 3 steps"
    assert stopping.best is not None
    assert stopping.best[:2] == (2.0, 2)
    best = recorder.seen[1]
    assert same(fitted.hparams, best.hparams), "the hyperparameters that the value belongs to, before their move"
    assert same(fitted.params, best.params)
    assert fitted.last is recorder.seen[-1]


def test_early_stopping_that_does_not_stop_returns_the_best_step_too() -> None:
    fitted, _, recorder = stopped([5.0, 2.0, 3.0, 4.0], patience=9)
    assert (fitted.steps, fitted.stopped) == (4, "steps")
    assert same(fitted.hparams, recorder.seen[1].hparams)


def test_a_value_has_to_fall_by_min_delta_to_count() -> None:
    fitted, stopping, _ = stopped([5.0, 4.95, 4.92, 4.85, 4.84], patience=2, min_delta=0.1)
    assert stopping.best is not None
    assert (fitted.steps, stopping.best[1]) == (3, 1)


def test_early_stopping_watches_the_outer_loss_by_default() -> None:
    stopping, recorder = hg.EarlyStopping(patience=100), Recorder()
    run("adam", 6, stopping, recorder)
    assert stopping.best is not None
    assert stopping.best[0] == min(progress.outer_loss for progress in recorder.seen)


def test_a_first_value_of_nan_is_no_best_value() -> None:
    fitted, stopping, recorder = stopped([math.nan, 3.0, 2.0, 4.0], patience=4)
    assert stopping.best is not None
    assert stopping.best[:2] == (2.0, 3)
    assert same(fitted.hparams, recorder.seen[2].hparams)


def test_the_best_of_an_earlier_fit_is_forgotten() -> None:
    values = iter([1.0, 2.0, 9.0, 8.0])
    stopping = hg.EarlyStopping(patience=9, monitor=lambda progress: next(values))
    trainer = hg.Trainer(*RESUMED["adam"](), [stopping])
    trainer.fit(*start(), 2)
    trainer.fit(*start(), 2)
    assert stopping.best is not None
    assert stopping.best[:2] == (8.0, 2)


# ----------------------------------------------------------------------------------------------------------------------
# The end always comes
# ----------------------------------------------------------------------------------------------------------------------


class Boom(hg.Callback):
    """Raise in one of the hooks."""

    def __init__(self, hook: str) -> None:
        self.hook = hook

    def start(self, run: hg.Run, steps: int) -> None:
        self._go("start")

    def step(self, run: hg.Run, progress: hg.Progress) -> None:
        self._go("step")

    def end(self, run: hg.Run) -> None:
        self._go("end")

    def _go(self, hook: str) -> None:
        if hook == self.hook:
            raise RuntimeError(f"boom in {hook}")


@pytest.mark.parametrize("hook", ["start", "step", "end"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_callback_that_raises_does_not_take_the_end_from_the_others(place: str, hook: str) -> None:
    recorder = Recorder()
    callbacks = [Boom(hook), recorder] if place == "before" else [recorder, Boom(hook)]
    with pytest.raises(RuntimeError, match=f"boom in {hook}"):
        run("adam", 3, *callbacks)
    began = not (hook == "start" and place == "before")
    assert recorder.ended == int(began)


def test_the_end_comes_once_after_the_last_step_and_after_an_early_stop() -> None:
    recorder = Recorder()
    run("adam", 2, recorder)
    assert recorder.ended == 1
    run("adam", 9, recorder, hg.EarlyStopping(patience=1, monitor=lambda progress: progress.step))
    assert recorder.ended == 2


class Poisoned:
    """A sampler whose batch number ``bad``, counted from 1, is NaN; the others are 1."""

    def __init__(self, bad: int) -> None:
        self.bad, self.drawn = bad, 0

    def draw(self) -> float:
        self.drawn += 1
        return math.nan if self.drawn == self.bad else 1.0

    def full(self) -> float:
        return 1.0

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.drawn = state["drawn"]


def weighted(params: Tree, hparams: Tree, batch: float) -> Tensor:
    return batch * outer(params, hparams, None)


def test_nan_in_the_middle_leaves_the_steps_before_it_and_the_run_can_go_on(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"

    def trainer(bad: int, *callbacks: hg.Callback) -> hg.Trainer:
        problem = hg.Problem(lambda p, h: inner(p, h, None), weighted, outer_data=Poisoned(bad))
        move = hg.outer.Torch(torch.optim.Adam, lr=0.1)
        return hg.Trainer(problem, LOOSE, move, callbacks)

    recorder = Recorder()
    with pytest.raises(NonFiniteError):
        trainer(4, recorder, hg.History(path), hg.Checkpoint(tmp_path, every=2)).fit(*start(), 6)
    assert [progress.step for progress in recorder.seen] == [1, 2, 3]
    assert recorder.ended == 1
    assert [strict(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert hg.load_checkpoint(tmp_path)["step_number"] == 3
    found = trainer(0, hg.History(path)).fit(*start(), 6, resume=tmp_path)
    assert same(found.hparams, trainer(0).fit(*start(), 6).hparams)
    assert [line["step"] for line in hg.read_history(path)] == [1, 2, 3, 4, 5, 6]


def test_a_step_that_fails_leaves_the_run_and_its_batches_before_the_step() -> None:
    problem = hg.Problem(lambda p, h: inner(p, h, None), weighted, outer_data=Poisoned(3))
    made = hg.Run(problem, LOOSE, *start(), SGD)
    made.step()
    made.step()
    before = made.state_dict()
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            made.step()
        assert same(made.state_dict(), before)
    assert problem.outer_data is not None
    assert problem.outer_data.state_dict() == {"drawn": 2}


def test_a_failure_within_a_line_search_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    calls = itertools.count(1)

    def fails_late(params: Tree, hparams: Tree) -> Tensor:
        return outer(params, hparams, None) * (math.nan if next(calls) >= 8 else 1.0)

    problem = hg.Problem(lambda p, h: inner(p, h, None), fails_late)
    move = hg.outer.Torch(torch.optim.LBFGS, lr=0.3, max_iter=3, max_eval=3, tolerance_change=0.0)
    recorder = Recorder()
    with pytest.raises(NonFiniteError):  # in the second evaluation of the third step
        hg.Trainer(problem, LOOSE, move, [hg.Checkpoint(tmp_path), recorder]).fit(*start(), 6)
    assert len(recorder.seen) == 2
    assert hg.load_checkpoint(tmp_path)["step_number"] == 2
    healthy = hg.Problem(lambda p, h: inner(p, h, None), lambda p, h: outer(p, h, None))
    found = hg.Trainer(healthy, LOOSE, move).fit(*start(), 4, resume=tmp_path)
    assert same(found.hparams, hg.Trainer(healthy, LOOSE, move).fit(*start(), 4).hparams)


def test_hyperparameters_that_the_outer_move_threw_to_infinity_are_named_and_not_saved(tmp_path: Path) -> None:
    wild = hg.outer.Torch(torch.optim.SGD, partial(LR.LambdaLR, lr_lambda=lambda step: 1.0 if step < 2 else math.inf))
    recorder = Recorder()
    trainer = hg.Trainer(plain(), LOOSE, wild, [hg.Checkpoint(tmp_path), recorder])
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit(*start(), 9)
    assert "hparams 'decay'" in caught.value.passed
    assert "step 3" in caught.value.passed
    assert len(recorder.seen) == 2
    assert all(bool(value.isfinite().all()) for value in hg.load_checkpoint(tmp_path)["hparams"].values())


def test_each_kind_of_warning_is_given_once_in_a_run() -> None:
    with pytest.warns(StationarityWarning) as caught:
        hg.Trainer(plain(), hg.Implicit(inner=hg.GradientDescent(lr=0.01, steps=1)), SGD).fit(*start(), 4)
    assert len(caught) == 1


# ----------------------------------------------------------------------------------------------------------------------
# Ctrl-C
# ----------------------------------------------------------------------------------------------------------------------


class Interrupting:
    """The inner objective, which sends the process SIGINT at one of its calls."""

    def __init__(self, call: int, times: int = 1) -> None:
        self.calls, self.call, self.times = 0, call, times

    def __call__(self, params: Tree, hparams: Tree, batch: Any) -> Tensor:
        self.calls += 1
        if self.calls == self.call:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return inner(params, hparams, batch)


CALLS = 7  # of the inner objective in one outer step


def interrupted(objective: Any, directory: Path, *callbacks: hg.Callback, resume: Path | None = None) -> hg.Fitted:
    problem = hg.Problem(objective, outer, inner_data=hg.TensorSampler(X, Y, batch_size=4))
    saving = hg.Checkpoint(directory, every=100)
    return hg.Trainer(problem, LOOSE, hg.outer.Torch(torch.optim.Adam, lr=0.1), [saving, *callbacks]).fit(
        *start(), 6, resume=resume
    )


@pytest.mark.parametrize(("times", "made"), [(1, 3), (2, 2)], ids=["once", "twice"])
def test_ctrl_c_leaves_a_checkpoint_from_which_the_same_run_goes_on(times: int, made: int, tmp_path: Path) -> None:
    expected = interrupted(inner, tmp_path / "whole")
    objective, recorder, before = Interrupting(2 * CALLS + 4, times), Recorder(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted(objective, tmp_path, recorder, hg.History(tmp_path / "history.jsonl"))
    assert [progress.step for progress in recorder.seen] == list(range(1, made + 1)), "one ends after the step"
    assert recorder.ended == 1
    assert signal.getsignal(signal.SIGINT) is before
    assert hg.load_checkpoint(tmp_path)["step_number"] == made
    assert [line["step"] for line in hg.read_history(tmp_path / "history.jsonl")] == list(range(1, made + 1))
    found = interrupted(inner, tmp_path, resume=tmp_path)
    assert same(found.hparams, expected.hparams)
    assert same(found.params, expected.params)


def test_ctrl_c_says_that_a_second_one_ends_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(Interrupting(3), tmp_path)
    assert "stopping after this step; press Ctrl-C again to stop at once" in capfd.readouterr().err


def test_a_fit_gives_ctrl_c_back_to_whoever_had_it() -> None:
    def mine(_number: int, _frame: Any) -> None:
        raise AssertionError("not mine while it runs")

    previous = signal.signal(signal.SIGINT, mine)
    try:
        run("adam", 2)
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_fit_runs_in_a_thread_which_cannot_have_ctrl_c() -> None:
    found: list[hg.Fitted] = []
    thread = threading.Thread(target=lambda: found.append(run("adam", 2)))
    thread.start()
    thread.join(timeout=60)
    assert same(found[0].hparams, run("adam", 2).hparams)


SCRIPT = '''
"""A run that is slow enough to be interrupted."""
import os
import sys
import time

import torch

import hypergrad as hg

torch.set_num_threads(1)
HANG = float(os.environ.get("HANG", "0"))
generator = torch.Generator().manual_seed(0)
x = torch.randn(8, 3, dtype=torch.float64, generator=generator)
made = 0


def inner(params, hparams, batch):
    time.sleep(0.01)
    if HANG and made == 3:
        print("hanging", flush=True)
        time.sleep(HANG)
    (rows,) = batch
    kept = torch.nn.functional.dropout(rows, 0.2)
    return (kept @ params["w"] - 1).square().mean() + hparams["decay"].exp() * params["w"].square().sum()


def outer(params, hparams):
    return (x @ params["w"] - 0.5).square().mean()


class Say(hg.Callback):
    def step(self, run, progress):
        global made
        made = progress.step
        print(progress.step, flush=True)


def trainer(folder, *callbacks):
    return hg.Trainer(
        hg.Problem(inner, outer, inner_data=hg.TensorSampler(x, batch_size=3)),
        hg.Unrolled(5, hg.GradientDescent(lr=0.1, momentum=0.5), warm_start=True),
        hg.outer.Torch(torch.optim.Adam, lr=0.1),
        [hg.History(f"{folder}/history.jsonl"), hg.Checkpoint(folder), *callbacks],
    )


def start():
    return {"w": torch.zeros(3, dtype=torch.float64)}, {"decay": torch.tensor(-1.0, dtype=torch.float64)}


if __name__ == "__main__":
    trainer(sys.argv[1], Say()).fit(*start(), 10_000)
'''


class Child:
    """The script above in a process of its own."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.path = directory / "slow_run.py"
        self.path.write_text(SCRIPT)
        self.folder = directory / "out"
        self.process = subprocess.Popen(
            [sys.executable, str(self.path), str(self.folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        )

    def wait_for(self, said: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == said:
                return
        raise AssertionError(f"it ended without saying {said!r}: {self.finish()}")

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def finish(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def module(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("slow_run", self.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def check_whole(self, directory: Path) -> int:
        """Check what the process left, that it can be resumed to the same result, and return the step it was at."""
        step: int = hg.load_checkpoint(self.folder)["step_number"]
        assert sorted(path.name for path in self.folder.iterdir()) == ["checkpoint.pt", "history.jsonl"]
        text = (self.folder / "history.jsonl").read_text()
        assert text.endswith("\n")
        assert [strict(line)["step"] for line in text.splitlines()] == list(range(1, step + 1))
        module = self.module()
        found = module.trainer(self.folder).fit(*module.start(), step + 2, resume=self.folder)
        expected = module.trainer(directory / "whole").fit(*module.start(), step + 2)
        assert same(found.hparams, expected.hparams)
        assert same(found.params, expected.params)
        return step


posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@posix
def test_a_process_that_gets_ctrl_c_ends_by_it_and_loses_nothing(tmp_path: Path) -> None:
    child = Child(tmp_path)
    child.wait_for("3")
    time.sleep(0.03)  # into the middle of a step
    child.interrupt()
    status, errors = child.finish()
    assert status == -signal.SIGINT
    assert "stopping after this step" in errors
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert child.check_whole(tmp_path) >= 3


@posix
def test_a_second_ctrl_c_ends_a_process_at_once_and_loses_the_step_under_way_only(tmp_path: Path) -> None:
    child = Child(tmp_path, HANG="100")
    child.wait_for("hanging")
    child.interrupt()
    assert child.process.stderr is not None
    assert child.process.stderr.readline() == "\n"
    assert "press Ctrl-C again" in child.process.stderr.readline()
    before = time.monotonic()
    child.interrupt()
    status, errors = child.finish()
    assert time.monotonic() - before < 20, "it slept on"
    assert status == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert child.check_whole(tmp_path) == 3


# ----------------------------------------------------------------------------------------------------------------------
# What moves the hyperparameters
# ----------------------------------------------------------------------------------------------------------------------

TARGET = torch.tensor([3.0, -4.0, 0.25], dtype=torch.float64)
DIRECT = hg.Implicit(inner=hg.Newton())


def pursuit(domain: Mapping[str, Any] | None = None) -> hg.Problem:
    """w* = x and F(x) = ½‖x − t‖² + ½ s², whose hypergradient is x − t and s."""
    return hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum() / 2,
        lambda params, hparams: (params["w"] - TARGET).square().sum() / 2 + hparams["s"].square() / 2,
        hparams_domain=domain or {},
    )


def pursuer(x: float = 0.5, s: float = 2.0) -> tuple[Tree, Tree]:
    hparams = {"x": torch.full((3,), x, dtype=torch.float64), "s": torch.tensor(s, dtype=torch.float64)}
    return {"w": torch.zeros(3, dtype=torch.float64)}, hparams


DOMAINS: dict[str, tuple[Any, Callable[[Tensor], bool], Tensor]] = {
    "box": (hg.Box(-1.0, 1.0), lambda x: bool((x.abs() <= 1).all()), TARGET.clamp(-1, 1)),
    "positive": (hg.Positive(0.1), lambda x: bool((x >= 0.1).all()), TARGET.clamp(min=0.1)),
    "unit": (hg.UnitInterval(), lambda x: bool(((x >= 0) & (x <= 1)).all()), TARGET.clamp(0, 1)),
    "simplex": (
        hg.Simplex(),
        lambda x: bool((x >= 0).all()) and float(x.sum()) == pytest.approx(1.0),
        torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
    ),
    "ball": (hg.Ball(2.0), lambda x: float(x.norm()) <= 2 * (1 + 1e-12), 2 * TARGET / TARGET.norm()),
}
MOVES: dict[str, Any] = {
    "sgd": hg.outer.Torch(torch.optim.SGD, lr=0.5),
    "sgd-far-too-long": hg.outer.Torch(torch.optim.SGD, lr=50.0),
    "adam": hg.outer.Torch(torch.optim.Adam, lr=0.5),
    "lbfgs": hg.outer.Torch(torch.optim.LBFGS, lr=1.0, max_iter=3),
    "lbfgsb": hg.outer.LBFGSB(iterations=5),
}


NO_BOX = ("simplex", "ball")
PAIRS = [(kind, move) for kind in DOMAINS for move in MOVES if not (move == "lbfgsb" and kind in NO_BOX)]


@pytest.mark.parametrize(("kind", "move"), PAIRS)
def test_every_move_stays_in_the_domain(kind: str, move: str) -> None:
    domain, inside, _ = DOMAINS[kind]
    params, hparams = pursuer(x=7.0)  # outside
    for progress in hg.iterate(pursuit({"x": domain}), DIRECT, params, hparams, outer=MOVES[move], steps=6):
        assert inside(progress.hparams["x"])
        assert inside(progress.moved["x"])


@pytest.mark.parametrize(("kind", "move"), [pair for pair in PAIRS if pair[1] in ("sgd", "lbfgsb")])
def test_a_constrained_move_reaches_the_nearest_point_of_the_domain(kind: str, move: str) -> None:
    domain, _, nearest = DOMAINS[kind]
    fitted = hg.Trainer(pursuit({"x": domain}), DIRECT, MOVES[move]).fit(*pursuer(), 40)
    assert torch.allclose(fitted.hparams["x"], nearest, atol=1e-6)


def test_the_bounds_of_l_bfgs_b_come_before_the_domain() -> None:
    move = hg.outer.LBFGSB(iterations=10, bounds={"x": (None, 2.0), "s": (0.5, None)})
    fitted = hg.Trainer(pursuit({"x": hg.UnitInterval()}), DIRECT, move).fit(*pursuer(), 3)
    assert torch.allclose(fitted.hparams["x"], TARGET.clamp(max=2.0), atol=1e-6)
    assert float(fitted.hparams["s"]) == 0.5


def moved_by(move: Any, x: float = 0.5) -> tuple[Tree, hg.Progress]:
    params, hparams = pursuer(x)
    (progress,) = hg.iterate(pursuit(), DIRECT, params, hparams, outer=move, steps=1)
    return {key: progress.moved[key] - hparams[key] for key in hparams}, progress


def test_a_plain_move_is_the_step_size_times_the_hypergradient() -> None:
    moved, progress = moved_by(hg.outer.Torch(torch.optim.SGD, lr=0.25))
    assert torch.allclose(moved["x"], -0.25 * (0.5 - TARGET))
    assert float(moved["s"]) == pytest.approx(-0.5)
    assert progress.norm == pytest.approx(math.hypot(*(0.5 - TARGET).tolist(), 2.0))


def test_clipping_shortens_a_long_hypergradient_without_turning_it() -> None:
    free, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=1.0))
    clipped, progress = moved_by(hg.outer.Torch(torch.optim.SGD, lr=1.0, clip=0.5))
    whole = torch.cat([free["x"], free["s"].reshape(1)])
    short = torch.cat([clipped["x"], clipped["s"].reshape(1)])
    assert float(short.norm()) == pytest.approx(0.5, rel=1e-5)
    assert torch.allclose(short / short.norm(), whole / whole.norm())
    assert progress.norm == pytest.approx(float(whole.norm())), "the norm that is reported is that of the hypergradient"


def test_clipping_leaves_a_short_hypergradient_alone() -> None:
    free, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=1.0))
    clipped, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=1.0, clip=1e3))
    assert same(free, clipped)


def test_groups_give_single_hyperparameters_options_of_their_own() -> None:
    moved, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=0.1, groups={"s": {"lr": 0.5}}))
    assert torch.allclose(moved["x"], -0.1 * (0.5 - TARGET))
    assert float(moved["s"]) == pytest.approx(-0.5 * 2.0)


def test_every_hyperparameter_may_have_a_group() -> None:
    groups = {"s": {"lr": 0.5}, "x": {"lr": 0.2, "weight_decay": 1.0}}
    moved, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=0.1, groups=groups))
    assert torch.allclose(moved["x"], -0.2 * (0.5 - TARGET + 0.5))
    assert float(moved["s"]) == pytest.approx(-0.5 * 2.0)


def test_maximising_goes_up() -> None:
    down, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=0.1))
    up, _ = moved_by(hg.outer.Torch(torch.optim.SGD, lr=0.1, maximize=True))
    assert all(torch.allclose(up[key], -down[key]) for key in down)


def test_a_scheduler_is_stepped_once_after_each_outer_step() -> None:
    lrs = [0.4, 0.4, 0.2, 0.2, 0.1]
    move = hg.outer.Torch(torch.optim.SGD, partial(LR.StepLR, step_size=2, gamma=0.5), lr=0.4)
    for lr, progress in zip(lrs, hg.iterate(pursuit(), DIRECT, *pursuer(), outer=move, steps=5), strict=True):
        step = progress.moved["s"] - progress.hparams["s"]
        assert float(step / progress.hparams["s"]) == pytest.approx(-lr)


def test_a_plateau_scheduler_watches_the_outer_loss() -> None:
    frozen = hg.Problem(
        lambda params, hparams: (params["w"] - hparams["x"]).square().sum() / 2,
        lambda params, hparams: params["w"].sum() - hparams["x"].detach().sum() + 5 + 0 * hparams["s"],
    )  # the loss stays at 5 while x moves
    move = hg.outer.Torch(torch.optim.SGD, partial(LR.ReduceLROnPlateau, patience=1, factor=0.1), lr=1.0)
    steps = [
        float((progress.moved["x"] - progress.hparams["x"])[0])
        for progress in hg.iterate(frozen, DIRECT, *pursuer(), outer=move, steps=5)
    ]
    assert steps == pytest.approx([-1.0, -1.0, -1.0, -0.1, -0.1])


# ----------------------------------------------------------------------------------------------------------------------
# A loop of one's own
# ----------------------------------------------------------------------------------------------------------------------


def test_an_iterator_works_only_when_it_is_asked() -> None:
    calls = 0

    def counting(params: Tree, hparams: Tree) -> Tensor:
        nonlocal calls
        calls += 1
        return (params["w"] - TARGET).square().sum() + hparams["s"].square() + hparams["x"].square().sum()

    problem = hg.Problem(lambda params, hparams: (params["w"] - hparams["x"]).square().sum(), counting)
    endless = hg.iterate(problem, DIRECT, *pursuer(), outer=SGD)
    assert calls == 0
    assert [next(endless).step for _ in range(3)] == [1, 2, 3]
    assert calls == 3


def test_an_iterator_ends_after_its_steps_and_each_step_starts_where_the_last_one_moved_to() -> None:
    seen = list(hg.iterate(pursuit(), DIRECT, *pursuer(), outer=SGD, steps=4))
    assert [progress.step for progress in seen] == [1, 2, 3, 4]
    assert all(same(earlier.moved, later.hparams) for earlier, later in itertools.pairwise(seen))
    for progress in seen:
        assert torch.allclose(progress.params["w"], progress.hparams["x"])
        expected = (progress.hparams["x"] - TARGET).square().sum() / 2 + progress.hparams["s"].square() / 2
        assert progress.outer_loss == pytest.approx(float(expected))
        assert progress.seconds > 0


def test_a_trainer_an_iterator_and_a_run_make_the_same_steps() -> None:
    fitted = hg.Trainer(*RESUMED["dropout-and-batches"](), seed=3).fit(*start(), 3)
    problem, algorithm, move = RESUMED["dropout-and-batches"]()
    *_, last = hg.iterate(problem, algorithm, *start(), outer=move, steps=3, seed=3)
    assert same(last.moved, fitted.hparams)
    problem, algorithm, move = RESUMED["dropout-and-batches"]()
    made = hg.Run(problem, algorithm, *start(), move, seed=3)
    for _ in range(3):
        made.step()
    assert same(made.hparams, fitted.hparams)
    assert same(made.params, fitted.params)


def test_another_seed_is_another_run() -> None:
    first = hg.Trainer(*RESUMED["dropout"](), seed=0).fit(*start(), 2)
    second = hg.Trainer(*RESUMED["dropout"](), seed=1).fit(*start(), 2)
    assert not same(first.hparams, second.hparams)
