"""``Event``: what happens while plans, trials and studies run. Durations are whole milliseconds."""

from __future__ import annotations

from enum import StrEnum

from somatize_worker.protocol.base import Internal, Message, OneOf
from somatize_worker.protocol.fields import Count, Float, Instant, JsonData, Text
from somatize_worker.protocol.keys import CacheKey


class PlanSummary(Message):
    """What a plan is made of, in numbers."""

    total_nodes: Count
    cached_nodes: Count
    parallel_branches: Count


class NodeKind(StrEnum):
    """What a filter is to the runtime."""

    STATELESS = "Stateless"
    TRAINABLE = "Trainable"
    OPAQUE = "Opaque"


class CacheTier(StrEnum):
    """Where a cached output was found."""

    MEMORY = "Memory"
    LOCAL = "Local"
    REMOTE = "Remote"


class Metric(Message):
    """One measurement."""

    name: Text
    value: Float
    step: Count
    timestamp: Instant


class Event(OneOf, tagging=Internal("event_type")):
    """Something that happened."""

    @property
    def event_type(self) -> str:
        """Which kind it is, as on the wire: ``NodeStarted``."""
        return self.variant


class RunStarted(Event):
    """A plan starts."""

    run_id: Text
    plan_summary: PlanSummary


class NodeStarted(Event):
    """A node starts."""

    run_id: Text
    node_id: Text
    kind: NodeKind


class NodeProgress(Event):
    """A node reports how far it is, from 0 to 1."""

    run_id: Text
    node_id: Text
    progress: Float


class NodeCacheHit(Event):
    """A node's output was found in the cache, and not computed."""

    run_id: Text
    node_id: Text
    key: CacheKey
    tier: CacheTier
    load_time: Count
    """Milliseconds."""


class NodeCompleted(Event):
    """A node is done."""

    run_id: Text
    node_id: Text
    duration: Count
    """Milliseconds."""
    output_summary: Text


class NodeFailed(Event):
    """A node failed."""

    run_id: Text
    node_id: Text
    error: Text


class RunCompleted(Event):
    """A plan is done."""

    run_id: Text
    duration: Count
    """Milliseconds."""


class RunFailed(Event):
    """A plan failed."""

    run_id: Text
    error: Text


class TrialStarted(Event):
    """A trial of a study starts."""

    study_id: Text
    trial_id: Text
    params: JsonData


class TrialMetric(Event):
    """A trial reports a measurement."""

    study_id: Text
    trial_id: Text
    metric: Metric


class TrialPruned(Event):
    """A trial was stopped early."""

    study_id: Text
    trial_id: Text
    step: Count
    reason: Text


class TrialCompleted(Event):
    """A trial is done."""

    study_id: Text
    trial_id: Text
    final_metrics: tuple[Metric, ...]


class TrialFailed(Event):
    """A trial failed."""

    study_id: Text
    trial_id: Text
    error: Text


class StudyStarted(Event):
    """A study starts."""

    study_id: Text
    name: Text
    total_trials: Count


class StudyProgress(Event):
    """A study reports how far it is."""

    study_id: Text
    completed: Count
    total: Count
    best_value: Float


class BestUpdated(Event):
    """A study has a new best trial."""

    study_id: Text
    trial_id: Text
    value: Float
    params: JsonData


class ParetoUpdated(Event):
    """The set of trials that no other beats in everything has changed."""

    study_id: Text
    front_size: Count


class StudyCompleted(Event):
    """A study is done."""

    study_id: Text
    best_trial_id: Text
    best_value: Float


class GenerationStarted(Event):
    """A generation of a population starts."""

    study_id: Text
    generation: Count
    population_size: Count


class GenerationCompleted(Event):
    """A generation of a population is done."""

    study_id: Text
    generation: Count
    best_fitness: Float
    mean_fitness: Float


class MemberExploited(Event):
    """A member of a population was replaced by a copy of a better one."""

    study_id: Text
    generation: Count
    replaced_id: Text
    donor_id: Text
