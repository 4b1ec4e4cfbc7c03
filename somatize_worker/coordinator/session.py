"""A client's connections, which its coordinator, handles and maps share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from somatize_worker.coordinator.registry import Registry
from somatize_worker.coordinator.replies import Replies, Reply
from somatize_worker.ledger import Ledger, Submission, connect
from somatize_worker.messaging import WakeUps, make_app
from somatize_worker.settings import Settings
from somatize_worker.stores import open_store


class Session:
    """Ledger, store, Celery application and reply channel of one client.

    Raises:
        ServerUnreachable: no server answers at the URL (within seconds).
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        client = connect(settings.redis_url)
        self.ledger = Ledger(client, settings)
        self.store = open_store(settings, client)
        self.app = make_app(settings)
        self.wake_ups = WakeUps(self.app, self.ledger)
        self.replies = Replies(self.ledger)
        self.registry = Registry(self.ledger)

    def hand_in(self, submission: Submission, then: Callable[[str], None] | None = None) -> Reply | None:
        """Write a submission to the ledger and wake a worker for it.

        Returns where the end will be put (``then`` is called with the plan's id when it is there); None if the plan
        was known already, and its record is to be read first.
        """
        wake_up = self.wake_ups.entry(submission.wake())
        reply = self.replies.expect(submission.plan_id, then)
        created = False
        try:
            created = self.ledger.submit(replace(submission, reply=self.replies.channel), wake_up=wake_up).created
        finally:
            if not created:
                self.replies.forget(submission.plan_id, reply)
        return reply if created else None

    def cancel(self, plan_id: str, reason: str) -> None:
        """Cancel a plan or job, wherever it is."""
        self.wake_ups.send(self.ledger.cancel(plan_id, reason).wake)

    def close(self) -> None:
        """Let go of the connections."""
        self.replies.close()
        self.app.close()
        self.ledger.client.close()
