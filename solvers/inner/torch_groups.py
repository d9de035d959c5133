"""The parameter groups of a torch optimizer: which parameters they hold, and which of their options are tuned."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from hypergrad.errors import InputError, UnsupportedError, did_you_mean
from hypergrad.inner import Tuned, resolve
from hypergrad.solvers.inner.follow import precise
from hypergrad.tree import Tree, check_keys

Optimizer = torch.optim.Optimizer
Factory = Callable[[list[Tensor]], Optimizer]
Settings = Mapping[Any, Any]
NOT_OPTIONS = ("params", "param_names")
Line = tuple[float, float]
LOOPS = {"foreach": False, "fused": False, "differentiable": False}
HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


@final
@dataclass(frozen=True)
class Part:
    """Parameters of one group that share all their settings.

    Attributes:
        group: index of the optimizer's group.
        keys: names of the parameters.
        settings: what replaces options of the group: a setting, or a tuple of them for an option such as ``betas``.
    """

    group: int
    keys: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def tuned(self) -> bool:
        """Whether a setting is read from the hyperparameters."""
        return any(isinstance(one, Tuned) for value in self.settings.values() for one in _entries(value))

    def options(self, present: dict[str, Any], hparams: Tree, step: int, line: Line = (0.0, 1.0)) -> dict[str, Any]:
        """Return the options at a step: tuned settings as tensors, in the place of those of the group.

        Args:
            present: the options of the group.
            hparams: λ.
            step: of training.
            line: a and c, where a schedule makes a + c · lr of the setting ``lr``.
        """
        found = dict(present)
        for name, value in self.settings.items():
            read = tuple(_checked(name, resolve(one, hparams, step)) for one in _entries(value))
            if name == "lr" and line != (0.0, 1.0):
                read = ((precise(read[0]) if isinstance(read[0], Tensor) else read[0]) * line[1] + line[0],)
            found[name] = read if isinstance(value, tuple) else read[0]
        return found


def options_of(optimizer: Optimizer, group: int) -> dict[str, Any]:
    """Return the present options of a group, but for those that choose a kernel; tensors are copied."""
    found = {key: value for key, value in optimizer.param_groups[group].items() if key not in NOT_OPTIONS}
    found = {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in found.items()}
    return found | {key: value for key, value in LOOPS.items() if key in found}


def make(factory: Optimizer | Factory, params: Tree) -> tuple[Optimizer, dict[int, str]]:
    """Return the optimizer that a factory makes for tensors like ``params``, and the tensors' names by identity."""
    tensors = {key: torch.zeros_like(value, requires_grad=True) for key, value in params.items()}
    found: Any = factory(list(tensors.values()))  # type: ignore[operator]
    if not isinstance(found, Optimizer):
        raise InputError(
            passed=f"TorchRule(optimizer=...), a function that returned {type(found).__name__}",
            expected="a torch.optim.Optimizer over the tensors it is given",
            do="pass lambda p: torch.optim.AdamW(p, lr=1e-3), or the optimizer itself",
        )
    return found, {id(tensor): key for key, tensor in tensors.items()}


def identities(names: nn.Module | Mapping[str, Tensor] | None) -> dict[int, str]:
    """Return names of tensors by identity."""
    if names is None:
        return {}
    pairs: Iterable[tuple[str, Tensor]] = names.named_parameters() if isinstance(names, nn.Module) else names.items()
    return {id(tensor): key for key, tensor in pairs}


def members(optimizer: Optimizer, names: dict[int, str], params: Tree, *, alike: bool) -> list[list[str]]:
    """Return the names of the parameters in each group.

    Args:
        optimizer: whose groups.
        names: names by identity, as far as they are known.
        params: the problem's.
        alike: whether the parameters of a group may be confused with each other, since none has a state of its own.

    Raises:
        InputError: tensors whose names are not known.
        TreeError: other names than those of ``params``.
    """
    found: list[list[str]] = []
    for group in optimizer.param_groups:
        known = group.get("param_names") or [names.get(id(tensor)) for tensor in group["params"]]
        if names:
            known = [names.get(id(tensor)) for tensor in group["params"]]
        found.append([name for name in known if name is not None])
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if [len(keys) for keys in found] != sizes:
        if not names and alike and sizes == [len(params)]:
            return [list(params)]
        raise InputError(
            passed=f"TorchRule with a {type(optimizer).__name__} whose {sum(sizes)} parameters have no names",
            expected=f"the names of params for each: {list(params)}",
            do="pass names=model (or a dict of the same tensors), or give the optimizer model.named_parameters()",
        )
    check_keys(f"the parameters of {type(optimizer).__name__}", [key for keys in found for key in keys], params)
    return found


