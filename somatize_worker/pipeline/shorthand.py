"""Estimators and modules as steps, with options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from somatize_worker.errors import InvalidPipeline
from somatize_worker.pipeline.sklearn_adapter import is_estimator, sklearn_filter
from somatize_worker.pipeline.steps import Step
from somatize_worker.pipeline.torch_adapter import TorchFilter, is_module


def sk(estimator: Any, method: str | None = None, *, classes: Sequence[Any] | None = None) -> Step:
    """A scikit-learn estimator as a step, with a choice of what it gives.

    Example:
        >>> StandardScaler() >> sk(LogisticRegression(), method="predict_proba")

    Args:
        estimator: anything with ``fit`` and ``transform`` or ``predict``.
        method: what ``forward`` calls; default: ``predict`` of classifiers, regressors, clusterers and outlier
            detectors, ``transform`` of others. ``fit_transform`` and ``fit_predict`` fit afresh on each input.
        classes: all labels, for classifiers that learn batch by batch without being shown all of ``y`` (streams).

    Raises:
        InvalidPipeline: not an estimator, or without that method.
    """
    if not is_estimator(estimator):
        raise InvalidPipeline(f"sk() takes an estimator object (with fit, and transform or predict), not {estimator!r}")
    return Step(filter=sklearn_filter(estimator, method, classes=classes))


def torch_step(
    module: Any,
    *,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    optimizer: Callable[[Iterable[Any]], Any] | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    lr: float | None = None,
    shuffle: bool = True,
    seed: int = 0,
    device: str | None = None,
) -> Step:
    """A ``torch.nn.Module`` as a step, with what its training needs; options as for
    :class:`~somatize_worker.pipeline.torch_adapter.TorchFilter`.

    Example:
        >>> torch_step(net, loss_fn=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, epochs=5)

    Raises:
        InvalidPipeline: not a module object, or options that do not fit together.
    """
    if not is_module(module):
        raise InvalidPipeline(f"torch_step() takes a torch.nn.Module object, not {module!r}")
    made = TorchFilter(
        module,
        loss_fn=loss_fn,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        shuffle=shuffle,
        seed=seed,
        device=device,
    )
    return Step(filter=made)
