"""The bare Celery application: this package's own Celery configuration, and tasks without any of its machinery.

``celery -A benchmarks.celery_app worker`` finds the server as this package's workers do, in ``SOMA_REDIS_URL``.
"""

from __future__ import annotations

from benchmarks import work
from somatize_worker.messaging import make_app
from somatize_worker.settings import Settings

QUEUES = {"threads": "bare-threads", "prefork": "bare-prefork"}
"""The queue of the worker with each pool."""

app = make_app(Settings.from_env())
app.conf.update(task_ignore_result=False, accept_content=["json", "pickle"], result_accept_content=["json", "pickle"])

increment = app.task(name="bare.increment")(work.increment)
double = app.task(name="bare.double", serializer="pickle")(work.double)
