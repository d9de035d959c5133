"""Time to an error: what a hypergradient costs to a given accuracy, each library at its cheapest setting for it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from benchmarks import plots
from benchmarks.exact import Exact, logistic
from benchmarks.peers.environments import PeerError
from benchmarks.peers.process import Row
from benchmarks.sheets.sheet import Options, Processes, Sheet, saved, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGETS = (1e-4, 1e-8)
OURS = "engine"
SETTING = {"terms": 1000, "preconditioner": "recycled", "apart": True}
"""This library's one setting; its tolerance is the error that is asked for."""
COMPILED = "engine/cg, compiled"
"""The same with the penalty's diagonal in place of the sketch, which compiled code does not take."""
JAX = ("jaxopt", "optimistix")
PER_TENTH = 1.1
"""Factor between two numbers of steps that are tried: the cheapest is found to within a tenth."""
SLOW = 3.0
"""A row this many times slower than the fastest peer is timed once, in the search."""
GIVE_UP = 8.0
"""A search ends where one try takes this many times what the fastest peer needs, and is not there."""
COLUMNS = {
    "time": ("time over ours", ".2f"),
    "spread": ("spread", ".0%"),
    "seconds": ("CPU s", ".3f"),
    "compile_seconds": ("compilation, CPU s", ".2f"),
    "products": ("products", "d"),
    "terms": ("steps asked for", "d"),
    "error": ("error", ".1e"),
}
ABOUT = """\
Softmax regression with a log penalty a weight, float64, at the inner optimum; errors are relative to the hypergradient
of a dense solve. Every peer runs the number of steps that is the cheapest to reach the error, to within a tenth, found
beforehand and not counted, which none of its users would know. Ours is one setting for all problems, fixed beforehand:
conjugate gradients to a residual of the error asked for, with a sketch of rank 20 and the penalty given apart; its
graph, sketch and first product are made anew and counted in each run. The row `compiled` is a second setting of ours,
with the penalty's diagonal in place of the sketch. No peer runs with a preconditioner; TorchOpt takes one that its user
writes. Times are CPU seconds of the calls, without imports and without compilation, which has a column of its own. Runs
of outer steps move every log penalty by 0.05 a step; ours keeps its sketch and last solution over the steps, the row
`warm start` its last solution."""


@final
@dataclass(frozen=True)
class Candidate:
    """A peer's method, whose number of steps is looked for.

    Attributes:
        peer: whose environment it runs in.
        row: its name in the peer's module.
        most: steps it may take.
        settings: of the row, besides ``terms``.
    """

    peer: str
    row: str
    most: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return what stands in the table."""
        return f"{self.peer}/{self.row}"


@final
@dataclass
class Tried:
    """One row that ran, with what it cost and how wrong it was."""

    row: Row
    terms: int
    seconds: float
    error: float
    counts: dict[str, Any]


def run(options: Options) -> dict[str, Any]:
    """Measure the sheet."""
    sheet = Sheet("time_to_error", "Time to an error", options, columns=COLUMNS, about=ABOUT)
    with Processes(options) as processes:
        for name, kind, steps, targets, repeats in plan(options):
            try:
                exact = logistic(name, kind, steps)
            except Exception as error:
                sheet.add(f"{name}, {kind}", {f"{OURS}/cg": {"reason": f"{type(error).__name__}: {error}"}})
                continue
            with saved(exact.arrays) as data:
                for case, rows in measured(processes, exact, data, targets, repeats):
                    title = f"{name}, {kind} penalties, {steps} outer step{'s' * (steps > 1)}, error {case:g}"
                    sheet.add(title, rows, condition=exact.condition, target=case)
                    claims(sheet, title, kind)
    return sheet.save(finished=True)


def draw(result: dict[str, Any], figure: Figure) -> None:
    """Draw the times of all cases."""
    plots.bars(result, figure, label="time over ours")


def plan(options: Options) -> list[tuple[str, str, int, tuple[float, ...], int]]:
    """Return data, kind of penalties, outer steps, errors and rounds of each case."""
    if options.smoke:
        return [("made up", "spread", 1, (1e-4,), 1), ("made up", "equal", 3, (1e-4,), 1)]
    few = min(options.repeats, 3)
    return [
        ("digits", "spread", 1, TARGETS, options.repeats),
        ("digits", "equal", 10, TARGETS, min(options.repeats, 5)),
        ("mnist", "spread", 1, TARGETS, few),
        ("mnist", "equal", 10, TARGETS[:1], few),
    ]


def candidates(options: Options, exact: Exact) -> list[Candidate]:
    """Return the peers' methods; those that can be trusted to converge first, as the others start from their steps."""
    size, several = exact.answers[0].size, len(exact.answers) > 1
    most = min(4 * size, 2000)
    step = 1.9 / exact.top
    found = [
        Candidate("torchopt", "cg", most),
        *([Candidate("torchopt", "cg, warm start", most)] if several else []),
        Candidate("boat", "cg", most, {"step": step}),
        Candidate("curvlinops", "cg", most),
        Candidate("betty", "cg", 200),
        Candidate("betty", "neumann", 1000, {"step": step}),
        Candidate("jaxopt", "cg", most),
        Candidate("optimistix", "cg", most),
    ]
    return [candidate for candidate in found if candidate.peer in options.peers]


