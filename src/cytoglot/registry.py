"""Name → immutable entry, loaded on first use; an unknown name is answered with the nearest known ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from cytoglot.errors import UnknownNameError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Entries that a recipe or the command line can name.

    Parameters
    ----------
    kind
        What an entry is, for error messages ("task", "metric").
    modules
        Modules whose import registers the built-in entries; imported at the first look-up.
    """

    def __init__(self, kind: str, modules: tuple[str, ...] = ()) -> None:
        self._kind = kind
        self._modules = modules
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files an object under `name`; a name can be taken once."""

        def file(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self._kind} {name!r} is registered already")
            self._entries[name] = entry
            return entry

        return file

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self._entries:
            raise UnknownNameError(self._kind, name, self._entries)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._entries)

    def __len__(self) -> int:
        self._load()
        return len(self._entries)

    def _load(self) -> None:
        modules, self._modules = self._modules, ()
        for module in modules:
            importlib.import_module(module)
