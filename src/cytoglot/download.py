"""Fetch a public file once: into the cache folder, checked against its checksum, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cytoglot.atomic import atomic_path
from cytoglot.errors import InputError
from cytoglot.progress import progress_bar

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 60.0


def cache_folder() -> Path:
    """Return where downloads are kept: `CYTOGLOT_CACHE`, else `cytoglot` in the user's cache folder."""
    if chosen := os.environ.get("CYTOGLOT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cytoglot"


def fetch(url: str, *, checksum: str, target: Path) -> Path:
    """Return `target`, downloaded from `url` unless it is there already with the right checksum.

    A file at `target` with another checksum is replaced. Nothing half-written ever has the target's name.

    Parameters
    ----------
    url
        Any scheme that urllib knows: https, ftp, file.
    checksum
        "sha256:" or "md5:" and the hex digest of the file.
    target
        Where to put it; the folders are made.

    Raises
    ------
    InputError
        The address cannot be read (the message says where to put the file by hand), or what came has another checksum.
    """
    if target.is_file():
        with target.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: _new_digest(checksum))
        if f"{digest.name}:{digest.hexdigest()}" == checksum:
            return target
        logger.warning("%s does not have the checksum %s and is downloaded again", target, checksum)
    with atomic_path(target) as partial:
        digest, received = _new_digest(checksum), 0
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer, partial.open("wb") as file:
                total = int(answer.headers.get("Content-Length") or 0)
                with progress_bar(total=total or None, description=target.name, unit="B") as bar:
                    while block := answer.read(_BLOCK):
                        file.write(block)
                        digest.update(block)
                        received += len(block)
                        bar.update(len(block))
            if received < total:
                raise ConnectionError(f"the connection ended after {received:,} of {total:,} bytes")
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(error, urllib.error.HTTPError):  # an answer such as 404, still open
                reason = str(error)
                error.close()
            raise InputError(
                f"could not download {url}: {reason}; check the network, or fetch it by other means and put it at "
                f"{target}"
            ) from error
        found = f"{digest.name}:{digest.hexdigest()}"
        if found != checksum:
            raise InputError(
                f"{url} must have the checksum {checksum}, found {found}, so the file was deleted: it was changed at "
                "its source or on the way; try again, and report it if it stays so"
            )
    logger.info("downloaded %s to %s (%d bytes)", url, target, target.stat().st_size)
    return target


def unpack(archive: Path, folder: Path) -> Path:
    """Return `folder`, filled with the content of a tar archive unless it is there already.

    Raises
    ------
    InputError
        The file is no tar archive, or a member points outside of the folder.
    """
    if folder.is_dir():
        return folder
    try:
        with atomic_path(folder) as partial, tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
    except tarfile.TarError as error:
        raise InputError(f"{archive} cannot be unpacked: {error}; delete it, so that it is downloaded again") from error
    return folder


def _new_digest(checksum: str) -> Any:
    algorithm = checksum.partition(":")[0]
    if algorithm not in ("sha256", "md5"):
        raise ValueError(f"a checksum must begin with 'sha256:' or 'md5:', found {checksum!r}")
    return hashlib.new(algorithm, usedforsecurity=False)
