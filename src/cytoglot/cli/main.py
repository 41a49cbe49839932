"""The `cytoglot` command: one place that turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
import warnings
from types import ModuleType

import typer

from cytoglot.cli import answer, apply, corpus, data, datasets, embed, models, scale
from cytoglot.errors import CytoglotError, InputError, MissingExtraError, ResourceError
from cytoglot.extras import EXTRAS


def _add_commands(group: typer.Typer, module: ModuleType) -> None:
    """Every function of a module that is called `…_command` is a command, in the order in which they stand there."""
    for name, function in vars(module).items():
        if name.endswith("_command"):
            group.command(name.removesuffix("_command").replace("_", "-"))(function)


app = typer.Typer(
    name="cytoglot",
    help="The language of cells: cell sentences, language models of them, honest measurements.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
corpora = typer.Typer(help="Corpora: cells of many files, ready to train on.", rich_markup_mode=None)
_add_commands(corpora, corpus)
app.add_typer(corpora, name="corpus")
named_data = typer.Typer(help="Data sets by name: list them, download one.", rich_markup_mode=None)
_add_commands(named_data, datasets)
app.add_typer(named_data, name="data")
for commands in (data, models, scale, apply, embed, answer):
    _add_commands(app, commands)

# Typer brings its own copy of click since 0.20, so the base of what it raises is found from what it exports.
_UsageFault: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
_NOISY = ("transformers", "accelerate", "matplotlib", "numba", "fontTools", "httpx")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 on success, 2 on a user's mistake, 1 on a failure of the machine or of ours."""
    # Busy waiting makes two processes on two cores ten times slower than one; see docs/results.md.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not os.environ.get("CYTOGLOT_DEBUG"):
        # Advice for programmers of other packages; what matters to users is logged or raised.
        warnings.filterwarnings("ignore")
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; no traceback is shown unless CYTOGLOT_DEBUG is set."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(given or ["--help"], standalone_mode=False)
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
    except OSError as error:
        return _fail(error, 1, text=f"{type(error).__name__}: {error}")
    except MemoryError as error:
        return _fail(error, 1, text=f"out of memory: {error}; --dry-run forecasts what a command needs")
    except Exception as error:  # noqa: BLE001 - the last line of defence: a fault of ours, told in one line
        if isinstance(error, _UsageFault):
            return _fail(error, 2, text=error.format_message())  # type: ignore[attr-defined]
        return _fail(error, 1, text=f"internal error, {type(error).__name__}: {error} (CYTOGLOT_DEBUG=1 shows where)")
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
