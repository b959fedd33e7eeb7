"""The command line: thin commands that parse, call, and print. Nothing heavy is imported before a command runs.

Results go to stdout and everything else to stderr, so that a script can read the one and a person the other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.core import TyperGroup

from capaft import __version__, summary
from capaft.config.presets import preset_file, preset_summaries
from capaft.config.settings import dump_settings, resolve_settings, signature
from capaft.config.train_config import BaseDtype, TrainConfig
from capaft.support import strict_json
from capaft.support.errors import CapaftError, TrainingError, UsageError, printable
from capaft.support.files import check_writable
from capaft.training.record.run_directory import started_config

if TYPE_CHECKING:
    from rich.console import Console

    from capaft.training.record.saved_run import SavedRun


class _Commands(TyperGroup):
    """The commands: listed in plain text, and what is wrong with a command line told in one line."""

    def format_help(self, *args: Any) -> None:
        # Drawing panels takes as long as all else that `--help` does.
        self.rich_markup_mode = None
        super().format_help(*args)

    def main(self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override] # what else goes in, goes by name
        try:
            found = super().main(args, standalone_mode=False, **extra)
        except Exception as error:
            # Typer's own, or click's where Typer builds on that: they alone know how to be shown.
            if not standalone_mode or not hasattr(error, "format_message"):
                raise
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "capaft"
            said = " ".join(error.format_message().split()).rstrip(".")
            print(f"error: {said}; see {command} --help", file=sys.stderr)
            sys.exit(UsageError.exit_code)
        if standalone_mode:
            sys.exit(found if isinstance(found, int) else 0)
        return found


app = typer.Typer(
    cls=_Commands,
    help="Fine-tune any Hugging Face checkpoint with adapters of a few kilobytes.",
    epilog="Start with `capaft train`: it needs no model, no data and no network.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Run = Annotated[str, typer.Argument(help="A run directory or an adapter file.", metavar="RUN")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Model = Annotated[str | None, typer.Option("--model", help="Base model (default: the one the run or the file names).")]
Rename = Annotated[
    list[str] | None,
    typer.Option("--rename", help="Module names that changed since training, as old=new.", metavar="OLD=NEW"),
]
AllowMismatch = Annotated[
    bool, typer.Option("--allow-base-mismatch", help="Use the adapter although the base weights differ.")
]

HeldIn = Annotated[
    str | None,
    typer.Option(
        "--base-dtype",
        help="What the base's weights are held in (default: as in the run, else float32).",
        metavar="DTYPE",
        autocompletion=lambda: list(get_args(BaseDtype)),
    ),
]


@app.command(
    epilog="Examples: `capaft train` · `capaft train --model roberta-base --data glue/sst2 --method nola --k 1024` · "
    "`capaft train --model ./dir --data reviews.csv --method capaboost`"
)
@signature(TrainConfig)
def train(
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Settings of a published experiment; `capaft presets` lists them.")
    ] = None,
    json: Json = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Decide everything, train nothing, and say what would be.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved settings as YAML and stop.")
    ] = False,
    **flags: str | bool | None,
) -> None:
    """Train an adapter. Without arguments: a real job on an embedded model and data set."""
    with _reporting() as console:
        if config is not None and not config.is_file():
            raise UsageError(f"--config {config}: there is no such file")
        published = preset_file(preset) if preset else None
        settings, _ = resolve_settings(TrainConfig, flags=flags, environ=os.environ, file=config, preset=published)
        if settings.resume and (begun := started_config(settings.output)):
            # What the run began with counts where the command says nothing.
            settings, _ = resolve_settings(TrainConfig, flags=flags, environ=os.environ, file=config, preset=begun)
        if print_config:
            print(dump_settings(settings), end="")
            return
        if not dry_run:
            from capaft.training.parallel.launch import follow_launcher, launch_processes, should_launch

            if should_launch(settings.processes):
                raise typer.Exit(launch_processes(settings.processes, sys.argv[1:]))
            follow_launcher()
        _quiet_libraries(console)
        if dry_run:
            from capaft import dry_run as dry

            decided = dry.describe(settings, console)
            print(strict_json.document(decided) if json else dry.text(decided))
            return
        from capaft.training.run import execute_run

        results = execute_run(settings, console, sys.argv[1:])
        if _is_first():
            print(strict_json.document(results) if json else summary.of_run(results))


@app.command(
    name="eval",
    epilog="Examples: `capaft eval runs/lora+nola-1` · `capaft eval adapter.safetensors --data test.csv`",
)
def evaluate(
    run: Run,
    data: Annotated[
        str | None, typer.Option("--data", help="What to score on (default: the run's validation split).")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Split of the data to score on, such as test.", metavar="NAME")
    ] = None,
    model: Model = None,
    text_column: Annotated[str | None, typer.Option(help="Column that holds the text.")] = None,
    pair_column: Annotated[str | None, typer.Option(help="Column that holds the second text.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column that holds the label.")] = None,
    metric: Annotated[str | None, typer.Option(help="Metric (default: the one it was trained for).")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="Options of the task to change, such as num_beams=4.", metavar="NAME=VALUE"),
    ] = None,
    max_examples: Annotated[int | None, typer.Option(help="Score on this many examples at most.", min=1)] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Write what was predicted to this JSON lines file.")
    ] = None,
    rename: Rename = None,
    allow_base_mismatch: AllowMismatch = False,
    base_dtype: HeldIn = None,
    json: Json = False,
) -> None:
    """Score a saved adapter."""
    with _reporting() as console:
        check_writable("--predictions", predictions)
        _quiet_libraries(console)
        from capaft.training.scoring import score_run

        saved = _opened(run, model, rename, allow_base_mismatch, base_dtype)
        chosen = {"text": text_column, "pair": pair_column, "label": label_column}
        results = score_run(
            saved,
            data,
            say=lambda line: console.print(f"data   {line}", highlight=False, markup=False, soft_wrap=True),
            split=split,
            metric=metric,
            options=_pairs(options, "--set NAME=VALUE"),
            max_examples=max_examples,
            predictions=predictions,
            **chosen,
        )
        if json:
            print(strict_json.document(results))
            return
        print(summary.of_evaluation(results, predictions))


@app.command(epilog="Example: `capaft merge runs/lora+nola-1 --output merged`")
def merge(
    run: Run,
    output: Annotated[str, typer.Option("--output", help="Directory to write the merged model to.")],
    model: Model = None,
    rename: Rename = None,
    allow_base_mismatch: AllowMismatch = False,
    base_dtype: HeldIn = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
    json: Json = False,
) -> None:
    """Write base and adapter as one plain model directory."""
    with _reporting() as console:
        _quiet_libraries(console)
        import time

        from capaft import merged

        started = time.perf_counter()
        saved = _opened(run, model, rename, allow_base_mismatch, base_dtype)
        sites = merged.write(saved, output, overwrite=overwrite)
        results = {"output": output, "sites": sites, "seconds": round(time.perf_counter() - started, 3)}
        print(strict_json.document(results) if json else f"merged {sites} sites into {output}")


@app.command(name="inspect-rank", epilog="Example: `capaft inspect-rank runs/lora+nola-1 --plot rank.png`")
def inspect_rank(
    run: Run,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the spectra to this PNG file.")] = None,
    model: Model = None,
    rename: Rename = None,
    allow_base_mismatch: AllowMismatch = False,
    base_dtype: HeldIn = None,
    json: Json = False,
) -> None:
    """Report the effective rank of each site's update."""
    with _reporting() as console:
        check_writable("--plot", plot)
        _quiet_libraries(console)
        from capaft import rank_report
        from capaft.adapter.rank import inspect_ranks, summarise_ranks
        from capaft.support.files import write_atomically

        saved = _opened(run, model, rename, allow_base_mismatch, base_dtype)
        reports = inspect_ranks(saved.model)
        summary = summarise_ranks(reports)
        if plot:
            write_atomically(plot, rank_report.draw(reports))
        if json:
            print(strict_json.document({"sites": [r.record() for r in reports], "summary": summary}))
        else:
            rank_report.show(reports, summary)


