"""What is asked of methods, each protocol one file: `base` first, then `annotation`, which most others build on."""

from cytoglot.benchmark.protocols.base import PROTOCOLS, Maker, Outcome, Protocol

__all__ = ["PROTOCOLS", "Maker", "Outcome", "Protocol"]
