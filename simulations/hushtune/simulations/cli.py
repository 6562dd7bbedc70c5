"""The command ``hushtune``. Heavy libraries are imported by the commands that need them."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hushtune.common.environment import be_quiet
from hushtune.common.errors import (
    CheckpointError,
    ConfigError,
    EmptyDataError,
    EncodingError,
    HushtuneError,
    InterruptedRunError,
)
from hushtune.simulations import garbage
from hushtune.simulations.cli_audit import audit
from hushtune.simulations.cli_data import data_app
from hushtune.simulations.cli_export import export
from hushtune.simulations.cli_ledger import ledger_app
from hushtune.simulations.cli_options import (
    AsJson,
    ConfigFile,
    Overrides,
    Preset,
    keep_help_of_arguments,
    print_json,
    settings_of,
)
from hushtune.simulations.cli_report import report
from hushtune.simulations.cli_server import server_app
from hushtune.simulations.cli_site import site_app
from hushtune.simulations.cli_sweep import sweep
from hushtune.simulations.cli_track import track
from hushtune.simulations.cli_tune import tune
from hushtune.simulations.cli_verify import verify
from hushtune.simulations.exits import (
    BUG,
    INTERRUPTED,
    USER_ERROR,
    check_arguments,
    exit_quietly,
    exit_with,
    is_closed_pipe,
    show_error,
)
from hushtune.simulations.planner_command import plan

keep_help_of_arguments()
app = typer.Typer(
    name="hushtune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _tell_version(asked: bool) -> None:
    if asked:
        from hushtune.common.version import source_commit

        commit = source_commit()
        told = "" if commit is None else f" (source commit {commit})"
        print(f"hushtune {importlib.metadata.version('hushtune')}{told}")
        raise typer.Exit


@app.callback()
def everything(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Say which one this is."
        ),
    ] = False,
) -> None:
    """Federated, differentially private fine-tuning of LoRA adapters."""


config_app = typer.Typer(help="Write and describe configurations.", no_args_is_help=True)
app.add_typer(data_app, name="data")
policy_app = typer.Typer(help="What a site agrees to, above any server.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(policy_app, name="policy")
app.command()(plan)
app.command()(verify)
app.command()(export)
app.command()(track)
app.command()(report)
app.command()(tune)
app.command()(audit)
app.command()(sweep)
app.add_typer(ledger_app, name="ledger")
app.add_typer(server_app, name="server")
app.add_typer(site_app, name="site")


@app.command()
def simulate(
    out: Annotated[Path | None, typer.Option(help="the run's folder")] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the run in --out and its own ledgers")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would happen")] = False,
    folds: Annotated[
        str | None, typer.Option(metavar="K|sites", help="cross-validate, a run a fold")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="inprocess|flower",
            help="the same as --set simulation.engine=...: in this process, or Flower's simulation",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a federation of simulated sites and compare it with what each site could do alone."""
    console = Console(stderr=as_json)
    if out is None and not dry_run:
        raise ConfigError(
            "a run needs a folder to write to",
            expected="--out DIR, or --dry-run to write nothing",
            remedy=f"--out runs/{preset or 'first'}",
        )
    if resume and out is not None and preset is None and config is None:
        config = out / ("config.toml" if folds is None else "folds.toml")
        if not config.is_file():
            raise CheckpointError(
                "there is no run to resume",
                given=str(out),
                remedy="leave --resume out and say what to run: --preset demo, or --config FILE",
            )
    chosen = [] if engine is None else [f"simulation.engine={engine}"]
    settings = settings_of(preset, config, [*(set_ or []), *chosen])
    if folds is not None:
        from hushtune.simulations.cli_folds import simulate_folds

        how: dict[str, bool] = {"resume": resume, "overwrite": overwrite, "dry_run": dry_run}
        print_json(simulate_folds(console, settings, out, folds, **how), as_json)
        return
    from hushtune.simulations.weak import show_weak

    if dry_run:
        from hushtune.simulations.agreement import check_quorum, show_refusals
        from hushtune.simulations.estimate import estimate
        from hushtune.simulations.planner_trust import cohort, show_excess
        from hushtune.simulations.show import show_estimate

        with console.status("looking at data and model"):
            figures = estimate(settings)
        show_estimate(console, figures)
        if settings.privacy.trust == "distributed":
            privacy = settings.privacy
            show_excess(
                console, cohort(figures["sites"], privacy.min_survivors, privacy.colluding_sites)
            )
        show_weak(console, figures["sites"], unit=figures["unit"])
        show_refusals(console, figures)
        print_json(figures, as_json)
        check_quorum(figures)
        return
    assert out is not None  # checked above
    garbage.look_hardly_ever()
    from hushtune.simulations.show import show_summary
    from hushtune.simulations.show_progress import ProgressView
    from hushtune.simulations.study import run

    with ProgressView.of_run(console, settings) as view:
        summary = run(settings, out, resume=resume, overwrite=overwrite, observer=view)
    show_summary(console, summary)
    show_weak(console, summary["sites"], unit=summary["unit"])
    print_json(summary, as_json)


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a run's folder or an adapter's")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help='- reads a text from each line; a pair is ["first", "second"], a row of a table '
            '"age: 41; home: rent"',
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Label texts, or images by their paths, with a trained model."""
    wanted = _texts(texts or [])
    from hushtune.simulations.saved import load
    from hushtune.simulations.show import show_predictions

    console = Console(stderr=as_json)
    answers = load(folder).predict(wanted)
    show_predictions(console, answers)
    print_json(answers, as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What is installed, which accelerator, what is missing and the command that mends it."""
    from hushtune.simulations.doctor import examine
    from hushtune.simulations.show import show_doctor

    report = examine()
    show_doctor(Console(stderr=as_json), report)
    print_json(report, as_json)
    if not report["ok"]:
        raise typer.Exit(BUG)


