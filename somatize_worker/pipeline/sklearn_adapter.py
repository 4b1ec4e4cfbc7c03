"""scikit-learn estimators, and objects that look like them, as filters.

scikit-learn itself is imported only when an estimator is at hand, so the module loads anywhere.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from somatize_worker.errors import InvalidPipeline

_APPLYING: Final = ("transform", "predict")
_REFITTING: Final = ("fit_transform", "fit_predict")


def is_estimator(obj: Any) -> bool:
    """Whether an object is used as scikit-learn's estimators are: ``fit``, then ``transform`` or ``predict``."""
    if isinstance(obj, type) or not callable(getattr(obj, "fit", None)):
        return False
    return any(callable(getattr(obj, name, None)) for name in (*_APPLYING, *_REFITTING))


def sklearn_filter(
    estimator: Any,
    method: str | None = None,
    *,
    classes: Sequence[Any] | None = None,
) -> SklearnFilter:
    """The filter for an estimator; one that can learn batch by batch if the estimator has ``partial_fit``."""
    batchwise = method not in _REFITTING and callable(getattr(estimator, "partial_fit", None))
    kind = IncrementalSklearnFilter if batchwise else SklearnFilter
    return kind(estimator, method, classes=classes)


class SklearnFilter:
    """A trainable filter around an estimator, which itself is never changed.

    ``fit`` returns a fitted clone: that is the state. ``forward`` calls one method of it: ``predict`` of
    classifiers, regressors, clusterers and outlier detectors, ``transform`` of everything else, or the one
    given (``predict_proba``, ``decision_function``, ...). Without a state, an estimator that was fitted before
    is used as it came.

    Args:
        estimator: anything with ``fit`` and ``transform`` or ``predict``; pipelines and column transformers count
            as one estimator.
        method: which method ``forward`` calls; ``fit_transform`` and ``fit_predict`` fit afresh on each input.
        classes: all labels, for classifiers that learn batch by batch without ever being shown all of ``y``.

    Raises:
        InvalidPipeline: the estimator does not have that method.
    """

    _kind = "trainable"
    _stream_mode = "fixed"
    _cacheable: bool | None = None
    _differentiable = False

    def __init__(self, estimator: Any, method: str | None = None, *, classes: Sequence[Any] | None = None) -> None:
        self.estimator = estimator
        self.method = method or _default_method(estimator)
        self.classes = None if classes is None else np.asarray(classes)
        if not callable(getattr(estimator, self.method, None)):
            raise InvalidPipeline(
                f"{type(estimator).__name__} has no method {self.method!r} (some estimators offer one only with "
                f"certain parameters); it has: {', '.join(_offered(estimator)) or 'none that applies it to data'}",
            )
        if self.method in _REFITTING:
            self._kind = "stateless"

    @property
    def name(self) -> str:
        """The estimator's class name."""
        return type(self.estimator).__name__

    def fit(self, x: Any, y: Any = None) -> Any:
        """A clone of the estimator, fitted.

        Args:
            x: data, ``(n_samples, ...)``.
            y: labels or targets, ``(n_samples, ...)``, or None.
        """
        estimator = _clone(self.estimator)
        return _fitted(estimator.fit(x) if y is None else estimator.fit(x, y), estimator)

    def forward(self, x: Any, state: Any = None) -> Any:
        """The method's result for ``x``: ``(n_samples, ...)``.

        Raises:
            InvalidPipeline: neither a state is given, nor was the estimator fitted before it was sent.
        """
        if self.method in _REFITTING:
            return getattr(_clone(self.estimator), self.method)(x)
        if state is None and not _is_fitted(self.estimator):
            raise InvalidPipeline(
                f"{self.name} is not fitted: run fit first and forward with result.pipeline, or pass an estimator "
                f"that has been fitted",
            )
        return getattr(self.estimator if state is None else state, self.method)(x)

    def __repr__(self) -> str:
        method = "" if self.method == _default_method(self.estimator) else f".{self.method}"
        return f"{self.name}{method}"


class IncrementalSklearnFilter(SklearnFilter):
    """The filter for an estimator with ``partial_fit``: batches are shown to it one after the other."""

    def prepare(self, x: Any, y: Any = None) -> None:
        """Look at all data once before the batches, to learn which classes there are.

        Args:
            x: not used.
            y: all labels, ``(n_samples,)`` or ``(n_samples, n_outputs)``, or None.
        """
        if y is not None and self.classes is None and self._wants_classes():
            self.classes = _classes_in(self.estimator, y)

    def partial_fit(self, x: Any, y: Any = None, state: Any = None) -> Any:
        """The state after one more batch; the state given is updated in place.

        Args:
            x: one batch, ``(n_batch, ...)``.
            y: its labels, ``(n_batch, ...)``, or None.
            state: what the batch before returned; None for the first.

        Raises:
            InvalidPipeline: a classifier that was told neither all labels nor the classes.
        """
        estimator = _clone(self.estimator) if state is None else state
        options = {}
        if y is not None and self._wants_classes():
            if self.classes is None and not hasattr(estimator, "classes_"):
                raise InvalidPipeline(
                    f"{self.name} learns batch by batch and must know all classes beforehand: "
                    f"sk({self.name}(...), classes=[...])",
                )
            options = {} if self.classes is None else {"classes": self.classes}
        learned = estimator.partial_fit(x, **options) if y is None else estimator.partial_fit(x, y, **options)
        return _fitted(learned, estimator)

    def _wants_classes(self) -> bool:
        return "classes" in inspect.signature(self.estimator.partial_fit).parameters


def _classes_in(estimator: Any, y: Any) -> Any:
    labels = np.asarray(y)
    if labels.ndim < 2 or labels.shape[1] == 1:
        return np.unique(labels)
    if hasattr(estimator, "estimator"):  # one classifier for each output
        return [np.unique(column) for column in labels.T]
    return np.arange(labels.shape[1])  # one column for each label


def _fitted(returned: Any, estimator: Any) -> Any:
    """``fit`` returns the estimator by convention; one that returns nothing has changed itself."""
    return estimator if returned is None else returned


def _clone(estimator: Any) -> Any:
    if hasattr(estimator, "get_params") and "sklearn" in sys.modules:
        from sklearn.base import clone

        return clone(estimator)
    return copy.deepcopy(estimator)


def _default_method(estimator: Any) -> str:
    has = {name for name in (*_APPLYING, *_REFITTING) if callable(getattr(estimator, name, None))}
    if "predict" in has and ("transform" not in has or _predicts(estimator)):
        return "predict"
    if "transform" in has:
        return "transform"
    raise InvalidPipeline(
        f"{type(estimator).__name__} cannot be applied to data that it was not fitted on: it has neither transform "
        f"nor predict. sk(estimator, method={sorted(has)[0]!r}) fits it afresh on every input.",
    )


def _predicts(estimator: Any) -> bool:
    if hasattr(estimator, "__sklearn_tags__"):
        from sklearn import base

        questions = ("is_classifier", "is_regressor", "is_clusterer", "is_outlier_detector")
        return any(getattr(base, question)(estimator) for question in questions)
    return getattr(estimator, "_estimator_type", None) is not None


def _is_fitted(estimator: Any) -> bool:
    if "sklearn" not in sys.modules or not hasattr(estimator, "get_params"):
        return any(name.endswith("_") and not name.startswith("_") for name in vars(estimator))
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    return True


def _offered(estimator: Any) -> list[str]:
    known = (*_APPLYING, "predict_proba", "predict_log_proba", "decision_function", "score_samples", *_REFITTING)
    return [name for name in known if callable(getattr(estimator, name, None))]
