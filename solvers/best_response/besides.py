"""Hyperparameters of other kinds that move in the same steps as those of a best response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, final

from torch import Tensor

from hypergrad import saved
from hypergrad.errors import InputError
from hypergrad.solvers.best_response.convert import BestResponse
from hypergrad.tree import Tree


class LiveFace(Protocol):
    """What fills the ``.grad`` of hyperparameters; :class:`hypergrad.Live` is one."""

    @property
    def hparams(self) -> Tree:
        """The hyperparameters by name."""
        ...

    def backward(self, batch: Any = None, outer_batch: Any = None) -> Any:
        """Add the hypergradient to their ``.grad``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what it remembers."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        ...


@final
class Besides:
    """A live face of the converted model, with its hyperparameters' values as part of its state.

    Args:
        live: the face.
        model: the converted model.

    Raises:
        InputError: no face of that model.
    """

    def __init__(self, live: LiveFace, model: BestResponse) -> None:
        """Check that both are of one model."""
        if getattr(live, "model", None) is not model:
            raise InputError(
                passed=f"SelfTuning(besides={type(live).__name__})",
                expected="hypergrad.Live of the same converted model",
                do="build it after the conversion: hypergrad.Live(model, hparams, train_loss, valid_loss, algorithm)",
            )
        self.live = live

    @property
    def tensors(self) -> list[Tensor]:
        """The hyperparameters."""
        return list(self.live.hparams.values())

    def gradients(self, batch: Any, outer_batch: Any) -> dict[Tensor, Tensor]:
        """Return the hypergradient by tensor; every ``.grad`` stays as it was."""
        tensors = self.tensors
        before = [tensor.grad for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.grad = None
            self.live.backward(batch, outer_batch)
            return {tensor: tensor.grad for tensor in tensors if tensor.grad is not None}
        finally:
            for tensor, grad in zip(tensors, before, strict=True):
                tensor.grad = grad

    def state_dict(self) -> dict[str, Any]:
        """Return the hyperparameters' values and what the face remembers."""
        values = {key: value.detach().clone() for key, value in self.live.hparams.items()}
        return {"hparams": values, "live": self.live.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a state that :meth:`state_dict` returned.

        Raises:
            InputError: a state of other hyperparameters, or of another face.
        """
        values = saved.tree_like("the saved hyperparameters", state.get("hparams"), self.live.hparams)
        for key, tensor in self.live.hparams.items():
            tensor.data.copy_(values[key])
        self.live.load_state_dict(state["live"])
