"""scikit-learn estimators as steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.cluster import DBSCAN, KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import IsolationForest
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier, SGDRegressor
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from somatize_worker.errors import InvalidPipeline
from somatize_worker.pipeline import as_step, compile_once, dumps, loads, pipeline, sk
from somatize_worker.pipeline.adapters import adapt
from somatize_worker.pipeline.sklearn_adapter import SklearnFilter

X, Y = load_iris(return_X_y=True)


def filter_of(obj: Any) -> Any:
    """The filter as a worker gets it: pickled and loaded."""
    return loads(dumps(adapt(obj)))


def incremental(obj: Any) -> bool:
    return hasattr(adapt(obj), "partial_fit")


@pytest.mark.parametrize(
    "estimator, method",
    [
        (StandardScaler(), "transform"),
        (PCA(2), "transform"),
        (SelectKBest(k=2), "transform"),
        (ColumnTransformer([("a", StandardScaler(), [0, 1])]), "transform"),
        (make_pipeline(StandardScaler(), PCA(2)), "transform"),
        (LogisticRegression(max_iter=500), "predict"),
        (LinearDiscriminantAnalysis(), "predict"),
        (Ridge(), "predict"),
        (KMeans(2, n_init=1), "predict"),
        (GaussianMixture(2), "predict"),
        (IsolationForest(n_estimators=5), "predict"),
        (make_pipeline(StandardScaler(), LogisticRegression()), "predict"),
        (GridSearchCV(Ridge(), {"alpha": [1.0, 2.0]}, cv=2), "predict"),
    ],
)
def test_what_estimators_give(estimator: Any, method: str):
    step = filter_of(estimator)
    assert (step.method, step._kind, step.name) == (method, "trainable", type(estimator).__name__)
    state = step.fit(X, Y)
    assert type(state) is type(estimator)
    np.testing.assert_array_equal(step.forward(X, state), getattr(state, method)(X))


def test_the_estimator_passed_in_never_changes():
    scaler, classifier = StandardScaler(), SGDClassifier()
    before = dict(vars(scaler)), dict(vars(classifier))
    adapt(scaler).fit(X)
    step = adapt(classifier)
    step.prepare(X, Y)
    step.partial_fit(X, Y, None)
    assert (vars(scaler), vars(classifier)) == before


def test_a_state_survives_the_journey():
    step = filter_of(make_pipeline(StandardScaler(), LogisticRegression()))
    state = loads(dumps(step.fit(X, Y)))
    assert np.mean(step.forward(X, state) == Y) > 0.9


def test_other_methods_by_name():
    step = sk(LogisticRegression(max_iter=500), method="predict_proba").filter
    assert step.forward(X, step.fit(X, Y)).shape == (150, 3)
    assert repr(step) == "LogisticRegression.predict_proba"
    with pytest.raises(
        InvalidPipeline, match=r"SVC has no method 'predict_proba' .* it has: predict, decision_function"
    ):
        sk(SVC(probability=False), method="predict_proba")
    with pytest.raises(InvalidPipeline, match="takes an estimator object"):
        sk(LogisticRegression)
    with pytest.raises(InvalidPipeline, match="takes an estimator object"):
        sk(print)


def test_an_estimator_fitted_before_is_used_as_it_came():
    fitted = LogisticRegression(max_iter=500).fit(X, Y)
    np.testing.assert_array_equal(filter_of(fitted).forward(X, None), fitted.predict(X))
    with pytest.raises(InvalidPipeline, match="LogisticRegression is not fitted: run fit first"):
        filter_of(LogisticRegression()).forward(X, None)
    doubler = FunctionTransformer(np.sqrt)  # needs no fitting
    np.testing.assert_array_equal(filter_of(doubler).forward(X, None), np.sqrt(X))


def test_estimators_without_a_method_for_new_data_must_be_asked_to_refit():
    with pytest.raises(InvalidPipeline, match=r"sk\(estimator, method='fit_predict'\) fits it afresh"):
        as_step(DBSCAN())
    step = sk(DBSCAN(), method="fit_predict").filter
    assert step._kind == "stateless"
    np.testing.assert_array_equal(step.forward(X), DBSCAN().fit_predict(X))


def test_who_learns_batch_by_batch():
    assert incremental(SGDClassifier())
    assert incremental(StandardScaler())
    assert not incremental(LogisticRegression())
    assert not incremental(make_pipeline(StandardScaler(), SGDClassifier()))
    assert not hasattr(sk(StandardScaler(), method="fit_transform").filter, "partial_fit")


def fit_in_batches(step: Any, y: Any, size: int = 30) -> Any:
    """As a worker does it."""
    step.prepare(X, y)
    state = None
    for start in range(0, len(X), size):
        rows = slice(start, start + size)
        state = step.partial_fit(X[rows], None if y is None else y[rows], state)
    return state


def test_a_classifier_learns_all_classes_from_sorted_batches():
    step = filter_of(SGDClassifier(random_state=0))
    state = fit_in_batches(step, Y)  # iris is sorted: the first batches have one class only
    np.testing.assert_array_equal(state.classes_, [0, 1, 2])


def test_transformers_and_regressors_need_no_classes():
    scaler = fit_in_batches(filter_of(StandardScaler()), None)
    np.testing.assert_allclose(scaler.mean_, X.mean(axis=0))
    assert fit_in_batches(filter_of(SGDRegressor()), Y.astype(float)).coef_.shape == (4,)


def test_several_outputs_have_classes_each():
    labels = np.stack([Y, Y > 0], axis=1).astype(int)
    state = fit_in_batches(filter_of(MultiOutputClassifier(SGDClassifier(random_state=0))), labels)
    assert [list(one.classes_) for one in state.estimators_] == [[0, 1, 2], [0, 1]]


def test_classes_that_nobody_told_are_an_error_and_can_be_given():
    with pytest.raises(InvalidPipeline, match=r"must know all classes beforehand: sk\(SGDClassifier"):
        filter_of(SGDClassifier()).partial_fit(X[:30], Y[:30], None)
    step = sk(SGDClassifier(random_state=0), classes=[0, 1, 2]).filter
    state = step.partial_fit(X[:30], Y[:30], None)
    assert len(step.partial_fit(X[60:90], Y[60:90], state).classes_) == 3


def test_text_labels():
    names = np.array(["a", "b", "c"])[Y]
    step = filter_of(LogisticRegression(max_iter=500))
    assert set(step.forward(X, step.fit(X, list(names)))) == {"a", "b", "c"}


class Halver(BaseEstimator):
    """A user's own transformer, with nothing but the methods."""

    def fit(self, x, y=None):
        return self

    def transform(self, x):
        return x / 2


class Looks:
    """Not scikit-learn's at all, and fit returns nothing."""

    def fit(self, x):
        self.largest_ = x.max()

    def predict(self, x):
        return x == self.largest_


def test_objects_that_work_like_estimators():
    halver = filter_of(Halver())
    np.testing.assert_array_equal(halver.forward(X, halver.fit(X)), X / 2)
    looks = filter_of(Looks())
    assert looks.forward(X, looks.fit(X)).sum() == 1
    with pytest.raises(InvalidPipeline, match="not fitted"):
        looks.forward(X, None)


def test_one_estimator_is_one_node():
    compiled = compile_once(pipeline(make_pipeline(StandardScaler(), PCA(2)), LogisticRegression()))
    assert compiled.node_ids == compiled.trainable == ("Pipeline", "LogisticRegression")
    assert isinstance(adapt(OneHotEncoder()), SklearnFilter)