def measured(
    processes: Processes, exact: Exact, data: Path, targets: tuple[float, ...], repeats: int
) -> Iterator[tuple[float, dict[str, dict[str, Any]]]]:
    """Yield the rows of one error after the other."""
    guesses: dict[float, int] = {}
    for target in targets:
        with Search(processes, exact, data, target) as search:
            found: dict[str, Tried] = {}
            reasons: dict[str, str] = {}
            settings: dict[str, dict[str, Any]] = {f"{OURS}/cg": {}}
            if len(exact.answers) == 1 and not processes.options.smoke:
                settings[COMPILED] = {"preconditioner": "penalty", "compile": True}
            for name, others in settings.items():
                try:
                    found[name] = search.ours(**others)
                except PeerError as error:
                    reasons[name] = str(error)
            for candidate in candidates(processes.options, exact):
                try:
                    tried = search.cheapest(candidate, guesses.get(target, max(guesses.values(), default=0)))
                    found[candidate.name] = tried
                    guesses.setdefault(target, tried.terms)
                except PeerError as error:
                    reasons[candidate.name] = str(error)
            yield target, {**table(found, repeats), **{name: {"reason": text} for name, text in reasons.items()}}


@final
class Search:
    """Rows of one case and error, which are tried until one is exact enough, and forgotten at the end."""

    def __init__(self, processes: Processes, exact: Exact, data: Path, target: float) -> None:
        self.processes, self.exact, self.data, self.target = processes, exact, data, target
        self._rows: list[Row] = []
        self.fastest = math.inf

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *_error: object) -> None:
        for row in self._rows:
            with suppress(PeerError):
                row.forget()

    def try_out(self, peer: str, module: str, row: str, settings: dict[str, Any]) -> Tried:
        """Prepare a row, run it, and compare its answer.

        Raises:
            PeerError: it cannot be prepared or run.
        """
        made = Row(self.processes.of(peer), row, module, row, "logistic", self.data, settings)
        self._rows.append(made)
        counts = made.run()
        error = self.exact.error(made.answer())
        return Tried(made, settings["terms"], counts["cpu"], error, counts)

    def ours(self, **others: Any) -> Tried:
        """Return this library at its one setting, or with some of it changed.

        Raises:
            PeerError: it does not reach the error.
        """
        settings = {**SETTING, **others, "rtol": self.target}
        tried = self.try_out("engine", "engine_exact", "implicit", settings)
        if tried.error > self.target:
            raise PeerError(f"error {tried.error:.1e} at its setting for {self.target:.0e}")
        return tried

    def cheapest(self, candidate: Candidate, guess: int) -> Tried:
        """Return the fewest steps that reach the error, to within a tenth.

        Args:
            candidate: the peer's method.
            guess: what another peer needed, or 0.

        Raises:
            PeerError: the library does not work, or does not reach the error within the most steps, or in eight times
                what the fastest peer needs.
        """

        def at(terms: int) -> Tried:
            settings = {**candidate.settings, "terms": terms}
            tried = self.try_out(candidate.peer, candidate.peer, candidate.row, settings)
            if tried.error > self.target and tried.seconds > GIVE_UP * self.fastest:
                raise PeerError(
                    f"error {tried.error:.1e} after {tried.seconds:.2g} CPU s; the fastest peer is there in "
                    f"{self.fastest:.2g}"
                )
            return tried

        found = fewest(at, self.target, candidate.most, guess or 16, PER_TENTH if guess else 2.0)
        self.fastest = min(self.fastest, found.seconds)
        return found


