"""Data hyper-cleaning: find the examples whose labels are wrong, by tuning one weight for each."""

from typing import TYPE_CHECKING, Any

from hypergrad.cleaning.clean import clean as clean
from hypergrad.cleaning.cleaned import Cleaned as Cleaned
from hypergrad.cleaning.examples import Examples as Examples
from hypergrad.cleaning.settings import Settings as Settings

if TYPE_CHECKING:
    from hypergrad.cleaning.estimator import HyperCleaner as HyperCleaner


def __getattr__(name: str) -> Any:
    """Import the estimator where it is asked for: scikit-learn is an extra."""
    if name == "HyperCleaner":
        from hypergrad.cleaning.estimator import HyperCleaner

        return HyperCleaner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
