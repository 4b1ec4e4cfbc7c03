"""The command line: ``somatize COMMAND``. One file for each group of commands."""

from __future__ import annotations

import sys

import typer

from somatize_worker.cli import cluster, demo, jobs, plans
from somatize_worker.cli.output import complain
from somatize_worker.errors import SomaError

app = typer.Typer(
    help="Machine-learning pipelines on Celery workers: start a cluster, hand out plans and jobs, watch them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", rich_help_panel="Start")(demo.demo)
app.command("up", rich_help_panel="Start")(cluster.up)
app.command("worker", rich_help_panel="Start", context_settings=cluster.PASS_ON)(cluster.worker)
app.command("doctor", rich_help_panel="Start")(cluster.doctor)
app.command("submit", rich_help_panel="Run")(plans.submit)
app.command("job", rich_help_panel="Run")(jobs.job)
app.command("fetch", rich_help_panel="Run")(jobs.fetch)
app.command("cancel", rich_help_panel="Run")(plans.cancel)
app.command("workers", rich_help_panel="Look")(cluster.workers)
app.command("plans", rich_help_panel="Look")(plans.plans)
app.command("events", rich_help_panel="Look")(plans.events)
app.command("logs", rich_help_panel="Look")(plans.logs)


def main() -> None:
    """Run the command line; errors that this package knows are told in a sentence, not in a traceback."""
    try:
        app()
    except SomaError as error:
        sys.exit(complain(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
