"""The estimator of scikit-learn."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from hypergrad.cleaning import HyperCleaner
from hypergrad.errors import InputError
from tests.cleaning.common import noisy, right


@parametrize_with_checks([HyperCleaner(steps=5)])  # type: ignore[untyped-decorator]
def test_scikit_learn_accepts_it(estimator: Any, check: Callable[[Any], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's checks pass what deserves one
        check(estimator)


def data() -> tuple[Any, Any, Any, Any]:
    train, trusted = noisy(), right()
    return train.inputs.numpy(), train.labels.numpy(), trusted.inputs.numpy(), trusted.labels.numpy()


def test_wrong_labels_are_left_out() -> None:
    x, y, v, w = data()
    cleaner = HyperCleaner(steps=12).fit(x, y, X_trusted=v, y_trusted=w)
    wrong = np.arange(120) < 36
    assert (cleaner.suspicious_ == wrong).mean() > 0.9
    assert cleaner.sample_weight_[wrong].mean() < 0.3 < cleaner.sample_weight_[~wrong].mean()
    assert (cleaner.proposed_[wrong] == noisy().truth.numpy()[wrong]).mean() > 0.8  # type: ignore[union-attr]
    assert cleaner.score(v, w) > 0.95
    np.testing.assert_allclose(cleaner.predict_proba(v).sum(axis=1), 1)


def test_labels_may_be_words_and_inputs_a_frame_or_sparse() -> None:
    x, y, v, w = data()
    words = np.array(["ant", "bee", "cat"])
    plain = HyperCleaner(steps=5).fit(x, words[y], v, words[w])
    frame = HyperCleaner(steps=5).fit(
        pd.DataFrame(x, columns=list("abcd")), words[y], pd.DataFrame(v, columns=list("abcd")), words[w]
    )
    sparse = HyperCleaner(steps=5).fit(scipy.sparse.csr_matrix(x), words[y], scipy.sparse.csr_matrix(v), words[w])
    assert set(plain.predict(v)) == {"ant", "bee", "cat"}
    assert frame.feature_names_in_.tolist() == list("abcd")
    for other in (frame, sparse):
        np.testing.assert_array_equal(other.sample_weight_, plain.sample_weight_)
    np.testing.assert_allclose(sparse.predict_proba(scipy.sparse.csr_matrix(v)), plain.predict_proba(v))


def test_without_trusted_examples_a_part_is_taken() -> None:
    _, _, v, w = data()
    train = noisy(share=0.3)
    cleaner = HyperCleaner(random_state=0).fit(train.inputs.numpy(), train.labels.numpy())
    assert len(cleaner.cleaned_.weight) == 96
    assert (cleaner.sample_weight_ == 1).sum() >= 24
    assert cleaner.score(v, w) > 0.8


def test_in_a_pipeline_a_search_a_clone_and_a_pickle() -> None:
    x, y, v, w = data()
    pipeline = make_pipeline(StandardScaler(), HyperCleaner(steps=3))
    search = GridSearchCV(pipeline, {"hypercleaner__penalty": [1e-3, 1e-1]}, cv=2).fit(x, y)
    assert search.best_params_["hypercleaner__penalty"] in (1e-3, 1e-1)
    fitted = HyperCleaner(steps=3).fit(x, y, v, w)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(v), fitted.predict_proba(v))
    assert clone(fitted).get_params() == fitted.get_params()


def test_bad_input() -> None:
    x, y, v, w = data()
    with pytest.raises(InputError, match="both, or neither"):
        HyperCleaner().fit(x, y, X_trusted=v)
    with pytest.raises(InputError, match="which y does not have"):
        HyperCleaner().fit(x, y, v, w + 7)
    with pytest.raises(InputError, match="trusted_fraction"):
        HyperCleaner(trusted_fraction=1.5).fit(x, y)
    with pytest.raises(InputError, match="weighting"):
        HyperCleaner(weighting="none").fit(x, y)


def test_a_sparse_matrix_that_does_not_fit_is_refused() -> None:
    wide = scipy.sparse.csr_matrix((10, 10**12), dtype=np.float64)
    with pytest.raises(InputError, match="GiB as a dense one"):
        HyperCleaner().fit(wide, np.arange(10) % 2)


MISSING = """
import sys
sys.modules["sklearn"] = None
import hypergrad.cleaning
from hypergrad.errors import MissingDependencyError
try:
    hypergrad.cleaning.HyperCleaner
except MissingDependencyError as error:
    print(error.do)
"""


def test_without_scikit_learn_the_rest_works() -> None:
    done = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'pip install "hypergrad-engine[clean]"'
