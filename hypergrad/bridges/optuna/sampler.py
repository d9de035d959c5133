"""A sampler for Optuna that proposes the next trial by a move along the hypergradient of earlier ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, final

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hypergrad.bridges.optuna.chains import CHAIN, FRESH, Chain, read_chains
from hypergrad.bridges.optuna.gradients import GRADIENT, continuous
from hypergrad.bridges.optuna.moves import Move, SpectralMove
from hypergrad.bridges.optuna.trials import MOST_PARAMETERS, refuse_many
from hypergrad.errors import HypergradWarning, InputError
from hypergrad.settings import check_counts, check_kind

ROUNDS = 4
SILENT = 20


@final
class HypergradientSampler(BaseSampler):
    """Proposes up to 1,000 continuous parameters by moves along their hypergradient, the rest by a fallback sampler.

    The objective attaches the derivatives of its value with :func:`report_hypergradient`. A trial that the fallback
    proposed, or that was enqueued, and that reported them begins a chain; the next trials of the chain are moves from
    what its finished trials saw. Everything that a move needs is read from the study, so any worker can go on with any
    chain, after a restart too. A chain with a running trial is left alone; a worker that finds no other begins a new
    one. Of the chains that are not at their end, the best are continued, the one that has waited longest first.

    A trial that failed, was pruned, or whose value or derivatives are not finite makes the chain step back: its next
    move is shorter. A trial that runs again after its worker died counts once.

    Args:
        move: the rule: :class:`SpectralMove` (needs no step size, the default), :class:`AdamMove` (for noisy values),
            :class:`GradientMove` (plain descent).
        chains: how many chains are continued at a time, ≥ 1; with more workers there are more.
        patience: trials without a better value after which a chain ends and the fallback begins another, ≥ 1.
        hold: keep the parameters without a derivative (categories, whole numbers) through a chain as its first trial
            had them, so that the values of a chain are those of one function. With ``False`` the fallback proposes them
            anew in each trial.
        fallback: proposes first trials, and parameters without a derivative; by default ``TPESampler(seed=seed)``.
        seed: of the default fallback; the moves are deterministic. Same seed, one worker: same trials.

    Cost: a proposal reads the study's trials twice, and the derivatives of one chain: O(trials · d) numbers.

    Raises:
        InputError: settings out of range; at a trial: several objectives, or a 1,001st continuous parameter, which
            Optuna would store in a row of its own (one million would be an hour of CPU per trial in SQLite).

    Example:
        >>> import optuna
        >>> from hypergrad.bridges.optuna import report_hypergradient
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> def objective(trial):
        ...     x = [trial.suggest_float(f"x{i}", -5, 5) for i in range(20)]
        ...     report_hypergradient(trial, {f"x{i}": 2 * (x[i] - 1) for i in range(20)})
        ...     return sum((number - 1) ** 2 for number in x)
        >>> study = optuna.create_study(sampler=HypergradientSampler(seed=0))
        >>> study.optimize(objective, n_trials=6)
        >>> study.best_value < 1e-20
        True
    """

    def __init__(
        self,
        move: Move | None = None,
        *,
        chains: int = 1,
        patience: int = 20,
        hold: bool = True,
        fallback: BaseSampler | None = None,
        seed: int | None = None,
    ) -> None:
        self.move = SpectralMove() if move is None else move
        self.chains, self.patience, self.hold, self.seed = chains, patience, hold, seed
        self.fallback = fallback
        check_kind(self, "move", Move, "pass SpectralMove(), AdamMove() or GradientMove(step)", optional=True)
        check_kind(self, "fallback", BaseSampler, "pass a sampler such as optuna.samplers.TPESampler()", optional=True)
        check_counts(self, "chains", "patience")
        self.fallback = TPESampler(seed=seed) if fallback is None else fallback
        self._moves: dict[int, dict[str, Any]] = {}
        self._warned = False

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Refuse a study with several objectives."""
        if len(study.directions) > 1:
            raise InputError(
                passed=f"a study with {len(study.directions)} objectives",
                expected="one objective, whose derivatives the trials report",
                do="create the study with one direction, or use another sampler",
            )
        self._rest.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Claim a chain and return the parameters of its next trial, or what the fallback infers."""
        proposal = self._claim(study, trial)
        if proposal is None:
            return self._rest.infer_relative_search_space(study, trial)
        params, space = proposal
        self._moves[trial._trial_id] = params
        return space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the proposed parameters."""
        params = self._moves.pop(trial._trial_id, None)
        return self._rest.sample_relative(study, trial, search_space) if params is None else params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Let the fallback propose one parameter."""
        if continuous(param_distribution) and len(trial.params) >= MOST_PARAMETERS:
            refuse_many(1 + sum(map(continuous, trial.distributions.values())), "the objective")
        return self._rest.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell the fallback."""
        self._rest.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Reseed the fallback."""
        self._rest.reseed_rng()

    @property
    def _rest(self) -> BaseSampler:
        assert self.fallback is not None
        return self.fallback

    def _claim(self, study: Study, trial: FrozenTrial) -> tuple[dict[str, Any], dict[str, BaseDistribution]] | None:
        """Choose a chain, write it down, and see that no other worker has gone on with it in the meantime."""
        for _ in range(ROUNDS):
            found = self._choose(study, trial)
            if found is None:
                break
            chain, proposal = found
            study._storage.set_trial_system_attr(trial._trial_id, CHAIN, chain.start)
            now = {other.start: other for other in self._read(study, trial)[0]}[chain.start]
            if not now.busy and now.numbers() == chain.numbers():
                return proposal
        study._storage.set_trial_system_attr(trial._trial_id, CHAIN, FRESH)
        return None

    def _choose(
        self, study: Study, trial: FrozenTrial
    ) -> tuple[Chain, tuple[dict[str, Any], dict[str, BaseDistribution]]] | None:
        """Return the chain that goes on and its next trial, or ``None`` for a new chain."""
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        chains, fresh = self._read(study, trial)
        alive = [chain for chain in chains if chain.busy or chain.best(sign)[1] < self.patience]
        working = fresh + sum(chain.busy for chain in alive)
        while len(alive) + fresh >= self.chains:
            alive.sort(key=lambda chain: chain.best(sign)[0])
            idle = [chain for chain in alive[: max(self.chains, working + 1)] if not chain.busy]
            if not idle:
                return None
            chain = min(idle, key=lambda chain: chain.numbers()[-1])
            proposal = chain.propose(self.move, sign, self.hold)
            if proposal is not None:
                return chain, proposal
            alive.remove(chain)
        return None

    def _read(self, study: Study, trial: FrozenTrial) -> tuple[list[Chain], int]:
        trials = study.get_trials(deepcopy=False)
        chains, fresh = read_chains(trials, trial.number)
        if chains or self._warned:
            return chains, fresh
        silent = [other for other in trials if other.state == TrialState.COMPLETE and GRADIENT not in other.user_attrs]
        if len(silent) >= SILENT:
            self._warned = True
            warnings.warn(
                f"none of {len(silent)} complete trials reported a hypergradient, so {type(self._rest).__name__} alone "
                "proposes: call report_hypergradient(trial, {name: derivative}) in the objective",
                HypergradWarning,
                stacklevel=2,
            )
        return chains, fresh
