"""The command line: ``somatize COMMAND``. One file for each group of commands.

What the commands need (Celery, pydantic, numpy) is imported when one of them runs, so that ``--help`` is there at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from somatize_worker.cli import cluster, demo, jobs, plans
from somatize_worker.cli.output import complain, console, fit_pipe, let_go_of_output
from somatize_worker.errors import SomaError

app = typer.Typer(
    help="Python pipelines on Celery workers: start a cluster, hand out plans and jobs, watch them run.",
    epilog="A first look: [cyan]somatize demo[/]. A cluster to play with: [cyan]somatize up[/].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", rich_help_panel="Start")(demo.demo)
app.command("up", rich_help_panel="Start")(cluster.up)
app.command("worker", rich_help_panel="Start", context_settings=cluster.PASS_ON)(cluster.worker)
app.command("submit", rich_help_panel="Run")(plans.submit)
app.add_typer(jobs.app, name="job", rich_help_panel="Run")
app.command("cancel", rich_help_panel="Run")(plans.cancel)
app.command("workers", rich_help_panel="Look")(cluster.workers)
app.command("plans", rich_help_panel="Look")(plans.plans)
app.command("events", rich_help_panel="Look")(plans.events)
app.command("logs", rich_help_panel="Look")(plans.logs)
app.command("doctor", rich_help_panel="Look")(cluster.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        import somatize_worker

        console.print(f"somatize-worker {somatize_worker.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What stands before the command."""


def main() -> None:
    """Run the command line; errors that this package knows are told in a sentence, not in a traceback."""
    fit_pipe()
    try:
        app()
    except BrokenPipeError:  # who read our output has enough
        let_go_of_output()
        sys.exit(141)
    except SomaError as error:
        sys.exit(complain(error))
    except KeyboardInterrupt:
        sys.exit(130)
