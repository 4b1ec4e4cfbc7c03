"""The Celery application: what ``celery -A somatize_worker worker -Q gpu`` loads."""

from __future__ import annotations

from somatize_worker.messaging import make_app
from somatize_worker.settings import Settings
from somatize_worker.worker import lifecycle, tasks

settings = Settings.from_env()
app = make_app(settings)
app.conf.worker_pool = "somatize_worker.worker.pool:PlanPool"
tasks.register(app)
lifecycle.connect(app, settings)
