"""Prompt templates: several ways to put one question, read from TOML, checked when read, chosen by a stable hash.

Two rules keep every text of a task tokenized alike. A prompt never ends in white space and a completion starts with
one space, so that prompt + completion has one tokenization. Every gene is preceded by a space, in prompts and in
completions, because tokenizers with one token per gene know a gene only with that space.
"""

from __future__ import annotations

import hashlib
import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

from cytoglot.errors import InputError, UnknownNameError
from cytoglot.manifest import fingerprint_texts
from cytoglot.tasks.record import Record
from cytoglot.tasks.segments import Field, Segments, join
from cytoglot.texts import read_text

TERMINATOR = "."
"""Closes every completion; the tokenizers split it from the word before it."""

GENES_FIELD, GENES_ENDING, LINES_ENDING = "genes", "_sentence", "_sentences"
"""fields of these names and endings hold genes with a space between them; several cells, a line for each"""


@dataclass(frozen=True, kw_only=True)
class Template:
    """One wording of a task's question."""

    name: str
    text: str
    held_out: bool = False
    """kept out of training, so that a test can tell understanding from recognizing the wording"""

    def render(self, fields: Mapping[str, Field]) -> Segments:
        """Return the text with its fields filled; a field that is not in `fields` is a KeyError."""
        return join([piece if is_text else fields[piece] for is_text, piece in self._pieces])

    @cached_property
    def fields(self) -> frozenset[str]:
        """Names in braces."""
        return frozenset(piece for is_text, piece in self._pieces if not is_text)

    @cached_property
    def _pieces(self) -> list[tuple[bool, str]]:
        """The text in pieces: (True, words as they are) or (False, name of a field)."""
        pieces = []
        for words, name, specification, conversion in string.Formatter().parse(self.text):
            if words:
                pieces.append((True, words))
            if specification or conversion:
                raise ValueError(f"a field is {{{name}}} and has no format")
            if name is not None:
                pieces.append((False, name))
        return pieces


@dataclass(frozen=True)
class FieldStyle:
    """How the fields of a task's wordings are written; this is ours: as the task fills them."""

    answer_prefix: str = " "
    """what parts an answer from its prompt"""
    name: str = "cytoglot"
    is_ours: bool = True
    """whether the rules for our wordings bind"""

    def fields_of(self, record: Record) -> Mapping[str, Field]:
        """Return what this style writes otherwise than the task does."""
        return {}

    def required_metadata(self, templates: TemplateSet) -> tuple[str, ...]:
        """Return the metadata that a record must have for every one of the templates, beside what the task needs."""
        return ()

    def spelled(self, gene: str) -> str:
        """Return a gene as the wordings write it."""
        return gene


OURS = FieldStyle()


@dataclass(frozen=True, kw_only=True)
class TemplateSet:
    """All wordings of a task and the form of its answer."""

    name: str
    fields: tuple[str, ...]
    """what a prompt may name"""
    answer: str
    """the completion without its leading space, such as `{cell_type}.`"""
    templates: tuple[Template, ...]
    style: FieldStyle = OURS
    """how fields are written; wordings of another style are kept to the letter, exempt from the rules for ours"""

    def __post_init__(self) -> None:
        answer, names = self.answer, [t.name for t in self.templates]
        if self.style.is_ours and (not answer.endswith(TERMINATOR) or answer != answer.strip()):
            raise InputError(
                f"the answer of {self.name} must end in {TERMINATOR!r} and have no white space around it, "
                f"found {answer!r}; the leading space is added by the task"
            )
        if len(set(names)) != len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise InputError(f"templates of {self.name} need distinct names, found more than once: {twice}")
        if all(t.held_out for t in self.templates):
            raise InputError(f"{self.name} needs at least one template that is not held out, found none")
        for template in self.templates:
            _check_template(template, self)

    @cached_property
    def training(self) -> tuple[Template, ...]:
        """Templates for training; the first is the terse one, which inference uses unless told otherwise."""
        return tuple(t for t in self.templates if not t.held_out)

    @cached_property
    def held_out(self) -> tuple[Template, ...]:
        """Templates that training never sees."""
        return tuple(t for t in self.templates if t.held_out)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all templates."""
        return frozenset(t.name for t in self.templates)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any wording, its order or its being held out."""
        texts = [self.name, self.answer]
        for t in self.templates:
            texts += [t.name, t.text, str(t.held_out)]
        return fingerprint_texts(texts if self.style.is_ours else [*texts, self.style.name, self.style.answer_prefix])

    def completion(self, fields: Mapping[str, Field]) -> Segments:
        """Return the answer as it stands after a prompt, such as `" CD4 T."`."""
        return self._completion.render(fields)

    def bare(self, completion: str) -> str:
        """Return a completion without what the wording puts around it: a space, a full stop."""
        before, after = self._frame
        return completion.removeprefix(before).removesuffix(after)

    def framed(self, answer: str) -> str:
        """Return an answer as a completion, as training shows it; undoes `bare`."""
        before, after = self._frame
        return before + answer + after

    @cached_property
    def _frame(self) -> tuple[str, str]:
        text = self.style.answer_prefix + self.answer
        return text[: text.index("{")], text[text.rindex("}") + 1 :]

    @cached_property
    def _completion(self) -> Template:
        return Template(name="answer", text=self.style.answer_prefix + self.answer)

    def get(self, template: int | str) -> Template:
        """Return a training template by its position, or any template by its name.

        Raises
        ------
        UnknownNameError
            No template has this name.
        InputError
            The position is not that of a training template.
        """
        if isinstance(template, str):
            for candidate in self.templates:
                if candidate.name == template:
                    return candidate
            raise UnknownNameError(f"template of {self.name}", template, [t.name for t in self.templates])
        if not 0 <= template < len(self.training):
            raise InputError(
                f"template {template} of {self.name} does not exist; "
                f"pass a number from 0 to {len(self.training) - 1} or the name of a template"
            )
        return self.training[template]

    def choose(self, key: str, *, seed: int = 0, epoch: int = 0, held_out: bool = False) -> Template:
        """Return the template of a record in an epoch: a hash of (seed, task, the record's key, epoch).

        It depends neither on the order of the records nor on the number of workers. With `held_out` the choice is among
        the held-out templates alone; if there are none, an InputError.
        """
        pool = self.held_out if held_out else self.training
        if not pool:
            raise InputError(f"{self.name} has no held-out template here; mark one with held_out = true")
        text = "\0".join((str(seed), self.name, key, str(epoch))).encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return pool[int.from_bytes(digest, "little") % len(pool)]


