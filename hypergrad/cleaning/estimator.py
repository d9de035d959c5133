"""Data hyper-cleaning as an estimator of scikit-learn."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch

from hypergrad.cleaning.clean import clean
from hypergrad.cleaning.parts import share_of_each_class
from hypergrad.cleaning.settings import Settings
from hypergrad.errors import InputError, MissingDependencyError, NoisyTrustedWarning
from hypergrad.settings import check_number

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    raise MissingDependencyError(
        passed=f"HyperCleaner without scikit-learn ({error})",
        expected="scikit-learn 1.6 or later",
        do='pip install "hypergrad-engine[clean]"',
    ) from error

Array = np.ndarray[Any, Any]
ROWS = 1024
"""Rows of a sparse matrix that are made dense at once for a prediction."""


class HyperCleaner(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier that leaves out training examples whose labels look wrong.

    ``fit`` runs :func:`hypergrad.cleaning.clean`; predictions are those of a model trained on what it keeps. Trusted
    examples go to ``fit``. Without them a random share of every class is taken for trusted; that helps where wrong
    labels are spread at random, and cannot where they are not.

    Settings that are not listed here mean what they mean in :class:`hypergrad.cleaning.Settings`.

    Args:
        model: ``"linear"``, ``"mlp"``, or a module or factory of one's own. Inputs are rows of features.
        weighting: ``"sigmoid"``, ``"softmax"`` or ``"mlp"``.
        mode: ``"auto"``, ``"nested"`` or ``"online"``.
        algorithm: name of the algorithm.
        correct_labels: whether labels are tuned as well.
        seeds: number of runs.
        steps: moves of the weights of a nested run.
        inner_steps: training steps between two moves of a nested run.
        epochs: passes of an online run.
        batch_size: of an online run.
        lr: step size of training.
        rate: step size of the weights.
        threshold: weight below which an example is left out; chosen by the weights without it.
        penalty: factor of half the squared norm of the model's parameters.
        most_lost: largest share of a class that may be left out.
        scaling: of the inputs.
        trusted_fraction: share of each class taken for trusted where ``fit`` gets no trusted examples, above 0 and
            below 1.
        random_state: seed, or a generator of numpy.

    Attributes:
        classes_: the classes.
        n_features_in_: number of features.
        feature_names_in_: names of the features, where the input has names that are strings.
        sample_weight_: weight of each example of ``fit`` from 0 to 1; 1 for those taken for trusted.
        suspicious_: whether each example was left out.
        proposed_: the class each example seems to have: the given one where it is not suspicious.
        cleaned_: all that :func:`~hypergrad.cleaning.clean` returns; its rows are those that were judged.
        model_: the final model.

    Raises:
        MissingDependencyError: at the import, scikit-learn is not installed.

    Example:
        >>> from sklearn.datasets import make_blobs
        >>> from hypergrad.cleaning import HyperCleaner
        >>> X, y = make_blobs(200, centers=2, random_state=0, cluster_std=0.5)
        >>> given = y.copy()
        >>> given[:10] = 1 - y[:10]
        >>> cleaner = HyperCleaner(steps=10).fit(X[:150], given[:150], X_trusted=X[150:], y_trusted=y[150:])
        >>> int(cleaner.suspicious_.sum()), float(cleaner.score(X[150:], y[150:]))
        (10, 1.0)
    """

    def __init__(
        self,
        model: Any = "linear",
        *,
        weighting: str = "sigmoid",
        mode: str = "auto",
        algorithm: str = "auto",
        correct_labels: bool = False,
        seeds: int = 1,
        steps: int = 40,
        inner_steps: int = 10,
        epochs: int = 10,
        batch_size: int = 128,
        lr: float = 0.2,
        rate: float = 0.2,
        threshold: float | None = None,
        penalty: float = 0.001,
        most_lost: float = 0.9,
        scaling: str = "auto",
        trusted_fraction: float = 0.2,
        random_state: Any = None,
    ) -> None:
        """Keep the settings; they are checked by ``fit``, as scikit-learn wants it."""
        self.model = model
        self.weighting = weighting
        self.mode = mode
        self.algorithm = algorithm
        self.correct_labels = correct_labels
        self.seeds = seeds
        self.steps = steps
        self.inner_steps = inner_steps
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.rate = rate
        self.threshold = threshold
        self.penalty = penalty
        self.most_lost = most_lost
        self.scaling = scaling
        self.trusted_fraction = trusted_fraction
        self.random_state = random_state

    def fit(self, X: Any, y: Any, X_trusted: Any = None, y_trusted: Any = None) -> HyperCleaner:
        """Judge the examples and train the final model on what is kept.

        Args:
            X: inputs of shape (n, features): array, data frame or sparse matrix, which is made dense.
            y: labels of shape (n,).
            X_trusted: inputs of the trusted examples.
            y_trusted: their labels.

        Raises:
            InputError: settings or inputs that cannot be used.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32])
        check_classification_targets(y)
        settings = self._settings()
        if (X_trusted is None) != (y_trusted is None):
            raise InputError("fit with X_trusted or y_trusted alone", "both, or neither", "pass both")
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                passed=f"fit with {len(y)} examples of one class: 1 class only, {self.classes_.tolist()}",
                expected="examples of at least two classes",
                do="check the labels",
            )
        inputs = _dense(X)
        if X_trusted is None:
            self._fit_split(inputs, codes, settings)
        else:
            right, labels = self._trusted(X_trusted, y_trusted)
            self._fit_parts(inputs, codes, np.arange(len(codes)), (right, labels), settings)
        return self

    def _settings(self) -> Settings:
        check_number("HyperCleaner", "trusted_fraction", self.trusted_fraction, above=0, below=1)
        own = ("model", "trusted_fraction", "random_state")
        chosen: dict[str, Any] = {name: value for name, value in self.get_params(deep=False).items() if name not in own}
        seed = self.random_state
        if seed is None or not isinstance(seed, int | np.integer):
            seed = 0 if seed is None else check_random_state(seed).randint(2**31 - 1)
        if isinstance(self.model, str):
            chosen["model"] = self.model
        return Settings(**chosen, seed=int(seed), held_out=0.0)

    def _trusted(self, X: Any, y: Any) -> tuple[Array, Array]:
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        as_given: Any = None  # str alone in the stubs
        y = check_array(y, ensure_2d=False, dtype=as_given)
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise InputError(
                passed=f"y_trusted with the classes {unknown.tolist()}, which y does not have",
                expected=f"the classes of y: {self.classes_.tolist()}",
                do="leave these examples out, or check the labels",
            )
        return _dense(X), np.searchsorted(self.classes_, y)

    def _fit_split(self, inputs: Array, codes: Array, settings: Settings) -> None:
        """Take a share of each class for trusted; a class of one example has none."""
        labels = torch.from_numpy(codes)
        counts = torch.bincount(labels)
        several = (counts[labels] > 1).nonzero()[:, 0]
        if not len(several) or len(torch.unique(labels[several])) < 2:
            raise InputError(
                passed=f"fit without trusted examples, with {len(codes)} examples; more than one sample is needed of "
                "at least two classes",
                expected="at least two examples of two classes, so that one of each can be taken for trusted",
                do="pass more examples, or X_trusted and y_trusted",
            )
        judged = several[share_of_each_class(labels[several], 1 - self.trusted_fraction, settings.seed)]
        # a class keeps at least one example on either side
        taken = np.setdiff1d(several.numpy(), judged.numpy())
        for number in np.setdiff1d(np.unique(codes[several.numpy()]), codes[taken]):
            row = judged[labels[judged] == number][-1].item()
            taken, judged = np.append(taken, row), judged[judged != row]
        taken = np.sort(taken)
        rest = np.setdiff1d(np.arange(len(codes)), taken)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoisyTrustedWarning)  # a part of the examples is as noisy as the rest
            self._fit_parts(inputs, codes, rest, (inputs[taken], codes[taken]), settings)

    def _fit_parts(
        self, inputs: Array, codes: Array, rows: Array, trusted: tuple[Array, Array], settings: Settings
    ) -> None:
        model = None if isinstance(self.model, str) else self.model
        found = clean((inputs[rows], codes[rows]), trusted, settings, model=model)
        places = rows[found.index]
        self.sample_weight_ = np.ones(len(codes))
        self.sample_weight_[rows] = 0.0  # not judged, and not kept
        self.sample_weight_[rows[found.kept]] = 1.0
        self.sample_weight_[places] = found.weight
        self.suspicious_ = np.zeros(len(codes), dtype=bool)
        self.suspicious_[rows] = True
        self.suspicious_[rows[found.kept]] = False
        self.proposed_ = self.classes_[codes]
        known = np.asarray([int(name) for name in found.classes])
        self.proposed_[places] = self.classes_[known[found.proposed]]
        self.cleaned_ = found
        self.model_ = found.model.double().eval()
        self._columns = known

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of all classes, of shape (n, classes).

        Args:
            X: inputs of shape (n, features).
        """
        check_is_fitted(self, "model_")
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        found = np.zeros((X.shape[0], len(self.classes_)))
        with torch.no_grad():
            for start in range(0, X.shape[0], ROWS):
                piece = X[start : start + ROWS]
                dense = piece.toarray() if hasattr(piece, "toarray") else piece
                scores = self.model_(torch.from_numpy(np.array(dense, dtype=np.float64)))
                found[start : start + ROWS, self._columns] = scores.softmax(dim=1).numpy()
        return found

    def predict(self, X: Any) -> Array:
        """Return the most probable classes, of shape (n,).

        Args:
            X: inputs of shape (n, features).
        """
        chances = self.predict_proba(X)
        found: Array = self.classes_[chances.argmax(axis=1)]
        return found

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn wants to know."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _dense(X: Any) -> Array:
    """Return a dense array; a sparse matrix only if it fits into memory."""
    if not hasattr(X, "toarray"):
        return np.asarray(X)
    needed, free = 3 * X.shape[0] * X.shape[1] * X.dtype.itemsize, _free_memory()
    if free is not None and needed > free:
        raise InputError(
            passed=f"a sparse matrix of shape {X.shape}, which takes {needed / 2**30:.1f} GiB as a dense one",
            expected=f"at most the memory that is free, {free / 2**30:.1f} GiB",
            do="keep fewer features: TfidfVectorizer(max_features=5000), or TruncatedSVD",
        )
    dense: Array = X.toarray()
    return dense


def _free_memory() -> int | None:
    """Return the free bytes of memory, where the system tells."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
