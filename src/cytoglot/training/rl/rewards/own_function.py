"""A reward of the user's own: `package.module:name` of a function or of a class of rewards in a recipe."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from cytoglot.errors import InputError, nearest_names


def load_own(path: str) -> Callable[..., Any]:
    """Import what `package.module:name` names; naming it in a recipe runs its module's code.

    Raises
    ------
    InputError
        The path has another form, the module cannot be imported, or has no such function or class.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise InputError(f"a reward of your own is named package.module:function, found {path!r}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"reward {path!r}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}); install it "
            "or put its folder on PYTHONPATH"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        public = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise InputError(f"reward {path!r}: module {module_name!r} has no {name!r}; {nearest_names(name, public)}")
    if not callable(found):
        raise InputError(f"reward {path!r} must name a function or a class of rewards, found {type(found).__name__}")
    return found