def load_templates(source: str | Path) -> TemplateSet:
    """Read a TOML file of templates; a bare name such as `"cell_generation"` is one that ships with the package.

    The file holds `name`, `fields`, `answer` and one `[[prompt]]` table per wording with `name`, `text` and,
    optionally, `held_out = true`.

    Raises
    ------
    InputError
        The file is missing, is not TOML, lacks a key, has an unknown one, or a template breaks a rule: an unknown
        field, white space at its end, genes that are not preceded by a space, fewer than one training template.
    """
    places = resources.files("cytoglot.tasks") / "templates"
    folders = [places, *(place for place in places.iterdir() if place.is_dir())]
    packaged = (
        [folder / f"{source}.toml" for folder in folders] if isinstance(source, str) and source.isidentifier() else []
    )
    found = next((file for file in packaged if file.is_file()), None)
    if found is None and not Path(source).is_file():
        raise InputError(f"templates {source} do not exist; pass the path of a TOML file or a task's name")
    text = read_text(Path(source)) if found is None else found.read_text(encoding="utf-8")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"templates {source} are not valid TOML: {error}") from error
    _check_keys(values, required={"name", "fields", "answer", "prompt"}, optional=set(), where=f"templates {source}")
    prompts = []
    for position, prompt in enumerate(values["prompt"]):
        where = f"templates {source}, prompt {position}"
        _check_keys(prompt, required={"name", "text"}, optional={"held_out"}, where=where)
        prompts.append(Template(name=prompt["name"], text=prompt["text"], held_out=prompt.get("held_out", False)))
    return TemplateSet(
        name=values["name"], fields=tuple(values["fields"]), answer=values["answer"], templates=tuple(prompts)
    )


def check_name(templates: TemplateSet, task: str, *, where: str) -> None:
    """Refuse wordings of another task."""
    if templates.name != task:
        raise InputError(f"{where}: expected the name {task!r}, found {templates.name!r}; is this the file of another?")


def check_same_fields(templates: TemplateSet, shipped: TemplateSet, *, where: str) -> None:
    """Refuse wordings of another task, or with fields that the task does not fill.

    Raises
    ------
    InputError
        Name, fields or the field of the answer are not those of the shipped templates.
    """
    check_name(templates, shipped.name, where=where)
    unknown = sorted(set(templates.fields) - set(shipped.fields))
    if unknown:
        raise InputError(f"{where} lists the fields {unknown}; {shipped.name} fills {list(shipped.fields)}")
    named, wanted = (Template(name="answer", text=t.answer).fields for t in (templates, shipped))
    if named != wanted:
        raise InputError(f"{where}: expected the field {sorted(wanted)} in the answer, found {sorted(named)}")


def _check_keys(values: Mapping[str, object], *, required: set[str], optional: set[str], where: str) -> None:
    missing, unknown = required - set(values), set(values) - required - optional
    if missing or unknown:
        raise InputError(
            f"{where}: expected the keys {sorted(required)}"
            + (f" and perhaps {sorted(optional)}" if optional else "")
            + f"; missing {sorted(missing)}, unknown {sorted(unknown)}"
        )


def _check_template(template: Template, templates: TemplateSet) -> None:
    where, text = f"template {template.name!r} of {templates.name}", template.text
    try:
        unknown = template.fields - set(templates.fields)
    except ValueError as error:
        raise InputError(f"{where} has a brace without its partner, or a format ({error}), found {text!r}") from error
    if unknown:
        raise InputError(f"{where} names the fields {sorted(unknown)}; known: {list(templates.fields)}")
    if not templates.style.is_ours:
        return
    if text != text.strip() or not text:
        raise InputError(f"{where} must be non-empty and neither start nor end in white space, found {text!r}")
    for name in sorted(template.fields):
        before, _, after = text.partition("{" + name + "}")
        if (name == GENES_FIELD or name.endswith(GENES_ENDING)) and (
            not before.endswith(" ") or (after and after[0] not in f"{TERMINATOR} \n")
        ):
            raise InputError(
                f"{where}: {{{name}}} must stand after a space and before a full stop, a space or a line break, "
                "so that every gene is tokenized as a word of its own"
            )
        if name.endswith(LINES_ENDING) and (
            (before and before[-1] != "\n") or (after and after[0] not in f"{TERMINATOR}\n")
        ):
            raise InputError(
                f"{where}: {{{name}}} must stand at the start of a line and before a full stop or a line break, "
                "because it is a line for each cell"
            )
