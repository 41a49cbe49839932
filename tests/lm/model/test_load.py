from __future__ import annotations

import copy
import json
import logging
import os
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as library_logging

from cytoglot.errors import InputError, ResourceError
from cytoglot.lm.model.language_model import LanguageModel, choose_device, set_threads
from cytoglot.lm.model.load import load_model
from cytoglot.lm.scoring.score import score_answers


@pytest.fixture
def folder(scratch_lm, tmp_path):
    scratch_lm.save(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_comes_back_with_the_same_scores(scratch_lm, folder, prompts, labels, caplog):
    with caplog.at_level(logging.INFO, logger="cytoglot"):
        loaded = load_model(folder, device="cpu")
    torch.testing.assert_close(
        torch.from_numpy(score_answers(loaded, prompts, labels)),
        torch.from_numpy(score_answers(scratch_lm, prompts, labels)),
    )
    assert not loaded.model.training
    assert (loaded.device.type, loaded.context_length, loaded.n_vocabulary) == ("cpu", 256, len(loaded.tokenizer))
    assert "parameters, torch.float32 on cpu" in caplog.text


def test_the_folder_loads_with_plain_transformers(scratch_lm, folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Genes: ACTB B2M. Type:", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, scratch_lm.model(ids).logits)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]  # nothing half-written beside it


def test_a_missing_pad_token_becomes_the_end_of_text(hub_like_lm, tmp_path):
    assert hub_like_lm.tokenizer.pad_token_id is None
    hub_like_lm.save(tmp_path / "neox")
    loaded = load_model(tmp_path / "neox", device="cpu")
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id == loaded.pad_id


def test_dtypes_are_as_asked_and_float32_on_a_cpu_by_default(scratch_lm, tmp_path):
    half = LanguageModel(model=copy.deepcopy(scratch_lm.model).bfloat16(), tokenizer=scratch_lm.tokenizer)
    half.save(tmp_path / "half")
    assert load_model(tmp_path / "half", device="cpu").model.dtype == torch.float32
    assert load_model(tmp_path / "half", device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(InputError, match="dtype must be auto, float32, bfloat16, float16, found 'int8'"):
        load_model(tmp_path / "half", dtype="int8")


def test_loading_and_saving_draw_no_bars_without_a_terminal(scratch_lm, tmp_path, capfd):
    scratch_lm.save(tmp_path / "m")
    load_model(tmp_path / "m")
    assert capfd.readouterr() == ("", "")
    assert library_logging.is_progress_bar_enabled()


def test_inference_restores_the_mode_even_after_an_error(scratch_lm):
    scratch_lm.model.train()
    try:
        with pytest.raises(ZeroDivisionError), scratch_lm.inference():  # noqa: PT012
            assert not scratch_lm.model.training
            assert torch.is_inference_mode_enabled()
            1 / 0
        assert scratch_lm.model.training
    finally:
        scratch_lm.model.eval()


def test_missing_and_foreign_folders_are_refused_with_what_was_found(tmp_path):
    with pytest.raises(InputError, match=r"model folder .*/nothing does not exist"):
        load_model(tmp_path / "nothing")
    with pytest.raises(InputError, match="does not exist; pass a folder"):
        load_model("./no such folder")
    with pytest.raises(InputError, match=r"no config\.json there, found nothing"):
        load_model(tmp_path)
    (tmp_path / "cells.h5ad").touch()
    with pytest.raises(InputError, match=r"is not a model folder: no config.json there, found cells\.h5ad"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="is a file; pass the folder"):
        load_model(tmp_path / "cells.h5ad")


def test_a_hub_that_cannot_be_reached_is_told_from_a_missing_folder():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(InputError, match="no folder 'nobody/no-such-model' here, and the Hugging Face hub could not"):
        load_model("nobody/no-such-model")


def test_weights_that_can_run_code_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds no safetensors weights, found .*pytorch_model\.bin"):
        load_model(folder)


def test_truncated_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    for size in (weights.stat().st_size // 2, 4, 0):
        with weights.open("r+b") as handle:
            handle.truncate(size)
        with pytest.raises(ResourceError, match=r"the model in .* cannot be loaded"):
            load_model(folder)


def test_a_folder_without_tokenizer_is_refused(folder):
    # transformers 5 makes an empty tokenizer there, and every text becomes nothing
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"holds no tokenizer, found .*call tokenizer\.save_pretrained"):
        load_model(folder)


def test_a_tokenizer_of_another_model_is_refused(scratch_lm, folder, tmp_path):
    bigger = AutoTokenizer.from_pretrained(folder)
    bigger.add_tokens(["TP53", "EGFR"])
    bigger.save_pretrained(folder)
    with pytest.raises(InputError, match="has 337 tokens but the model only 335 rows"):
        load_model(folder)


def test_missing_weights_are_not_made_up(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 tensors would be random, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(folder)


def test_a_configuration_that_is_damaged_or_of_no_causal_model_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-model"}))
    with pytest.raises(InputError, match=r"cannot be loaded: .*no-such-model"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(folder)


def test_code_in_a_model_folder_is_not_run(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="trust_remote_code"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_each_process_of_a_launcher_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:3")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(InputError, match="'cuda:4' is not available here, found 4"):
        choose_device("auto")


def test_devices_are_checked():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(InputError, match="device must be auto, cpu, cuda, cuda:N or mps, found 'gpu'"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device 'cuda:3' is not available here"):
            choose_device("cuda:3")


def test_threads_are_set_and_reported():
    before = torch.get_num_threads()
    try:
        assert set_threads(2) == 2
        assert set_threads(None) == torch.get_num_threads() == 2
    finally:
        set_threads(before)
    with pytest.raises(InputError, match="at least 1, found 0"):
        set_threads(0)


def test_a_saved_model_replaces_the_old_one_whole(scratch_lm, folder):
    shutil.copy(folder / "config.json", folder / "left-over.json")
    scratch_lm.save(folder)
    assert not (folder / "left-over.json").exists()
