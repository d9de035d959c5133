"""Every network under every method: the hypergradient against a float64 reference, and nothing of the user's moved."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch

import hypergrad as hg
from hypergrad.errors import CurvatureWarning, ObjectiveError
from hypergrad.testing.conformance import relative_error
from hypergrad.tree import Tree
from tests.networks.methods import METHODS
from tests.networks.setting import SEED, Setting, Twin, Untouched
from tests.networks.zoo import NETWORKS

CELLS = [(network, method) for network in NETWORKS for method in METHODS]
PRECISIONS = {
    "float64": (torch.float64, 1e-8),
    "float32": (torch.float32, 1e-5),
    "bfloat16-autocast": (torch.float32, 1e-5),
}
"""The dtype of the parameters, and the largest relative error. Under autocast training is in bfloat16, the loss enters
autocast itself and the call stands inside another one: products are to be those of float32 nevertheless."""

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])


@functools.cache
def reference(network: str, method: str, device: str, *, quiet: bool) -> Tree:
    """The method's closed form on the same draw of noise."""
    twin = Twin(network, device, quiet=quiet)
    with twin.plain():
        return METHODS[method].reference(twin)


def train_one_step(setting: Setting) -> torch.optim.Optimizer:
    """Fill an optimizer's state and every ``.grad`` by an ordinary step, and put the tensors back."""
    model = setting.model
    tensors = [*model.parameters(), *model.buffers()]
    names = [key for key, _ in [*model.named_parameters(), *model.named_buffers()]]
    before = [tensor.detach().clone() for tensor in tensors]
    optimizer = torch.optim.Adam(setting.params.values(), lr=1e-2)
    setting.inner().backward()
    optimizer.step()
    with torch.no_grad():
        for name, value in zip(names, before, strict=True):
            owner, _, last = name.rpartition(".")
            getattr(model.get_submodule(owner), last).copy_(value)
    setting.hparams["weight"].grad = setting.hparams["decay"].grad = None
    return optimizer


def hypergradient(setting: Setting, method: str) -> Tree:
    """The hypergradient by the method's face, from the seed that the reference starts at."""
    row = METHODS[method]
    algorithm = row.algorithm(setting.dtype)
    with warnings.catch_warnings(), torch.autocast(setting.device, torch.bfloat16, enabled=setting.autocast):
        if method == "single-loop":
            warnings.simplefilter("ignore", CurvatureWarning)  # these networks are not trained
        if row.live:
            hg.Live(setting.model, setting.hparams, setting.inner, setting.outer, algorithm).backward()
            return {key: value.grad for key, value in setting.hparams.items() if value.grad is not None}
        problem = hg.Problem(setting.inner_function, setting.outer_function)
        return hg.hypergradient(problem, setting.params, setting.hparams, algorithm).grads


@on_each_device
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("network", "method"), CELLS)
def test_hypergradient_is_right_and_nothing_moves(network: str, method: str, precision: str, device: str) -> None:
    dtype, tolerance = PRECISIONS[precision]
    quiet = device == "cuda" and dtype is not torch.float64  # its masks depend on the dtype, the reference is float64
    setting = Setting(network, dtype, device, autocast=precision == "bfloat16-autocast", quiet=quiet)
    optimizer = train_one_step(setting)
    if precision == "float64":
        optimizer.zero_grad()
    refusal = NETWORKS[network].refusal
    expected = {} if refusal else reference(network, method, device, quiet=quiet)
    torch.manual_seed(SEED)
    untouched = Untouched(setting, optimizer)
    if refusal:
        with pytest.raises(ObjectiveError, match=refusal):
            hypergradient(setting, method)
        assert all(value.grad is None for value in setting.hparams.values())
    else:
        found = hypergradient(setting, method)
        assert found.keys() == expected.keys()
        assert relative_error({key: value.double() for key, value in found.items()}, expected) <= tolerance
    assert untouched.moved() == []


def test_every_network_meets_every_method() -> None:
    marks = test_hypergradient_is_right_and_nothing_moves.pytestmark  # type: ignore[attr-defined]
    cells = next(mark.args[1] for mark in marks if mark.args[0] == ("network", "method"))
    assert set(cells) == {(network, method) for network in NETWORKS for method in METHODS}
    assert len(cells) == len(NETWORKS) * len(METHODS)
    precisions = next(mark.args[1] for mark in marks if mark.args[0] == "precision")
    assert set(precisions) == set(PRECISIONS)
