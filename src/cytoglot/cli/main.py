"""The `cytoglot` command: one place that turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer

from cytoglot import __version__
from cytoglot.cli import answer, apply, benchmark, corpus, data, datasets, embed, look, models, runner, scale
from cytoglot.cli.command import Group, add_command
from cytoglot.errors import CytoglotError, InputError, MissingExtraError, ResourceError
from cytoglot.extras import EXTRAS

#: heading → command → its function and an example, in the order of `cytoglot --help`
_COMMANDS: dict[str, dict[str, tuple[Any, str]]] = {
    "Cells": {
        "audit": (data.audit_command, "cytoglot audit pbmc.h5ad --label cell_type"),
        "encode": (data.encode_command, "cytoglot encode pbmc.h5ad -o pbmc.parquet --top-genes 200"),
        "decode": (data.decode_command, "cytoglot decode pbmc.parquet --model model -o decoded.h5ad"),
        "reconstruct": (data.reconstruct_command, "cytoglot reconstruct pbmc.h5ad -o curves"),
        "import-c2s": (data.import_c2s_command, "cytoglot import-c2s c2s_dataset -o pbmc.parquet"),
    },
    "Model": {
        "train": (models.train_command, "cytoglot train pbmc.h5ad --label cell_type -o model"),
        "scale": (scale.scale_command, "cytoglot scale recipes/scaling.yaml -o sweep"),
        "card": (models.card_command, "cytoglot card model --evaluation evaluation --overwrite"),
        "push": (models.push_command, "cytoglot push model my-lab/pbmc-model"),
        "info": (look.info_command, "cytoglot info model"),
    },
    "Use": {
        "annotate": (apply.annotate_command, "cytoglot annotate new.h5ad --model model -o annotated.h5ad"),
        "embed": (embed.embed_command, "cytoglot embed new.h5ad --model model -o embedded.h5ad"),
        "generate": (
            apply.generate_command,
            'cytoglot generate --model model --cell-type "NK cell" -n 100 \\\n      -o generated.h5ad',
        ),
        "answer": (
            answer.answer_command,
            "cytoglot answer prompts.txt --model model -o answers.parquet \\\n      --format 'one_of: B cell | T cell'",
        ),
        "gene-embeddings": (
            embed.gene_embeddings_command,
            "cytoglot gene-embeddings --model model -o genes.parquet",
        ),
    },
    "Evaluation": {
        "evaluate": (models.evaluate_command, "cytoglot evaluate pbmc.h5ad --model model -o evaluation"),
        "report": (models.report_command, "cytoglot report evaluation"),
    },
    "Other": {
        "doctor": (models.doctor_command, "cytoglot doctor"),
        "demo": (models.demo_command, "cytoglot demo -o demo_output"),
        "recipes": (look.recipes_command, "cytoglot recipes show annotation > my_recipe.yaml"),
    },
}
_CORPUS: dict[str, tuple[Any, str]] = {
    "build": (corpus.build_command, "cytoglot corpus build recipes/demo_corpus.yaml -o corpus"),
    "show": (corpus.show_command, "cytoglot corpus show corpus -n 3 --task cell_generation"),
    "stats": (corpus.stats_command, "cytoglot corpus stats corpus -o corpus.html"),
    "audit": (corpus.audit_command, "cytoglot corpus audit corpus"),
}

_DATA: dict[str, tuple[Any, str]] = {
    "list": (datasets.list_command, "cytoglot data list"),
    "get": (datasets.get_command, "cytoglot data get pbmc3k"),
}
_RUNNER: dict[str, tuple[Any, str]] = {
    "list": (runner.list_command, "cytoglot runner list"),
    "build": (runner.build_command, "cytoglot runner build scvi-tools"),
    "run": (runner.run_command, "cytoglot runner run scvi-tools pbmc.h5ad -o scvi.parquet"),
}

_BENCHMARK: dict[str, tuple[Any, str]] = {
    "run": (benchmark.run_command, "cytoglot benchmark run recipes/verdict.yaml -o verdict"),
    "report": (benchmark.benchmark_report_command, "cytoglot benchmark report verdict"),
    "calibrate": (benchmark.calibrate_command, "cytoglot benchmark calibrate recipes/verdict.yaml -o calibration"),
    "reproduce": (benchmark.reproduce_command, "cytoglot benchmark reproduce 0123456789abcdef --folder verdict"),
}

app = typer.Typer(
    name="cytoglot",
    cls=Group,
    help="Train and apply language models of single cells: annotate, embed, generate, evaluate.",
    epilog="Each command has an example: cytoglot COMMAND -h",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _group, (_heading, _help, _commands_of) in {
    "corpus": ("Corpus", "Build, show and check a training corpus of many files.", _CORPUS),
    "data": ("Data", "List data sets by name, and download one.", _DATA),
    "runner": ("Evaluation", "Embed cells by models that need their own Python environment.", _RUNNER),
    "benchmark": ("Evaluation", "Compare models with simple methods, with intervals and a ceiling.", _BENCHMARK),
}.items():
    _typer = typer.Typer(
        cls=Group,
        help=_help,
        epilog=f"Each command has an example: cytoglot {_group} COMMAND -h",
        rich_markup_mode=None,
    )
    for _name, (_function, _example) in _commands_of.items():
        add_command(_typer, _name, _function, _example)
    app.add_typer(_typer, name=_group, rich_help_panel=_heading)
for _panel, _commands in _COMMANDS.items():
    for _name, (_function, _example) in _commands.items():
        add_command(app, _name, _function, _example, panel=_panel)
add_command(app, "gene-vectors", *_COMMANDS["Use"]["gene-embeddings"], hidden=True)

# Typer brings its own copy of click since 0.20, so the base of what it raises is found from what it exports.
_UsageFault: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
_NOISY = ("transformers", "accelerate", "matplotlib", "numba", "fontTools", "httpx")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"cytoglot {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 on success, 2 on a user's mistake, 1 on a failure of the machine or of ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not os.environ.get("CYTOGLOT_DEBUG"):
        # Warnings of other packages advise programmers; ours name what a user should change.
        warnings.filterwarnings("ignore")
        for ours in (FutureWarning, UserWarning):
            warnings.filterwarnings("default", category=ours, module=r"cytoglot\b")
        warnings.showwarning = lambda message, *_, **__: logging.getLogger("cytoglot").warning("%s", message)
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; no traceback is shown unless CYTOGLOT_DEBUG is set."""
    given = sys.argv[1:] if arguments is None else arguments
    ours = logging.getLogger("cytoglot")
    level = ours.level
    try:
        code = app(given or ["--help"], prog_name="cytoglot", standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that has gone is noticed
    except (InputError, MissingExtraError, ResourceError) as error:
        cause = error.__cause__
        is_full_disk = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        return _fail(error, 1 if is_full_disk else 2)
    except CytoglotError as error:
        return _fail(error, 1)
    except (typer.Abort, KeyboardInterrupt):
        return _fail(None, 130, text="interrupted; the same command goes on where it stopped, where it can")
    except ModuleNotFoundError as error:
        return _fail(error, 2, text=_missing_extra(error))
    except BrokenPipeError:
        # The reader of stdout, such as `head`, has what it wants; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(error, 1, text=f"{type(error).__name__}: {error}")
    except MemoryError as error:
        return _fail(error, 1, text=f"out of memory: {error}; --dry-run forecasts what a command needs")
    except Exception as error:  # noqa: BLE001 - the last line of defence: a fault of ours, told in one line
        if isinstance(error, _UsageFault):
            return _fail(error, 2, text=error.format_message())  # type: ignore[attr-defined]
        return _fail(error, 1, text=f"internal error, {type(error).__name__}: {error} (CYTOGLOT_DEBUG=1 shows where)")
    finally:
        ours.setLevel(level)
    return int(code or 0)


def _missing_extra(error: ModuleNotFoundError) -> str:
    """Name the extra that brings an absent module."""
    name = (error.name or "").split(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if name in modules), None)
    if extra is None:
        return f"the module {error.name!r} is not installed; reinstall cytoglot"
    return f"this command needs {name!r}, which is not installed; run: pip install 'cytoglot[{extra}]'"


def _fail(error: BaseException | None, code: int, *, text: str | None = None) -> int:
    if error is not None and os.environ.get("CYTOGLOT_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    message = text if text is not None else str(error)
    notes = getattr(error, "__notes__", [])
    sys.stderr.write("cytoglot: " + " ".join(" ".join([message, *notes]).split()) + "\n")
    return code
