"""The bare Celery application: Celery's own classes with this package's Celery settings, and two plain tasks.

``celery -A benchmarks.celery_app worker`` finds the server as this package's workers do, in ``SOMA_REDIS_URL``.
"""

from __future__ import annotations

from celery import Celery

from benchmarks import work
from somatize_worker.messaging import configuration
from somatize_worker.settings import Settings

QUEUES = {"threads": "bare-threads", "prefork": "bare-prefork"}
"""The queue of the worker with each pool."""

_PICKLE_TOO = ["json", "pickle"]

app = Celery("bare", set_as_current=False)
app.conf.update(configuration(Settings.from_env()))
app.conf.update(
    task_ignore_result=False,
    accept_content=_PICKLE_TOO,
    result_accept_content=_PICKLE_TOO,
    result_serializer="pickle",  # an array has no JSON
)

increment = app.task(name="bare.increment")(work.increment)
double = app.task(name="bare.double", serializer="pickle")(work.double)
