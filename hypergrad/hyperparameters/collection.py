"""All hyperparameters of a problem under their names, as a module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from hypergrad.domains import Box, Domain, Positive, UnitInterval
from hypergrad.errors import InputError, TreeError, UnsupportedError, did_you_mean
from hypergrad.hyperparameters.declaration import Hyperparameter, Value
from hypergrad.hyperparameters.links import Each
from hypergrad.inner import InnerSolver
from hypergrad.kinds import kinds
from hypergrad.problem import Problem
from hypergrad.solvers import best_response
from hypergrad.tree import NamedTree, Tree, check_names, detached

Declared = Hyperparameter | float | Tensor


class Trial(Protocol):
    """What a search suggests values with; an ``optuna.Trial`` is one."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number from low to high."""
        ...

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return a whole number from low to high."""
        ...

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Return one of the choices."""
        ...


@final
class Hyperparameters(nn.Module):
    """Named hyperparameters λ, each with a domain, moved as unconstrained raw tensors.

    ``hparams["name"]``, and ``hparams.name``, is the value inside its domain, differentiable with respect to the raw
    tensor. The raw tensors are the module's parameters under the same names: optimizers, ``state_dict``,
    ``.to(device)``, :class:`~hypergrad.Live` and, with :meth:`tree`, every other face take them as they are.

    Args:
        declared: a mapping of names to hyperparameters, or pairs; a plain number or tensor is one without a domain.
        dtype: of the raw tensors, by default torch's default.
        device: of the raw tensors.
        named: hyperparameters by keyword.

    Raises:
        InputError: no hyperparameters, one twice, a name that a module has for itself, or a wrong declaration.
        TreeError: at ``hparams["name"]``, an unknown name.

    Example:
        >>> import torch, hypergrad as hg
        >>> hparams = hg.Hyperparameters(
        ...     weight_decay=hg.Hyperparameter(1e-3, hg.Positive()),
        ...     mixture=hg.Hyperparameter([0.5, 0.25, 0.25], hg.Simplex()),
        ... )
        >>> hparams
        Hyperparameters(
          weight_decay = 0.001   Positive(floor=0.0) by log
          mixture = [0.5, 0.25, 0.25]   Simplex(total=1.0) by softmax
        )
        >>> hparams.weight_decay.backward()
        >>> hparams.tree()["weight_decay"].grad
        tensor(0.0010)
    """

    def __init__(
        self,
        declared: Mapping[str, Declared] | Iterable[tuple[str, Declared]] = (),
        /,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **named: Declared,
    ) -> None:
        """Check the declarations and go to the initial values."""
        super().__init__()
        settings = _checked(declared, named)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        for name, setting in settings.items():
            raw = setting.raw(setting.initial).to(dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(raw, requires_grad=setting.differentiable))
        self._kinds: dict[str, str] | None = None
        self.settings = settings

    def __getitem__(self, name: str) -> Tensor:
        """Return the value of a hyperparameter, differentiably."""
        return self._setting(name).value(self._raw(name))

    def __setitem__(self, name: str, value: Value) -> None:
        """Move a hyperparameter to a value, in place.

        Raises:
            InputError: a value outside its domain or its bounds, NaN, or of another shape.
        """
        setting, raw = self._setting(name), self._raw(name)
        found = _named(name, setting.raw, value)
        if found.shape != raw.shape:
            raise InputError(
                passed=f"hparams[{name!r}] of shape {tuple(found.shape)}",
                expected=f"the shape {tuple(raw.shape)}",
                do="pass a value of that shape, for example with torch.full",
            )
        with torch.no_grad():
            raw.copy_(found)

    def __getattr__(self, name: str) -> Any:
        """Return the value of a hyperparameter."""
        if name in self.__dict__.get("settings", ()):
            return self[name]
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            hint = did_you_mean(name, self.__dict__.get("settings", ()))
            raise AttributeError(f"{error}{hint}") from None

    def __dir__(self) -> list[str]:
        """Return the attributes with the hyperparameters."""
        return [*super().__dir__(), *self.settings]  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.settings)

    def __len__(self) -> int:
        """Return the number of hyperparameters."""
        return len(self.settings)

    def __contains__(self, name: object) -> bool:
        """Return whether a hyperparameter has this name."""
        return name in self.settings

    def values(self) -> Tree:
        """Return all values under their names, differentiably."""
        return {name: self[name] for name in self.settings}

    def tree(self) -> Tree:
        """Return the raw tensors that a gradient can reach: ``hparams`` of every other face."""
        return {name: self._raw(name) for name, setting in self.settings.items() if setting.differentiable}

    def read(self, hparams: Mapping[str, Tensor]) -> Tree:
        """Return the values of raw tensors, differentiably: for objectives that get λ as an argument.

        Args:
            hparams: a tree like :meth:`tree`, or a part of it; tensors of other names are left out.

        Raises:
            TreeError: at a wrong key of the result, the nearest name.
        """
        found = {name: setting.value(hparams[name]) for name, setting in self.settings.items() if name in hparams}
        return NamedTree("hparams", found)

    def domains(self) -> dict[str, Domain]:
        """Return the sets that raw tensors are projected onto: bounds, and domains without a reparametrisation.

        They are the ``hparams_domain`` of a :class:`~hypergrad.Problem` whose λ is :meth:`tree`.
        """
        found = {name: setting.raw_domain() for name, setting in self.settings.items()}
        return {name: domain for name, domain in found.items() if domain is not None}

    @torch.no_grad()
    def project_(self) -> None:
        """Project the raw tensors onto :meth:`domains` in place, after ``step()`` of an optimizer of one's own."""
        for name, domain in self.domains().items():
            self._raw(name).copy_(domain.project(self._raw(name)))

    @property
    def kinds(self) -> dict[str, str] | None:
        """Where each hyperparameter enters, by name, once that was found out; ``None`` before."""
        return self._kinds

    @kinds.setter
    def kinds(self, kinds: Mapping[str, str] | None) -> None:
        if kinds is not None:
            check_names("kinds", kinds, self.settings)
        self._kinds = None if kinds is None else dict(kinds)

    def find_kinds(
        self, problem: Problem, params: Mapping[str, Tensor], *, inner: InnerSolver | None = None
    ) -> dict[str, str]:
        """Find out where each hyperparameter enters, and keep that as :attr:`kinds`; see :func:`hypergrad.kinds`.

        Args:
            problem: a problem whose λ is :meth:`tree`.
            params: θ, or where training starts.
            inner: how training goes, to look for settings that are :class:`~hypergrad.Tuned`.

        Returns:
            ``"inner"``, ``"optimizer"``, ``"initial"``, ``"outer"`` or, for whole numbers and choices, ``"discrete"``.

        Raises:
            CutError: a hyperparameter whose gradient is cut.
            UnreachedError: one that nothing reads.
        """
        found = kinds(problem, params, detached(self.tree()), inner=inner)
        names = {name: str(found[name].kind) if name in found else "discrete" for name in self.settings}
        self.kinds = names
        return names

    def best_response(self, *, scale: float = 0.5, shared: Iterable[str] = ()) -> best_response.Hyperparameters:
        """Return the same hyperparameters at their present values for :mod:`hypergrad.best_response`.

        Args:
            scale: initial standard deviation of the perturbations, above 0, in units of the raw tensors.
            shared: names of those that act on a tensor which all examples share, such as a weight decay.

        Raises:
            UnsupportedError: a hyperparameter that is no number or vector, or has bounds, or a domain without a map of
                single entries (a simplex, a floor, a projection).
        """
        shared = list(shared)
        check_names("shared", shared, self.settings)
        found = {}
        for name, setting in self.settings.items():
            link, raw = setting.link, self._raw(name)
            if not isinstance(link, Each) or link.floor or setting.raw_domain() is not None or raw.dim() > 1:
                raise UnsupportedError(
                    passed=f"the hyperparameter {name!r} of shape {tuple(raw.shape)}, {setting.describe()}",
                    expected="numbers or vectors by log, softplus, sigmoid, identity or relaxation, without bounds",
                    do="declare it as one of these, with Box(low, high) in place of bounds",
                )
            value: Any = setting.value(raw.detach().double()).tolist()
            found[name] = best_response.Hyperparameter(value, link.entry, scale=scale, per_example=name not in shared)
        raw = next(iter(self.parameters()))
        return best_response.Hyperparameters(found, dtype=raw.dtype, device=raw.device)

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Return a value for each hyperparameter from a search, such as an ``optuna.Trial``; nothing moves.

        Positive ones are searched on a log scale.

        Raises:
            UnsupportedError: a hyperparameter that is no single number, or has no finite range.
        """
        return {name: _suggestion(name, setting, self._raw(name), trial) for name, setting in self.settings.items()}

    def extra_repr(self) -> str:
        """Return a line for each hyperparameter."""
        kinds = self._kinds or {}
        return "\n".join(
            f"{name} = {_shown(self[name].detach())}   {setting.describe()}"
            + (f"   [{kinds[name]}]" if name in kinds else "")
            for name, setting in self.settings.items()
        )

    def _setting(self, name: str) -> Hyperparameter:
        if name not in self.settings:
            raise TreeError(
                passed=f"the hyperparameter {name!r}{did_you_mean(str(name), self.settings)}",
                expected=f"one of {list(self.settings)}",
                do="rename it, or declare it in Hyperparameters",
            )
        return self.settings[name]

    def _raw(self, name: str) -> Tensor:
        raw = self._parameters[name]
        assert raw is not None
        return raw


def _checked(
    declared: Mapping[str, Declared] | Iterable[tuple[str, Declared]], named: Mapping[str, Declared]
) -> dict[str, Hyperparameter]:
    settings: dict[str, Hyperparameter] = {}
    try:
        pairs = [*(declared.items() if isinstance(declared, Mapping) else declared), *named.items()]
        pairs = [(name, value) for name, value in pairs]
    except (TypeError, ValueError) as error:
        raise InputError(
            passed=f"Hyperparameters({declared!r})",
            expected="a mapping of names to hyperparameters",
            do="write Hyperparameters(weight_decay=Hyperparameter(1e-3, Positive()))",
        ) from error
    if not pairs:
        raise InputError("Hyperparameters() with none", "at least one", "declare one: Hyperparameters(shift=0.0)")
    for name, value in pairs:
        _check_name(name, settings)
        if isinstance(value, Hyperparameter):
            settings[name] = value
        else:
            settings[name] = _named(name, Hyperparameter, value)
    return settings


def _check_name(name: object, taken: Iterable[str]) -> None:
    if not isinstance(name, str) or not name or "." in name:
        raise InputError(f"a hyperparameter named {name!r}", "a name without dots", "rename it, with _ for the dot")
    if name in taken:
        raise InputError(f"the hyperparameter {name!r} twice", "different names", "rename one of the two")
    if hasattr(Hyperparameters, name) or name in nn.Module().__dict__ or name in ("settings", "_kinds"):
        raise InputError(
            passed=f"a hyperparameter named {name!r}, which every Hyperparameters has for itself",
            expected="a name of its own",
            do=f"rename it, for example to {name + '_value'!r}",
        )


def _named(name: str, make: Any, value: Any) -> Any:
    try:
        return make(value)
    except InputError as error:
        raise InputError(f"the hyperparameter {name!r}: {error.passed}", error.expected, error.do) from error


def _shown(value: Tensor) -> str:
    if value.numel() > 8:
        return f"{float(value.min()):.4g} to {float(value.max()):.4g}, shape {tuple(value.shape)}"

    def text(entry: Any) -> str:
        return f"[{', '.join(map(text, entry))}]" if isinstance(entry, list) else f"{entry:.4g}"

    return text(value.tolist())


def _suggestion(name: str, setting: Hyperparameter, raw: Tensor, trial: Trial) -> Any:
    domain = setting.domain
    if raw.dim() == 0 and isinstance(domain, best_response.Integer):
        return trial.suggest_int(name, domain.low, domain.high)
    if raw.dim() == 0 and isinstance(domain, best_response.Choice):
        return trial.suggest_categorical(name, list(domain.options))
    ends = setting.bounds
    if ends is None and isinstance(domain, Box):
        ends = domain.low, domain.high
    elif ends is None and isinstance(domain, UnitInterval):
        ends = 0.0, 1.0
    low, high = ends or (None, None)
    if raw.dim() or low is None or high is None or not abs(low) + abs(high) < float("inf"):
        raise UnsupportedError(
            passed=f"the hyperparameter {name!r} of shape {tuple(raw.shape)}, {setting.describe()}",
            expected="a single number with a finite range to search in",
            do="declare it with bounds=(low, high), or search it by hypergradients",
        )
    return trial.suggest_float(name, low, high, log=isinstance(domain, Positive) and low > 0)