def parts(optimizer: Optimizer, groups: list[list[str]], settings: Settings) -> list[Part]:
    """Return the groups, taken apart where single parameters have settings of their own."""
    general = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    special = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    known = {key for keys in groups for key in keys}
    titles = {str(group["name"]) for group in optimizer.param_groups if "name" in group}
    for key in special:
        if not (key in known or key in titles or (isinstance(key, int) and 0 <= key < len(groups))):
            hint = did_you_mean(key, [*known, *titles]) if isinstance(key, str) else ""
            raise InputError(
                passed=f"TorchRule(settings=...) for {key!r}{hint}",
                expected=f"the number of a group (0 to {len(groups) - 1}), its name, or the name of a parameter",
                do='write {"lr": ...} for all groups, {1: {"lr": ...}} for one, {"weight": {"lr": ...}} for a tensor',
            )
    found = []
    for index, keys in enumerate(groups):
        group = optimizer.param_groups[index]
        common = {**general, **special.get(index, {}), **special.get(group.get("name"), {})}
        alone = [key for key in keys if key in special]
        rest = tuple(key for key in keys if key not in special)
        pieces = [(rest, common)] if rest else []
        pieces += [((key,), {**common, **special[key]}) for key in alone]
        found += [Part(index, part, _normal(group, chosen)) for part, chosen in pieces]
    return found


def _normal(group: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with tuples for options of several numbers, after checking that the group has them."""
    options = [key for key in group if key not in NOT_OPTIONS]
    for name, value in chosen.items():
        if name not in options:
            raise InputError(
                passed=f"TorchRule(settings=...) with {name!r}{did_you_mean(str(name), options)}",
                expected=f"options of the optimizer's groups: {options}",
                do="rename it; the betas of Adam are one option: {'betas': (hypergrad.Tuned('beta1'), 0.999)}",
            )
        numbers: Any = group[name]
        if isinstance(numbers, bool) or not isinstance(numbers, int | float | tuple | list | Tensor):
            raise InputError(
                passed=f"TorchRule(settings=...) with {name!r}, which is {numbers!r}",
                expected="an option that is a number, or several",
                do="set it in the optimizer itself",
            )
        wanted, given = (len(x) if isinstance(x, tuple | list) else 0 for x in (numbers, value))
        if wanted != given:
            raise InputError(
                passed=f"TorchRule(settings=...) with {name!r}: {value!r}",
                expected=f"as many settings as the option has numbers: {numbers!r}",
                do=f"pass {name!r}: (hypergrad.Tuned(...), ...)" if isinstance(numbers, tuple) else "pass one setting",
            )
    return {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}


def _entries(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _checked(name: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() != 0:
        raise InputError(
            passed=f"a Tuned setting {name!r} of shape {tuple(value.shape)}",
            expected="a 0-d tensor",
            do="give each group or parameter a setting of its own: settings={'head.weight': {'lr': ...}}",
        )
    return value


def stand_in(optimizer: Optimizer, groups: list[dict[str, Any]], state: Mapping[Tensor, Any]) -> Any:
    """Return an optimizer of the same class over other tensors; the original is only read.

    Raises:
        UnsupportedError: hooks on the original's step, which may act on anything.
    """
    if any(getattr(optimizer, name, None) for name in HOOKS):
        raise UnsupportedError(
            passed=f"a {type(optimizer).__name__} with hooks on its step",
            expected="an optimizer whose step() is all that happens at a step",
            do="remove the hooks, or move what they do into a subclass's step() or into the inner objective",
        )
    twin = object.__new__(type(optimizer))
    held = {key: value for key, value in vars(optimizer).items() if key != "step"}  # schedulers put a step there
    twin.__dict__.update({key: _copied(value) for key, value in held.items() if key not in ("state", "param_groups")})
    twin.__dict__.update({name: OrderedDict() for name in HOOKS})
    twin.param_groups, twin.state = groups, defaultdict(dict, state)
    return twin


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if isinstance(value, dict | list | set) else value
