"""In-place changes of tensors that a graph needs as they were."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hypergrad.errors import InputError


class Versions:
    """What torch's counters of in-place changes say about named trees, to compare with later."""

    def __init__(self, **trees: Mapping[str, Tensor]) -> None:
        """Read the counters."""
        self.trees = trees
        self.before = {name: [tensor._version for tensor in tree.values()] for name, tree in trees.items()}

    def changed(self) -> list[str]:
        """Return the tensors that were changed in place since then, such as ``params['w']``."""
        return [
            f"{name}[{key!r}]"
            for name, tree in self.trees.items()
            for (key, tensor), before in zip(tree.items(), self.before[name], strict=True)
            if tensor._version != before
        ]

    def check(self) -> None:
        """Raise :class:`~hypergrad.errors.InputError` for tensors that were changed in place."""
        changed = self.changed()
        if changed:
            raise changed_in_place(", ".join(changed))


def changed_in_place(what: str) -> InputError:
    """Return the error for tensors that a graph needs as they were."""
    return InputError(
        passed=f"{what}, changed in place after the graph that needs it was recorded",
        expected="tensors that stay as they are from the evaluation of an objective until its last product",
        do="take the hypergradient before an optimizer steps or a buffer is refilled, or pass copies: "
        "{key: value.clone() for key, value in params.items()}",
    )