def fewest(at: Callable[[int], Tried], target: float, most: int, terms: int, factor: float) -> Tried:
    """Return the fewest steps that reach an error, to within a tenth, where more steps are never worse.

    Args:
        at: tries a number of steps.
        target: the error.
        most: steps that are allowed.
        terms: where the search starts.
        factor: of its first move; each next one is its square, up to 2.

    Raises:
        PeerError: the error is not reached.
    """
    high: Tried | None = None
    low, least = 0, math.inf
    terms = min(terms, most)
    while True:
        tried = at(terms)
        least = min(least, tried.error)
        if tried.error <= target:
            high = tried
        elif terms >= most or not math.isfinite(tried.error):
            raise PeerError(f"error {least:.1e} at best within {terms} steps")
        else:
            low = terms
        if high is None:
            terms, factor = min(most, math.ceil(terms * factor)), min(factor**2, 2.0)
        elif high.terms - low <= max(1, low // 10):
            return high
        elif low == 0:
            terms, factor = max(1, int(terms / factor)), min(factor**2, 2.0)
        else:
            terms = min(max(round(math.sqrt(low * high.terms)), low + 1), high.terms - 1)


def table(found: dict[str, Tried], repeats: int) -> dict[str, dict[str, Any]]:
    """Time the rows in turn, and return what stands in the table."""
    peers = [tried.seconds for name, tried in found.items() if not name.startswith(OURS)]
    slow = SLOW * min(peers, default=math.inf)
    timed = {name: tried for name, tried in found.items() if name.startswith(OURS) or tried.seconds <= slow}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    names = list(timed)
    for turn in range(repeats):
        shift = turn % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(timed[name].row.run()["cpu"])
    base = seconds.get(f"{OURS}/cg")
    rows = {}
    for name, tried in found.items():
        times = seconds.get(name, [tried.seconds])
        row = {
            "seconds": statistics.median(times),
            "products": tried.counts.get("products"),
            "compile_seconds": tried.counts.get("compile_seconds"),
            "terms": None if name.startswith(OURS) else tried.terms,
            "error": tried.error,
            "version": tried.row.version,
        }
        if base is not None:
            ratios = [a / b for a, b in zip(times, base, strict=False)]
            row |= {"time": statistics.median(ratios), "spread": spread(ratios)}
        rows[name] = row
    return rows


def claims(sheet: Sheet, case: str, kind: str) -> None:
    """State how much faster this library is than the best of the PyTorch peers, and than each JAX peer."""
    rows = sheet.cases[case]["rows"]
    limit = 5.0 if kind == "spread" else 3.0
    torch_rows = [name for name in rows if name.partition("/")[0] not in (OURS, *JAX)]
    best = fastest(rows, torch_rows)
    value = None if best is None else rows[best]["time"]
    noisy = best is not None and sheet.noisy(case, best)
    sheet.claim(f"{case}: the best PyTorch peer's time over ours", value, limit, at_most=False, noisy=noisy)
    if kind != "spread":
        return
    for peer in JAX:
        name = f"{peer}/cg"
        whole, mine = with_compilation(rows.get(name, {})), with_compilation(rows.get(f"{OURS}/cg", {}))
        sheet.claim(
            f"{case}: {peer}'s time over ours, first solve with compilation",
            whole / mine if whole and mine else None,
            2.0,
            at_most=False,
            noisy=sheet.noisy(case, name),
        )
        sheet.claim(
            f"{case}: {peer}'s time over ours, compilation apart",
            sheet.value(case, name, "time"),
            2.0,
            at_most=False,
            noisy=sheet.noisy(case, name),
        )
        theirs, ours = sheet.value(case, name, "time"), sheet.value(case, COMPILED, "time")
        sheet.claim(
            f"{case}: {peer}'s time over ours compiled, compilation apart",
            theirs / ours if theirs and ours else None,
            2.0,
            at_most=False,
            noisy=sheet.noisy(case, name) or sheet.noisy(case, COMPILED),
        )


def with_compilation(row: dict[str, Any]) -> float | None:
    """Return the seconds of a first solve in a new process, imports apart."""
    return None if "seconds" not in row else float(row["seconds"]) + float(row.get("compile_seconds") or 0.0)


def fastest(rows: dict[str, dict[str, Any]], names: list[str]) -> str | None:
    """Return the row of the least time among those that have one."""
    timed = [name for name in names if rows[name].get("time") is not None]
    return min(timed, key=lambda name: float(rows[name]["time"]), default=None)
