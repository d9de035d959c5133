"""Numbers, statuses and warnings in plain words, with what to do."""

from __future__ import annotations

import math
from datetime import UTC, datetime

UNKNOWN = "not known"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

STATUSES = {
    "converged": "The residual reached the tolerance.",
    "completed": "All steps that were asked for were made; there was no tolerance to reach.",
    "truncated": "Cut after the number of terms asked for, which biases the hypergradient a little.",
    "max_steps": "The products that were allowed ran out before the tolerance was reached.",
    "negative_curvature": "The Hessian is not positive definite there; the solver stopped early.",
    "diverged": "The iterates grew; that hypergradient is useless.",
    "non_finite": "NaN or infinity appeared; that hypergradient is useless.",
}
"""What each status of a solve means."""
GOOD_STATUSES = ("converged", "completed", "truncated")

REMEDIES = {
    "stationarity": (
        "Training is far from its optimum",
        "The implicit formula assumes that training has converged, so these hypergradients are biased.",
        "Train longer or to a tighter tolerance, or use an algorithm that differentiates the training steps "
        "(Unrolled).",
    ),
    "curvature": (
        "Negative curvature",
        "The training loss bends downwards in some direction, so the linear system is indefinite.",
        "Set damping=, use MINRES, or train closer to a minimum.",
    ),
    "convergence": (
        "A linear solve or a training stopped early",
        "The budget ended before the tolerance was reached, so these hypergradients are approximate.",
        "Allow more steps (max_steps=), loosen the tolerance, or give penalties apart so that a preconditioner helps.",
    ),
    "reach": (
        "Something has no effect",
        "A tensor is not used by one of the objectives.",
        "Check that the objectives read it, or leave it out.",
    ),
    "active_set": (
        "A kink in the solution",
        "A constraint is active with a multiplier of zero, where the derivative jumps.",
        "Move the hyperparameters a little, or loosen that constraint.",
    ),
    "outer_move": (
        "The hyperparameters did not go where the algorithm needs them",
        "The outer move and the algorithm do not go together well.",
        "Use the outer move that the algorithm's page names.",
    ),
    "repeatability": (
        "A loss does not repeat",
        "The same tensors, batch and random numbers gave another value, so derivatives contradict each other.",
        "Seed what is random, and switch off what remembers (running statistics, caches).",
    ),
    "custom": (
        "A custom function loses curvature",
        "A custom autograd function has no second derivative.",
        "Write its backward with torch operations, or use a method of first order (F2SA).",
    ),
    "leftover": (
        "Leftover gradients",
        "The hyperparameters' .grad held something before the first hypergradient was added.",
        "Call zero_grad() of the outer optimizer before backward().",
    ),
    "restart": (
        "The algorithm lost its memory",
        "The parameters it belongs to are no longer the same, so it started afresh.",
        "Keep the parameters' identity between steps; resume with their state.",
    ),
}
"""A headline, an explanation and a remedy for each kind of warning."""


def shown(value: float | None, digits: int = 4) -> str:
    """Return a number as people write it: ``1,234``, ``0.01234``, ``1.2 × 10⁻⁷``."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}".replace("-", "−")
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent < 6:
        decimals = max(0, digits - 1 - exponent)
        text = f"{value:,.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return text.replace("-", "−")
    mantissa = f"{value / 10.0**exponent:.{max(0, digits - 2)}f}" if exponent > -300 else f"{value:.1e}"
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa} × 10{str(exponent).translate(SUPERSCRIPTS)}".replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as a percentage."""
    return UNKNOWN if value is None else f"{100 * value:.{digits}f} %".replace("-", "−")


def seconds(value: float | None) -> str:
    """Return a duration as people say it."""
    if value is None:
        return UNKNOWN
    if value < 1:
        return f"{shown(1000 * value, 3)} ms"
    if value < 120:
        return f"{shown(value, 3)} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(value: float | None) -> str:
    """Return bytes as KiB, MiB or GiB."""
    if value is None:
        return UNKNOWN
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= factor:
            return f"{shown(value / factor, 3)} {unit}"
    return f"{shown(value)} bytes"


def moment(text: object) -> str:
    """Return an ISO time in UTC as people write it, or what it is where it is none."""
    found = instant(text)
    return UNKNOWN if found is None else f"{found:%Y-%m-%d %H:%M} UTC"


def clock(seconds_since_1970: float) -> str:
    """Return a time of the machine's clock in UTC as people write it."""
    return f"{datetime.fromtimestamp(seconds_since_1970, UTC):%Y-%m-%d %H:%M} UTC"


def instant(text: object) -> datetime | None:
    """Return an ISO time, ``None`` for anything else."""
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: ``1 step``, ``2 steps``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
