"""Plots: AnnData or results in, matplotlib Axes out. Public as `cytoglot.pl`.

Every function takes `ax`, `show`, `save` and `return_fig`, as those of scanpy do, and changes nothing that it is given.
"""

from cytoglot.pl.cells import embedding, generated, rank_curve, sentence
from cytoglot.pl.results import calibration, confusion

__all__ = ["calibration", "confusion", "embedding", "generated", "rank_curve", "sentence"]
