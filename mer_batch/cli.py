"""The command line: ``mer-batch COMMAND CONFIG [key=value ...]``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import mer_batch
from mer_batch.errors import MerBatchError

app = typer.Typer(
    help="Tag a whole music catalog with valence and arousal.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="E.g. output.uri=out")
]


def _console() -> Console:
    # Soft wrapping: piped into a file, a path or a message must not be broken at 80 columns.
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Tag a whole music catalog with valence and arousal."""
    if version:
        typer.echo(f"mer-batch {mer_batch.__version__}")
        raise typer.Exit


@app.command()
def tag(config: ConfigPath, overrides: Overrides = None) -> None:
    """Score every new or changed track of a catalog and publish the enriched catalog."""
    from mer_batch.config import TagConfig, load_config
    from mer_batch.pipelines import tagging
    from mer_batch.summary import print_tag_summary

    settings = load_config(TagConfig, config, overrides or [])
    console = _console()
    print_tag_summary(console, tagging.run(settings, console))


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None) -> None:
    """Say what tag would do, how long it would take and what it would cost; touches nothing."""
    from mer_batch.config import TagConfig, load_config, take_cost
    from mer_batch.pipelines import planning
    from mer_batch.summary import print_plan_summary

    cost, rest = take_cost(overrides or [])
    settings = load_config(TagConfig, config, rest)
    print_plan_summary(_console(), planning.run(settings, cost_per_cpu_hour=cost))


@app.command()
def replay(config: ConfigPath, overrides: Overrides = None) -> None:
    """Try rejects again, by reason=REASON[,REASON...], and publish the catalog as tag does."""
    from mer_batch.config import TagConfig, load_config, take_reasons
    from mer_batch.pipelines import tagging
    from mer_batch.summary import print_tag_summary

    reasons, rest = take_reasons(overrides or [])
    settings = load_config(TagConfig, config, rest)
    console = _console()
    print_tag_summary(console, tagging.replay(settings, console, reasons))


@app.command()
def extract(config: ConfigPath, overrides: Overrides = None) -> None:
    """Extract the features of every new or changed track: mel spectrograms, in Parquet."""
    from mer_batch.config import ExtractConfig, load_config
    from mer_batch.pipelines import extraction
    from mer_batch.summary import print_extract_summary

    settings = load_config(ExtractConfig, config, overrides or [])
    console = _console()
    print_extract_summary(console, extraction.run(settings, console))


@app.command()
def compact(config: ConfigPath, overrides: Overrides = None) -> None:
    """Merge the small parts that nights leave in an output, and delete what is of no use."""
    from mer_batch.config import load_output_config
    from mer_batch.pipelines import compaction
    from mer_batch.summary import print_compact_summary

    settings = load_output_config(config, overrides or [])
    console = _console()
    print_compact_summary(console, compaction.run(settings, console))


@app.command()
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train a recipe on labelled clips, measure it on clips it has not seen, write a checkpoint."""
    from mer_batch.config import LearnConfig, load_config
    from mer_batch.pipelines import training
    from mer_batch.summary import print_train_summary

    settings = load_config(LearnConfig, config, overrides or [])
    console = _console()
    print_train_summary(console, training.run(settings, console))


@app.command()
def evaluate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Measure recipes on clips they have not seen, beside baselines and printed results."""
    from mer_batch.config import LearnConfig, load_config
    from mer_batch.pipelines import evaluation
    from mer_batch.summary import print_evaluation_summary

    settings = load_config(LearnConfig, config, overrides or [])
    console = _console()
    print_evaluation_summary(console, evaluation.run(settings, console))


@app.command()
def labels(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check labelled data sets and print what they hold."""
    from mer_batch.config import LabelsConfig, load_config
    from mer_batch.errors import DatasetError
    from mer_batch.labels import run
    from mer_batch.summary import print_labels_report

    report = run(load_config(LabelsConfig, config, overrides or []))
    print_labels_report(_console(), report)
    if report.faults:
        raise DatasetError("\n".join(report.faults))


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for audio, scores and picture.")
    ] = Path("demo-out"),
) -> None:
    """Compose 24 short pieces in four moods, tag them, show where they land."""
    from mer_batch.demo import run_demo

    run_demo(output, _console())


def run_command(arguments: list[str]) -> int:
    """Run a command and return its exit code; errors of ours are printed, not raised."""
    try:
        app(arguments, standalone_mode=False)
    except MerBatchError as error:
        print(f"mer-batch: {error}", file=sys.stderr)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        if not hasattr(error, "exit_code") or not hasattr(error, "format_message"):
            raise
        words = error.format_message().rstrip(".")
        print(f"mer-batch: {words}; see mer-batch --help", file=sys.stderr)
        return 2
    return 0
