"""Torch calls that happen in place, done again out of place so that autograd can differentiate them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hypergrad.errors import UnsupportedError

IN_PLACE = {"__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div", "__ipow__": "pow"}
AS_THEY_ARE = {"__repr__", "__format__", "__hash__", "__len__", "requires_grad_", "is_set_to", "data_ptr"}
NUMBERS = {"__float__", "__int__", "__index__", "__complex__", "tolist", "numpy", "__array__", "__dlpack__"}
DRAWS = {"normal_", "uniform_", "bernoulli_", "exponential_", "random_", "cauchy_", "log_normal_", "geometric_"}
VIEWS = {"T", "mT", "H", "mH", "real", "imag"}
SCALED = {"add": "alpha", "sub": "alpha", "addcmul": "value", "addcdiv": "value"}
SIGNS = {"gt": True, "ge": True, "lt": False, "le": False}
ALTERNATIVES = (
    "use hypergrad.Implicit at the end of training, or hypergrad.ZerothOrder with hypergrad.TorchOptimizer, which only "
    "run the optimizer, or write the rule as a hypergrad.inner.UpdateRule"
)


def refusal(found: str) -> UnsupportedError:
    """Return the error for an optimizer whose step cannot be differentiated."""
    return UnsupportedError(
        passed=found,
        expected="an optimizer whose step() is a chain of torch operations on parameters, gradients and state",
        do=ALTERNATIVES,
    )


@final
class Follow(TorchFunctionMode):
    """Within it, code that updates plain tensors in place also computes what autograd needs.

    A plain tensor that :meth:`bind` gave a value is followed: every torch call that it enters is made on the values
    instead, out of place, and what comes out is a plain tensor that is followed in turn. The code sees plain tensors
    only, so that it takes the branches and keeps the state that it would keep without.

    Args:
        graph: whether the values get a graph; without, the arithmetic is the same.

    Raises:
        UnsupportedError: a followed value that leaves torch, is rounded to a narrower type, or is changed through a
            view.
    """

    def __init__(self, *, graph: bool) -> None:
        """Follow nothing yet."""
        super().__init__()
        self.graph = graph

    def bind(self, value: Tensor, *, setting: bool = False) -> Tensor:
        """Return a plain tensor that stands for ``value``.

        Args:
            value: what to differentiate.
            setting: whether it replaces a Python number, which has double precision and, compared with 0, counts as
                the nonzero number that it may become.
        """
        value = precise(value) if setting else value
        plain: Any = value.detach()
        plain.followed, plain.followed_setting = value, setting
        return plain  # type: ignore[no-any-return]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Make a torch call, on the values of what is followed."""
        kwargs = dict(kwargs or {})
        if not any(hasattr(x, "followed") for x in _tensors((args, kwargs))):
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        with torch.set_grad_enabled(self.graph):
            if name in ("__get__", "__set__"):
                return self._attribute(func, name, args)
            if name in NUMBERS:
                return self._number(func, name, args, kwargs)
            if name in AS_THEY_ARE:
                return func(*args, **kwargs)
            if name in ("detach", "detach_"):  # a step runs without a graph: detaching means nothing there
                return args[0]
            known = _known_comparison(name, args)
            return self._call(func, name, args, kwargs) if known is None else known

    def _attribute(self, func: Callable[..., Any], name: str, args: tuple[Any, ...]) -> Any:
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        if name == "__set__":
            if attribute != "data":
                return func(*args)
            return self._write(args[0], value_of(args[1]))
        if attribute == "data":
            return args[0] if hasattr(args[0], "followed") else func(*args)
        if attribute in VIEWS:
            return self._wrap(func(value_of(args[0])), args)
        return func(*args)

    def _number(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(value_of(x).requires_grad for x in _tensors(args)):
            raise refusal(f"an optimizer whose step() takes a value out of torch ({name.strip('_')})")
        return func(*args, **kwargs)

    def _call(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values, named = _map(self._value, args), _map(self._value, kwargs)
        if name == "item":
            return self._wrap(precise(values[0].reshape(())), args)
        if name == "__deepcopy__":
            return self._wrap(values[0].clone(), args)
        if name.startswith("_foreach_") and name.endswith("_"):
            news = list(args[0])
            function = getattr(torch, name[:-1], None)
            found = _map(value_of, args[1]) if function is None else function(*values, **named)  # None: _foreach_copy_
            for target, new in zip(news, found, strict=True):
                self._write(target, new)
            return news
        named.pop("out", None)
        if name == "__setitem__":
            new = values[0].clone()
            new[values[1]] = values[2]
            return self._write(args[0], new)
        base = IN_PLACE.get(name, name[:-1] if name.endswith("_") and not name.endswith("__") else "")
        if not base:
            new = _compute(name, func, values, named)
            return self._wrap(new, args) if kwargs.get("out") is None else self._write(kwargs["out"], new)
        if name in DRAWS:
            new = getattr(torch.empty_like(values[0], requires_grad=False), name)(*values[1:], **named)
        else:
            new = _compute(base, getattr(Tensor, base, None), values, named)
        return self._write(args[0], new)

    def _value(self, x: Any) -> Any:
        """Return what a call computes with; a graph gets a copy of what is not followed and may be overwritten."""
        if self.graph and isinstance(x, Tensor) and not hasattr(x, "followed"):
            return x.detach().clone()
        return value_of(x)

    def _wrap(self, new: Any, args: Any) -> Any:
        """Return plain tensors for new values; a value that came in goes out as the plain tensor it came in with."""
        if isinstance(new, Tensor):
            if not (new.is_floating_point() or new.is_complex()):
                return new
            for given in _tensors(args):
                if value_of(given) is new:
                    return given
                _check_width(value_of(given), new)
            plain: Any = self.bind(new)
            plain.followed_view = new._is_view()
            return plain
        if isinstance(new, tuple | list):
            parts: Any = [self._wrap(part, args) for part in new]
            return type(new)(*parts) if hasattr(new, "_make") else type(new)(parts)
        return new

    def _write(self, target: Any, new: Tensor) -> Any:
        """Let ``target`` stand for a new value; storage that a graph may have saved is never written to."""
        if getattr(target, "followed_view", False) or (not hasattr(target, "followed") and target._is_view()):
            raise refusal("an optimizer whose step() changes a tensor through a view of it")
        _check_width(new, target)
        new = new if new.dtype == target.dtype else new.to(target.dtype)
        target.data, target.followed = new.detach(), new
        return target


def value_of(x: Any) -> Any:
    """Return what a plain tensor stands for, and anything else as it is."""
    return getattr(x, "followed", x) if isinstance(x, Tensor) else x


def _known_comparison(name: str, args: tuple[Any, ...]) -> bool | None:
    """Return how a setting compares with 0: as the nonzero number that it is about to become, at either end of 0."""
    if not getattr(args[0], "followed_setting", False):
        return None
    base = name.strip("_")
    if base == "bool":
        return True
    if len(args) != 2 or isinstance(args[1], Tensor) or args[1] != 0:
        return None
    if base in ("ne", "eq"):
        return base == "ne"
    plain = args[0].detach()
    return SIGNS[base] if base in SIGNS and bool(plain == 0) else None


def _compute(name: str, function: Any, values: Any, named: dict[str, Any]) -> Any:
    """Return a call's result, out of place."""
    x, rest = values[0], values[1:]
    special = SPECIAL.get(name)
    found = special(name, x, rest, named) if special is not None else None
    if found is not None:
        return found
    if function is None:
        raise refusal(f"an optimizer whose step() calls {name}_(), which has no form that is out of place")
    return function(*values, **named)


def _copied(_: str, x: Tensor, rest: Any, named: dict[str, Any]) -> Tensor:
    given = rest[0] if rest else named["src" if "src" in named else "other"]
    return torch.as_tensor(given, device=x.device).to(x.device, x.dtype).expand_as(x)


def _filled(name: str, x: Tensor, rest: Any, named: dict[str, Any]) -> Tensor | None:
    given = [*rest, *(named[key] for key in ("value", "fill_value") if key in named)]
    if name == "full_like" and not isinstance(given[0], Tensor):
        return None
    return torch.zeros_like(x, requires_grad=False) + (given[0] if given else 0)


def _rooted(_: str, x: Tensor, *_rest: Any) -> Tensor:
    root: Any = _Root
    found: Tensor = root.apply(x)
    return found


def _clamped(_: str, x: Tensor, rest: Any, named: dict[str, Any]) -> Tensor:
    """Return x between its bounds, one of which may be a number and the other a tensor."""
    bounds = dict(zip(("min", "max"), rest, strict=False)) | named
    for side in ("min", "max"):
        x = x if bounds.get(side) is None else torch.clamp(x, **{side: bounds[side]})
    return x


def _between(_: str, x: Tensor, rest: Any, named: dict[str, Any]) -> Tensor | None:
    weight = rest[1] if len(rest) > 1 else named.get("weight")
    return torch.lerp(x, rest[0], weight.to(x.dtype)) if isinstance(weight, Tensor) else None


def _scaled(name: str, x: Tensor, rest: Any, named: dict[str, Any]) -> Tensor | None:
    """Return x + scale · (…) for a scale that is a tensor; the C++ functions refuse one that requires grad.

    On the CPU it is rounded as with a number; elsewhere that would wait for the device.
    """
    scale = named.get(SCALED[name])
    if not isinstance(scale, Tensor):
        return None
    if scale.device.type == "cpu" and all(isinstance(part, Tensor) for part in rest):
        apply: Any = _Scaled
        found: Tensor = apply.apply(name, x, scale, *rest)
        return found
    return x + scale * _direction(name, rest)


Special = Callable[[str, Tensor, Any, dict[str, Any]], Tensor | None]
SPECIAL: dict[str, Special] = {
    "copy": _copied,
    "zero": _filled,
    "fill": _filled,
    "full_like": _filled,
    "sqrt": _rooted,
    "clamp": _clamped,
    "lerp": _between,
    **dict.fromkeys(SCALED, _scaled),
}
"""What is not simply the same call on the values; ``None`` from it means that it is."""


def _direction(name: str, rest: Any) -> Tensor:
    """Return what ``add``, ``sub``, ``addcmul`` or ``addcdiv`` adds a multiple of."""
    found: Tensor
    if name in ("add", "sub"):
        found = rest[0] if name == "add" else -rest[0]
    else:
        found = rest[0] * rest[1] if name == "addcmul" else rest[0] / rest[1]
    return found


def precise(number: Tensor) -> Tensor:
    """Return a 0-d tensor in double precision, which Python's numbers have."""
    return number if number.device.type == "mps" else number.double()


def _check_width(before: Tensor, after: Tensor) -> None:
    """Refuse the rounding of a differentiated value to half precision: no derivative describes what is computed."""
    half = after.dtype in (torch.float16, torch.bfloat16) and before.dtype != after.dtype
    if half and before.requires_grad and before.is_floating_point():
        raise refusal(f"an optimizer whose step() rounds {before.dtype} to {after.dtype}")


def _tensors(x: Any) -> Iterator[Any]:
    """Yield the tensors in nested arguments."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for part in x:
            yield from _tensors(part)
    elif isinstance(x, dict):
        yield from _tensors(list(x.values()))


def _map(function: Callable[[Any], Any], x: Any) -> Any:
    """Return nested arguments with a function applied to every entry."""
    if type(x) in (list, tuple):
        return type(x)(_map(function, part) for part in x)
    if type(x) is dict:
        return {key: _map(function, part) for key, part in x.items()}
    return function(x)


class _Root(torch.autograd.Function):
    """√x with slope 0 at 0, where the infinite slope of a plain root would turn zeros into NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        root = x.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        (cotangent,) = cotangents
        (root,) = ctx.saved_tensors
        positive = root > 0
        return torch.where(positive, cotangent / (2 * torch.where(positive, root, 1.0)), 0.0)


class _Scaled(torch.autograd.Function):
    """torch.add, sub, addcmul and addcdiv with a multiple that is a tensor, rounded as with a number."""

    @staticmethod
    def forward(ctx: Any, name: str, x: Tensor, scale: Tensor, *rest: Tensor) -> Tensor:
        ctx.name = name
        ctx.save_for_backward(x, scale, *rest)
        found: Tensor = getattr(torch, name)(x, *rest, **{SCALED[name]: scale.detach()})
        return found

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (cotangent,) = cotangents
        x, scale, *rest = ctx.saved_tensors
        along = (cotangent * _direction(ctx.name, rest)).sum().to(scale.dtype)
        held = scale.to(cotangent.dtype) * cotangent
        if ctx.name in ("add", "sub"):
            pulled = [held if ctx.name == "add" else -held]
        elif ctx.name == "addcmul":
            pulled = [held * rest[1], held * rest[0]]
        else:
            pulled = [held / rest[1], -held * (rest[0] / rest[1] / rest[1])]
        shaped = [p.sum_to_size(r.shape) for p, r in zip(pulled, rest, strict=True)]
        return None, cotangent.sum_to_size(x.shape), along, *shaped
