"""What is sent to the hub, and what is told where it cannot be: a stand-in for the hub's client."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, Response
from huggingface_hub.utils import filter_repo_objects

from cytoglot.errors import InputError
from cytoglot.training.release.publish import publish


class FakeApi:
    """Keeps what it is asked to do; raises what it is told to."""

    calls: list[tuple[str, dict[str, Any]]] = []
    error: Exception | None = None
    files: list[str] = []

    def create_repo(self, **options: Any) -> str:
        FakeApi.calls.append(("create_repo", options))
        if FakeApi.error is not None:
            raise FakeApi.error
        return f"https://hub/{options['repo_id']}"

    def upload_folder(self, **options: Any) -> None:
        FakeApi.calls.append(("upload_folder", options))
        folder = Path(options["folder_path"])
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        FakeApi.files = sorted(filter_repo_objects(names, ignore_patterns=options["ignore_patterns"]))


@pytest.fixture(autouse=True)
def fake_api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    FakeApi.calls, FakeApi.error, FakeApi.files = [], None, []
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return FakeApi


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    (tmp_path / "model" / "README.md").unlink()
    return tmp_path / "model"


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_is_uploaded_whole(folder: Path, fake_api: type[FakeApi], private: bool) -> None:
    (folder / ".model.1234.partial.safetensors").touch()
    (folder / "optimizer.pt").touch()
    assert publish(folder, "me/cells", private=private) == "https://hub/me/cells"
    (made, made_with), (sent, sent_with) = fake_api.calls
    assert (made, sent) == ("create_repo", "upload_folder")
    assert made_with == {"repo_id": "me/cells", "private": private, "repo_type": "model", "exist_ok": True}
    assert sent_with["repo_id"] == "me/cells"
    assert {"README.md", "cytoglot.json", "model.safetensors", "tokenizer.json", "split.json"} <= set(fake_api.files)
    assert not fnmatch.filter(fake_api.files, "*partial*")
    assert "optimizer.pt" not in fake_api.files


def test_a_card_that_is_there_is_kept(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    publish(folder, "me/cells")
    assert (folder / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["cells", "me/cells/more", "me/", "/cells", "me/a b", "../cells"])
def test_a_name_without_an_owner_is_refused(folder: Path, fake_api: type[FakeApi], name: str) -> None:
    with pytest.raises(InputError, match="is named owner/name, found"):
        publish(folder, name)
    assert fake_api.calls == []


def test_an_unfinished_or_foreign_folder_is_not_published(
    folder: Path, fake_api: type[FakeApi], tmp_path: Path
) -> None:
    (folder / ".work").mkdir()
    with pytest.raises(InputError, match="holds an unfinished run; finish it"):
        publish(folder, "me/cells")
    with pytest.raises(InputError, match=r"holds no cytoglot\.json"):
        publish(tmp_path, "me/cells")
    assert fake_api.calls == []


# The client of the hub brings its own HTTP library, whose name has changed before.
Request = __import__(HTTPError.__module__.partition(".")[0]).Request


def _refusal(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("you may not", response=Response(status, request=Request("POST", "https://hub/api")))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalTokenNotFoundError("Token is required"), r"set HF_TOKEN to a token that may write there"),
        (_refusal(403), r"hf auth login.*HfHubHTTPError: you may not"),
        (_refusal(500), r"check the name and the network"),
        (HTTPError("no route to host"), r"check the name and the network.*no route to host"),
    ],
)
def test_a_hub_that_refuses_is_told_in_one_line(
    folder: Path, fake_api: type[FakeApi], error: Exception, message: str
) -> None:
    fake_api.error = error
    with pytest.raises(InputError, match=message) as caught:
        publish(folder, "me/cells")
    assert "\n" not in str(caught.value)


def test_the_real_client_does_not_go_around_offline_mode(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE must not be set.*offline mode is enabled"):
        publish(folder, "me/cells")


def test_a_fault_of_ours_is_not_called_one_of_the_hub(folder: Path, fake_api: type[FakeApi]) -> None:
    fake_api.error = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        publish(folder, "me/cells")
