"""Change the weights. The package can be called: `cg.train(…)` is `cytoglot.train.run.train(…)`.

It is the verb and the package at once because both have the name; whichever is imported first, either use works.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cytoglot.cell_model.load import CellModel


class _Train(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> CellModel:
        """Train as a recipe says; see `cytoglot.train.run.train`."""
        from cytoglot.train.run import train

        return train(*arguments, **options)


sys.modules[__name__].__class__ = _Train
