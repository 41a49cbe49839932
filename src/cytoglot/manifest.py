"""What made this file: command, config, code version, seeds and fingerprints of the inputs."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "cytoglot",
    "anndata",
    "numba",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "scanpy",
    "scikit-learn",
    "scipy",
    "torch",
    "transformers",
    "trl",
)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record that travels with every output. All values are plain JSON."""

    command: str
    config: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    """name of an input → its fingerprint"""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    versions: Mapping[str, str] = field(default_factory=lambda: package_versions())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Manifest:
        """Read what `to_dict` wrote."""
        return cls(**value)


def package_versions(names: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def fingerprint_bytes(parts: Iterable[bytes]) -> str:
    """Return the first 16 hex digits of the SHA-256 of the parts, each preceded by its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]


def fingerprint_texts(texts: Iterable[str]) -> str:
    """Fingerprint an ordered list of texts."""
    return fingerprint_bytes(text.encode() for text in texts)


def fingerprint_file(path: str | Path) -> str:
    """Fingerprint the content of a file, or of every file of a folder with their relative names."""
    path = Path(path)
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(str(file.relative_to(path)).encode() if path.is_dir() else b"")
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def fingerprint_of(path: Path, *, n_blocks: int = 64, block_bytes: int = 1 << 16) -> str:
    """Fingerprint a file of any size by its size and up to `n_blocks` evenly spaced blocks; a folder by every file's.

    Reads 4 MB at most of a file, where the fingerprint of all of its bytes would take longer than the encoding.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if len(files) > n_blocks:  # zarr has a file for each chunk
        described = (f"{f.relative_to(path)} {f.stat().st_size} {f.stat().st_mtime_ns}".encode() for f in files)
        return fingerprint_bytes(described)
    return fingerprint_bytes(block for file in files for block in _blocks(file, n_blocks, block_bytes))


def _blocks(file: Path, n_blocks: int, block_bytes: int) -> Iterator[bytes]:
    size = file.stat().st_size
    yield f"{file.name if size == 0 else size}".encode()
    with file.open("rb") as handle:
        for number in range(n_blocks):
            handle.seek(max(size - block_bytes, 0) * number // max(n_blocks - 1, 1))
            yield handle.read(block_bytes)
