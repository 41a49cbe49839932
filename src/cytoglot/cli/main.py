"""The `cytoglot` command: one place that turns errors into one line and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import traceback

import click
import typer

from cytoglot.cli import apply, data, models
from cytoglot.cli.output import Failure
from cytoglot.errors import InputError, MissingExtraError

app = typer.Typer(
    name="cytoglot",
    help="The language of cells: cell sentences, language models of them, honest measurements.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (data, models, apply):
    module.add_commands(app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 on success, 2 on a user's mistake, 1 on a failure of the machine or of ours."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; no traceback is shown unless CYTOGLOT_DEBUG is set."""
    # Busy waiting makes two processes on two cores ten times slower than one; see docs/results.md.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    for noisy in ("transformers", "accelerate", "matplotlib", "numba", "fontTools", "httpx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        code = app(arguments, standalone_mode=False)
    except (InputError, MissingExtraError) as error:
        return _fail(error, 2)
    except click.ClickException as error:
        return _fail(error, 2, text=error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return _fail(None, 130, text="interrupted; the same command goes on where it stopped, where it can")
    except OSError as error:
        return _fail(error, 1, text=f"{type(error).__name__}: {error}")
    except Failure as failure:
        return failure.code
    except Exception as error:  # noqa: BLE001 - the last line of defence: a fault of ours, told in one line
        return _fail(error, 1, text=f"internal error, {type(error).__name__}: {error} (CYTOGLOT_DEBUG=1 shows where)")
    return int(code or 0)


def _fail(error: BaseException | None, code: int, *, text: str | None = None) -> int:
    if error is not None and os.environ.get("CYTOGLOT_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    message = text if text is not None else str(error)
    notes = getattr(error, "__notes__", [])
    sys.stderr.write("cytoglot: " + " ".join(" ".join([message, *notes]).split()) + "\n")
    return code
