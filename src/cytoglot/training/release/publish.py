"""A finished model folder onto the Hugging Face Hub. The token is the environment's; none is read or stored here."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from cytoglot.cell_model.spec import CellModelSpec
from cytoglot.errors import InputError
from cytoglot.extras import require
from cytoglot.training.release.model_card import CARD, write_model_card

logger = logging.getLogger(__name__)

_LEFT_OUT = (".work/**", ".work", "*.partial*", ".*.old/**", "*.bin", "*.pt", "*.pth", "*.pkl")
"""checkpoints of an unfinished run, half-written files, and formats that can run code"""


def publish(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Upload a finished model folder to the hub and return the address of its page.

    The repository is made if it is not there; one that is there keeps its visibility and gets a new commit, in which
    files that the folder no longer has are left as they are. A folder without a card gets one first. Nothing is
    uploaded of `.work`, nor anything that could run code when it is loaded.

    Parameters
    ----------
    repository
        owner/name.
    private
        Visible to its owner alone, if the repository is made now.

    Raises
    ------
    InputError
        The folder holds no finished model, the name is not owner/name, there is no token that may write there, or the
        hub cannot be reached.
    """
    folder = Path(folder)
    check_repository(repository)
    CellModelSpec.load(folder)
    if (folder / ".work").is_dir():
        raise InputError(
            f"{folder} holds an unfinished run; finish it with the same `cytoglot train` before publishing"
        )
    if not (folder / CARD).is_file():
        write_model_card(folder)
    hub = require("huggingface_hub", extra="lm", purpose="publishing a model")
    api = hub.HfApi()
    try:
        page = api.create_repo(repo_id=repository, private=private, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type="model",
            commit_message="cytoglot: upload model",
            ignore_patterns=list(_LEFT_OUT),
        )
    except (OSError, ValueError, hub.errors.HTTPError) as error:  # of the network, the name, the HTTP client
        reason = " ".join(str(error).split())[:300]
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in {401, 403} or "token" in reason.lower():
            advice = "log in with `hf auth login` or set HF_TOKEN to a token that may write there"
        else:
            advice = "check the name and the network (HF_HUB_OFFLINE must not be set)"
        raise InputError(
            f"{repository} cannot be published on the Hugging Face Hub; {advice}: {type(error).__name__}: {reason}"
        ) from error
    logger.info("published %s as %s", folder, page)
    return str(page)


def check_repository(repository: str) -> None:
    """Refuse what is not owner/name; an InputError."""
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository) is None:
        raise InputError(f"a repository on the hub is named owner/name, found {repository!r}")
