"""What every command has: options for all, a help page that shows all of it, and spellings of earlier releases."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from cytoglot.progress import set_progress

logger = logging.getLogger(__name__)

#: command → option of an earlier release → how it is spelled now, or None where it never did anything
_OLD_OPTIONS: dict[str, dict[str, str | None]] = {
    "corpus show": {"--part": "--split"},
    "answer": {"--part": "--chunk-prompts"},
    "encode": {"--device": None},
    "reconstruct": {"--device": None},
    **{name: {"--seed": None} for name in ("audit", "decode", "import-c2s", "card", "push", "embed", "report")},
    **{name: {"--seed": None} for name in ("doctor", "gene-embeddings", "gene-vectors", "corpus stats")},
}
#: headings of `cytoglot --help`, in this order
_PANELS = ("Cells", "Corpus", "Model", "Use", "Evaluation", "Data", "Other", "Commands")
#: what typer calls a type → what a help page calls it
_TYPES = {"int": "N", "integer": "N", "float": "X", "path": "PATH", "str": "TEXT", "list[str]": "TEXT", "text": "TEXT"}


def _quiet(value: bool) -> None:
    if value:
        logging.getLogger("cytoglot").setLevel(logging.WARNING)
        set_progress(False)


def _verbose(value: bool) -> None:
    if value:
        logging.getLogger("cytoglot").setLevel(logging.DEBUG)


def _options_of_all(
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Only warnings and errors on stderr.", callback=_quiet)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Every detail on stderr.", callback=_verbose)] = False,
) -> None: ...


class Command(TyperCommand):
    """A command with the options of all, which takes the spellings of earlier releases with a warning."""

    def __init__(self, name: str | None, *, params: list[Any], **settings: Any) -> None:
        holder = typer.Typer(add_completion=False)
        holder.command()(_options_of_all)
        common = get_command(holder).params
        for parameter in common:
            parameter.expose_value = False  # their callbacks do what they say
        super().__init__(name, params=[*params, *common], **settings)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Write arguments in capitals, without the braces of some releases of typer."""
        return [re.sub(r"[{}]|\.\.\.", "", piece).upper() for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options; types have short names, and bounds are left to the message that refuses them."""
        rows: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is None:
                continue
            name, text = record
            is_option = parameter.param_type_name == "option"
            name, found_type = re.subn(r" <?([a-zA-Z\[\]]+)( range| RANGE)?>?$", r" \1", name)
            if found_type:
                name, _, kind = name.rpartition(" ")
                name = f"{name} {_TYPES.get(kind.lower(), kind)}" if is_option else name
            text = re.sub(r"(; )?[\d.]*(<=)?x[<>]=?[\d.]+(?=\])", "", text).replace("[]", "").rstrip()
            text = re.sub(r"\[default: \((.*?)\)", r"[default: \1", text)
            rows["Options" if is_option else "Arguments"].append((name if is_option else name.upper(), text))
        for heading, found in rows.items():
            if found:
                with formatter.section(heading):
                    formatter.write_dl(found, col_max=26)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace spellings of earlier releases, then read the arguments."""
        command = ctx.command_path.partition(" ")[2]
        old, kept, given = _OLD_OPTIONS.get(command, {}), [], iter(args)
        for word in given:
            option, equals, value = word.partition("=")
            if word == "--":
                kept += [word, *given]
            elif option not in old:
                kept.append(word)
            elif (new := old[option]) is not None:
                logger.warning("%s is now called %s; the old spelling ends with the next release", option, new)
                kept.append(new + equals + value)
            else:
                logger.warning("%s does nothing in %s and ends with the next release", option, command)
                if not equals:
                    next(given, None)
        return super().parse_args(ctx, kept)


class Group(TyperGroup):
    """Commands listed under the headings of their panels, with their whole first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None)
                summary = (command.help or "").partition("\n\n")[0]
                panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, summary))
        width = max(len(name) for rows in panels.values() for name, _ in rows)
        for panel, rows in sorted(panels.items(), key=lambda item: _PANELS.index(item[0])):
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(width), summary) for name, summary in rows])


def add_command(
    group: typer.Typer,
    name: str,
    function: Callable[..., Any],
    example: str,
    *,
    panel: str | None = None,
    hidden: bool = False,
) -> None:
    """Add a command with an example, under the heading `panel`; an earlier name of another is hidden."""
    epilog = "\b\nExample:\n" + "\n".join(f"  {line}" for line in example.splitlines())
    group.command(name, cls=Command, rich_help_panel=panel, epilog=epilog, hidden=hidden)(function)
