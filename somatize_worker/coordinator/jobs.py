"""What a caller holds of a running Python job: progress, printed lines, the result, the files it left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from somatize_worker import protocol
from somatize_worker.coordinator.handles import Handle
from somatize_worker.coordinator.subscription import LogStream
from somatize_worker.errors import MissingData, PlanCancelled, UnsafePath
from somatize_worker.ledger import job_channel
from somatize_worker.packing import Reference, unpack


class JobHandle(Handle):
    """A submitted job. Everything here may be called any number of times, from any thread."""

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.plan_id

    def progress(self, after: int = 0, timeout: float | None = None) -> Iterator[protocol.JobProgress]:
        """The protocol's ``JobProgress`` messages from the first, live; ends with the job."""
        stream = LogStream(
            self._session.ledger,
            self.plan_id,
            root=self._root,
            channel=job_channel(self.plan_id),
            after=after,
            timeout=timeout,
        )
        for _, text in stream:
            message = protocol.from_json(protocol.WorkerToCoordinator, text)
            if isinstance(message, protocol.JobProgress):
                yield message

    def result(self, timeout: float | None = None) -> protocol.JobResult:
        """Wait for the protocol's ``JobResult``; a job that failed has ``success`` false and the error in ``output``.

        Raises:
            PlanCancelled: somebody cancelled it.
            ResultTimeout: not done after ``timeout`` seconds; it goes on and may be asked again.
        """
        state, said = self.ending(timeout)
        if state == "cancelled":
            raise PlanCancelled(f"job {self.plan_id}: {said.get('error', 'cancelled')}", plan_id=self.plan_id)
        return protocol.job_result_message(self.plan_id, state, said)

    def ending(self, timeout: float | None = None) -> tuple[str, Mapping[str, Any]]:
        """Wait for the end; the state and all that is known of it (``error``, ``traceback``, ``certificate``, …)."""
        message = self._wait(timeout)
        said = message["result"]
        return message["state"], unpack(said) if isinstance(said, bytes) else said

    def outputs(self, timeout: float | None = None) -> dict[str, Reference]:
        """The files that the job left under ``outputs/``: path there → reference into the data store."""
        return dict(self.ending(timeout)[1].get("files") or {})

    def fetch(self, folder: Path, names: list[str] | None = None) -> list[Path]:
        """Copy the job's files (or those named) into a folder of this machine; returns their paths there.

        Raises:
            MissingData: a name that the job did not leave, or whose data has expired.
            UnsafePath: a path that would leave the folder.
        """
        files = self.outputs()
        store = self._session.store
        fetched = []
        for name in names if names is not None else sorted(files):
            target = (folder / name).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise UnsafePath(f"{name!r} would be written outside {folder}")
            if name not in files:
                raise MissingData(f"the job left no {name!r} under outputs/; it left {sorted(files) or 'nothing'}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store.fetch(files[name], store.workspace()), target)
            fetched.append(target)
        return fetched