@app.command()
def info(
    file: Annotated[str, typer.Argument(help="A run directory or an adapter file.", metavar="RUN")],
    json: Json = False,
) -> None:
    """Verify an adapter file and say what it is."""
    with _reporting():
        from capaft.adapter.file import save_load
        from capaft.adapter.file.save_load import describe
        from capaft.training.record.run_directory import find_adapter_file

        path, _ = find_adapter_file(file)
        read = save_load.read(path)
        if json:
            print(strict_json.document({"path": str(path), "bytes": read.size, "header": read.header}))
            return
        print("\n".join(printable(line) for line in describe(read)))


@app.command(epilog="Examples: `capaft methods` · `capaft methods --model ./dir`")
def methods(
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Say what each comes to on this model; its weights are not read.", metavar="DIR|ID"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the methods, their options and what they compose with."""
    with _reporting() as console:
        _quiet_libraries(console)
        from capaft import method_table
        from capaft.model.load import load_skeleton

        base = None if model is None else load_skeleton(model)
        print(strict_json.document(method_table.rows(base)) if json else method_table.text(base))


@app.command(name="presets", epilog="Example: `capaft train --preset nola-glue-rte --print-config`")
def list_presets(json: Json = False) -> None:
    """List the published experiments that --preset knows."""
    with _reporting():
        found = preset_summaries()
        width = max(map(len, found))
        print(strict_json.document(found) if json else "\n".join(f"{k:{width}}  {v}" for k, v in found.items()))


@app.command()
def env(json: Json = False) -> None:
    """Print the versions and the device that a run would use."""
    with _reporting():
        import platform
        from importlib.metadata import version

        import torch

        names = ("torch", "transformers", "accelerate", "datasets", "safetensors", "numpy", "typer", "rich")
        found = {"capaft": __version__, "python": platform.python_version(), "platform": platform.platform()}
        found |= {name: version(name) for name in names}
        found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        found["threads"] = str(torch.get_num_threads())
        print(strict_json.document(found) if json else "\n".join(f"{k:14}{v}" for k, v in found.items()))


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune any Hugging Face checkpoint with adapters of a few kilobytes."""


@contextmanager
def _reporting() -> Iterator[Console]:
    """Turns what is raised on purpose into one line on stderr and an exit code."""
    from rich.console import Console

    console = Console(stderr=True)
    try:
        yield console
        sys.stdout.flush()
    except CapaftError as error:
        prefix = "stopped" if error.exit_code == 130 else "error"
        # All processes of a run find the same fault in what they were given; a failure may be one's own.
        if _is_first() or type(error) is TrainingError:
            console.quiet = False
            for line in str(error).splitlines():
                console.print(f"{prefix}: {line}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        console.print("stopped: interrupted", highlight=False)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader of stdout has gone, as in `capaft info RUN | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None


def _quiet_libraries(console: Console) -> None:
    """Keep the libraries' own reports off the screen, and show warnings as lines."""
    import logging
    import warnings

    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning) and not issubclass(category, (FutureWarning, DeprecationWarning)):
            console.print(f"warning: {message}", highlight=False, markup=False, soft_wrap=True)

    warnings.showwarning = show
    for name in ("huggingface_hub", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _opened(
    run: str, model: str | None, rename: list[str] | None, allow_base_mismatch: bool, base_dtype: str | None
) -> SavedRun:
    """The run or adapter file that the options of a command describe, on its base model."""
    from capaft.training.record.saved_run import open_run

    return open_run(
        run,
        model=model,
        rename=_pairs(rename),
        allow_base_mismatch=allow_base_mismatch,
        base_dtype=base_dtype,
    )


def _pairs(given: list[str] | None, form: str = "--rename OLD=NEW") -> dict[str, str]:
    """`["a=b", ...]` as a dictionary."""
    pairs = {}
    for each in given or []:
        first, equals, second = each.partition("=")
        if not (first and equals and second):
            raise UsageError(f"{form.split()[0]} {each} must be {form.split()[1].lower()}")
        pairs[first] = second
    return pairs


def _is_first() -> bool:
    """Whether this process speaks for those that train together."""
    return os.environ.get("RANK", "0") == "0"
