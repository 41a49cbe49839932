"""Whether the hub can be reached is found out once and quickly, not once for each file of a model."""

from __future__ import annotations

import socket
import time

import huggingface_hub
import pytest

from cytoglot.errors import InputError
from cytoglot.lm.model import sources
from cytoglot.lm.model.load import load_model
from cytoglot.lm.model.sources import look_for_hub

_CONSTANTS = huggingface_hub.constants


@pytest.fixture
def closed_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub at a port of this machine where nobody listens, for a client that was not told to be offline."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(_CONSTANTS, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(_CONSTANTS, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources, "_hub", {"is_unreachable": False})
    monkeypatch.setattr(sources, "getproxies", dict)


def test_a_hub_that_is_there_again_is_used_again(closed_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not look_for_hub()
    assert _CONSTANTS.HF_HUB_OFFLINE
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        monkeypatch.setattr(_CONSTANTS, "ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        assert look_for_hub()
    assert not _CONSTANTS.HF_HUB_OFFLINE


def test_what_a_user_said_of_being_offline_stays(closed_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_CONSTANTS, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("nothing is to be looked for"))
    assert not look_for_hub()
    assert not sources._hub["is_unreachable"]


def test_behind_a_proxy_nothing_is_looked_for(closed_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "getproxies", lambda: {"http": "http://proxy:3128"})
    assert look_for_hub()
    assert not _CONSTANTS.HF_HUB_OFFLINE


def test_an_unknown_model_without_network_is_refused_without_waiting(
    closed_hub: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(InputError, match="no folder 'nobody/no-such-model' here, and the Hugging Face hub could not"):
        load_model("nobody/no-such-model")
    assert sum(waited) == 0, "the client of the hub sleeps between its tries"
    assert "cannot be reached: only models in the cache can be loaded" in caplog.text