@config_app.command("new")
def config_new() -> None:
    """Print a commented configuration with every key and its default."""
    from hushtune.common.config_io import template

    typer.echo(template(), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """Print the configuration's JSON schema."""
    from hushtune.common.config_io import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@config_app.command("show")
def config_show(preset: Preset = None, config: ConfigFile = None, set_: Overrides = None) -> None:
    """Print the complete configuration that a preset, a file and --set amount to."""
    from hushtune.common.config_io import dump_toml

    typer.echo(dump_toml(settings_of(preset, config, set_)), nl=False)


@policy_app.command("new")
def policy_new() -> None:
    """Print a commented policy.toml for a site to fill in."""
    from hushtune.client.terms import terms_template

    typer.echo(terms_template(), nl=False)


@policy_app.command("check")
def policy_check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a site's policy.toml")],
    as_json: AsJson = False,
) -> None:
    """Read a policy as a site would, and print all of its terms."""
    from hushtune.client.terms import load_terms

    terms = load_terms(file).model_dump(mode="json")
    console = Console(stderr=as_json)
    for key, value in terms.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        console.print(f"{key:>28}  {'-' if shown in (None, '') else shown}", highlight=False)
    print_json(terms, as_json)


def _texts(given: list[str]) -> list[str]:
    """The texts to label; ``-`` stands for the lines of standard input."""
    remedy = "hushtune predict DIR 'a sentence'; or - in place of it, for lines of standard input"
    texts: list[str] = []
    for text in given:
        if text != "-":
            texts.append(text)
            continue
        try:
            texts += sys.stdin.read().splitlines()
        except UnicodeDecodeError as error:
            raise EncodingError("standard input is not UTF-8", given=str(error)) from None
    if not texts:
        raise EmptyDataError("there is no text to label", remedy=remedy)
    for place, text in enumerate(texts, start=1):
        if not text.strip():
            raise EmptyDataError(f"text {place} is empty", given=repr(text), remedy=remedy)
    return texts


def main() -> None:
    """Run the command; the exit status is 0 only on success."""
    be_quiet()
    garbage.look_seldom()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    # Of an epsilon in the thousands, whose logarithm is found to be infinite.
    warnings.filterwarnings("ignore", "overflow encountered", RuntimeWarning, r"dp_accounting\.")
    ours = logging.getLogger("hushtune")
    if not os.environ.get("HUSHTUNE_DEBUG"):  # what a log says is told by name, or in the error
        ours.setLevel(logging.CRITICAL)
    try:
        _run_command(Console(stderr=True))
    except (BrokenPipeError, SystemExit) as error:
        if not is_closed_pipe(error):
            raise
        exit_quietly()
    finally:
        ours.setLevel(logging.NOTSET)


def _run_command(errors: Console) -> None:
    try:
        check_arguments(sys.argv[1:])
        # Not standalone, typer returns an exit status (130 for Ctrl-C) in place of raising it.
        status = app(prog_name="hushtune", standalone_mode=False)
        sys.stdout.flush()  # here, where a pipe that was closed or a full disk can be told
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(status or 0)
    except HushtuneError as error:
        show_error(error, errors)
        sys.exit(INTERRUPTED if isinstance(error, InterruptedRunError) else USER_ERROR)
    except typer.Abort:
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        stopped = InterruptedRunError(
            "interrupted",
            remedy="a run that had begun its rounds goes on with the same command and --resume",
        )
        show_error(stopped, errors)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if is_closed_pipe(error):
            raise
        exit_with(error, errors)


if __name__ == "__main__":
    main()
