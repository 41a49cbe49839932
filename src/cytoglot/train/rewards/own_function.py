"""A reward of the user's own: `package.module:function` in a recipe."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cytoglot.errors import InputError, nearest_names

Function = Callable[..., list[float | None]]


def load_function(path: str, settings: Mapping[str, Any]) -> Function:
    """Import a function by `package.module:function` and bind `settings` as further arguments.

    It is called as `function(completions, **columns)`: `prompts`, `task`, `answer`, `cell_type`, `num_genes` and `key`,
    a list each, besides whatever TRL passes. Naming a function in a recipe runs its module's code.

    Raises
    ------
    InputError
        The path has another form, the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = path.partition(":")
    if not module_name or not function_name:
        raise InputError(f"a reward of your own is named package.module:function, found {path!r}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"reward {path!r}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}); install it "
            "or put its folder on PYTHONPATH"
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        hint = nearest_names(function_name, public)
        raise InputError(f"reward {path!r}: module {module_name!r} has no {function_name!r}; {hint}")
    if not callable(function):
        raise InputError(f"reward {path!r} must name a function, found {type(function).__name__}")
    return partial(function, **settings) if settings else function
