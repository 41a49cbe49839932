"""`CausalLm`, the name that `LanguageModel` with its methods had; it goes with the next release."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from cytoglot.lm.model.language_model import LanguageModel


def CausalLm(*, lm: LanguageModel, **sampling: Any) -> LanguageModel:  # noqa: N802 - it was a class
    """Return `lm` with other `temperature`, `top_p`, `terminator` or `batch_size`."""
    warnings.warn("CausalLm is LanguageModel now, which has its methods", FutureWarning, stacklevel=2)
    return replace(lm, **sampling)
