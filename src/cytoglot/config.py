"""Strict recipes: frozen pydantic models ⇄ YAML, with `a.b=value` overrides. Unknown keys are errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cytoglot.errors import InputError, nearest_names
from cytoglot.texts import read_text


class _Loader(yaml.SafeLoader):
    """YAML as version 1.2 reads it: `on`, `off`, `yes` and `no` are words, of which pydantic makes booleans itself."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - of the base class
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")


class Settings(BaseModel):
    """Base of everything that a recipe can name."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def recipes() -> dict[str, Path]:
    """Return name → file of the recipes: those packaged in a wheel, else those of the repository."""
    home = Path(__file__).parent
    folder = home / "recipes" if (home / "recipes").is_dir() else home.parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


S = TypeVar("S", bound=Settings)
Overrides = Mapping[str, Any] | str | Iterable[str]


def load_recipe(model: type[S], recipe: S | str | Path | None = None, overrides: Overrides = ()) -> S:
    """Read a YAML recipe into `model`, then apply overrides.

    Parameters
    ----------
    recipe
        A YAML file, a recipe that was read already, or None for the defaults.
    overrides
        Texts `a.b=value`, a list of them or one on each line, with values as in YAML; or a mapping from such names to
        values, in which a group of settings may be a mapping too: {"a": {"b": value}} leaves other settings of `a`.

    Raises
    ------
    InputError
        The file is missing or not a YAML mapping, an override has no `=`, a key is unknown (the nearest known key is
        named) or a value does not fit its field.
    """
    if isinstance(recipe, model) and not overrides:
        return recipe
    values: dict[str, Any] = {}
    path = None if isinstance(recipe, Settings) else recipe
    if isinstance(recipe, Settings):
        values = recipe.model_dump(exclude_unset=True)
    elif path is not None:
        values = read_yaml(path, what="recipe")
    if isinstance(overrides, Mapping):
        _set_all(model, values, overrides)
    else:
        for override in overrides.splitlines() if isinstance(overrides, str) else overrides:
            key, separator, text = override.partition("=")
            if not separator or not key:
                raise InputError(f"override {override!r} must look like a.b=value")
            try:
                _set(values, key.strip(), yaml.load(text, _Loader))
            except yaml.YAMLError as error:
                raise InputError(f"override {override!r} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(model, error, path)) from error


def read_yaml(path: str | Path, *, what: str) -> dict[Any, Any]:
    """Return the mapping that a YAML file holds, empty for an empty file; `what` it is stands in messages.

    Raises
    ------
    InputError
        The file is missing, no YAML or holds no mapping.
    """
    if not Path(path).is_file():
        raise InputError(f"{what} {path} does not exist; pass the path of a YAML file")
    try:
        found = yaml.load(read_text(path), _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{what} {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, (dict, type(None))):
        raise InputError(f"{what} {path} must hold a mapping, found {type(found).__name__}")
    return found or {}


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:  # a recipe may switch a group off that an override sets
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise InputError(f"override of {key!r} goes into {parent!r}, which is a value and not a group of settings")
    values[last] = value


def _set_all(model: type[BaseModel], values: dict[str, Any], given: Mapping[str, Any], group: str = "") -> None:
    for name, value in given.items():
        key = f"{group}{name}"
        # A mapping of tasks or rewards is a value and replaces the old one, as it does in a text.
        if isinstance(value, Mapping) and value and _known_keys(model, tuple(key.split("."))):
            _set_all(model, values, value, f"{key}.")
        else:
            _set(values, key, value)


def _explain(model: type[BaseModel], error: ValidationError, path: str | Path | None) -> str:
    where = f"recipe {path}" if path is not None else "settings"
    parts = []
    for fault in error.errors():
        name = ".".join(str(p) for p in fault["loc"])
        if fault["type"] == "extra_forbidden":
            parts.append(
                f"unknown key {name!r}, {nearest_names(str(fault['loc'][-1]), _known_keys(model, fault['loc'][:-1]))}"
            )
        elif fault["type"] == "value_error":  # raised by a validator of ours, which says itself what was found
            message = fault["msg"].removeprefix("Value error, ")
            parts.append(f"{name}: {message}" if name else message)
        else:
            parts.append(f"{name}: {fault['msg']}, found {fault['input']!r}")
    return f"{where}: " + "; ".join(parts)


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the fields of the model that a location leads to, through lists, mappings and optional models."""
    annotations: list[Any] = [model]
    for step in location:
        inside: list[Any] = []  # types of what lies under the key or position
        for member in (member for annotation in annotations for member in _members(annotation)):
            if _is_model(member):
                field = member.model_fields.get(str(step))
                inside += [] if field is None else [field.annotation]
            elif (arguments := get_args(member)) and get_origin(member) is not Literal:
                inside.append(next(a for a in reversed(arguments) if a is not Ellipsis))
        # pydantic names the member of a union in the location; such a step leads nowhere and is skipped
        annotations = inside or annotations
    models = [m for a in annotations for m in _members(a) if _is_model(m)]
    return list(dict.fromkeys(name for m in models for name in m.model_fields))


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [member for argument in get_args(annotation) for member in _members(argument)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
