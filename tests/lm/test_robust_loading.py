"""Folders and repositories as they come: half-safe, sharded, padded, tied, adapted, pinned, from elsewhere."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    FalconMambaConfig,
    Gemma2Config,
    GPTNeoXConfig,
    PreTrainedTokenizerBase,
)

from cytoglot.answer_format import DistinctWords, FreeText, OneOf
from cytoglot.errors import InputError
from cytoglot.lm.embedding.embed import embed_texts
from cytoglot.lm.generation.generate import generate_answers
from cytoglot.lm.model import load as load_module
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.load import load_model, read_configuration
from cytoglot.lm.model.lora import add_lora, merge_lora, save_adapter
from cytoglot.lm.model.sources import commit_of
from cytoglot.lm.scoring.score import score_answers, score_answers_naive

Families = Callable[[str, PreTrainedTokenizerBase], LanguageModel]


@pytest.fixture
def folder(scratch_lm: LanguageModel, tmp_path: Path) -> Path:
    scratch_lm.save(tmp_path / "model")
    return tmp_path / "model"


def _scores(lm: LanguageModel, prompts: tuple[str, ...], labels: tuple[str, ...]) -> np.ndarray:
    return score_answers(lm, prompts, labels)


# Formats that can run code


class _Bomb:
    """Unpickling it writes a file, which shows that it was unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def _pickle(path: Path, fuse: Path) -> None:
    torch.save({"weight": _Bomb(fuse)}, path)


def test_the_bomb_of_these_tests_does_go_off(tmp_path: Path) -> None:
    _pickle(tmp_path / "m.bin", tmp_path / "went_off")
    torch.load(tmp_path / "m.bin", weights_only=False)
    assert (tmp_path / "went_off").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "m.bin", weights_only=True)


def test_pickled_weights_are_refused_and_never_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    _pickle(folder / "pytorch_model.bin", tmp_path / "went_off")
    with pytest.raises(InputError, match=r"holds no safetensors weights, found .*pytorch_model\.bin"):
        load_model(folder)
    assert not (tmp_path / "went_off").exists()


def test_pickled_weights_beside_safe_ones_are_left_alone(folder: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        _pickle(folder / name, tmp_path / "went_off")
    load_model(folder, device="cpu")
    assert not (tmp_path / "went_off").exists()


def test_an_index_that_names_pickled_shards_is_refused(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    _pickle(folder / "shard.bin", tmp_path / "went_off")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "shard.bin")}
    for name in ("pytorch_model.bin.index.json", "model.safetensors.index.json"):
        (folder / name).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"names shard\.bin, which is not safetensors"):
        load_model(folder)
    assert not (tmp_path / "went_off").exists()
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match="is damaged"):
        load_model(folder)


def test_a_pickled_adapter_is_refused_and_never_opened(
    folder: Path, make_lm: Families, word_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    adapter = _adapter(folder, tmp_path / "adapter")[0]
    (adapter / "adapter_model.safetensors").unlink()
    _pickle(adapter / "adapter_model.bin", tmp_path / "went_off")
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors, found .*adapter_model\.bin"):
        load_model(adapter)
    assert not (tmp_path / "went_off").exists()


# Weights in several files, tied, in more rows than tokens


def test_sharded_weights_are_read_and_a_missing_shard_is_told(
    scratch_lm: LanguageModel, folder: Path, prompts: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    (folder / "model.safetensors").unlink()
    scratch_lm.model.save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    loaded = load_model(folder, device="cpu")
    np.testing.assert_allclose(_scores(loaded, prompts, labels), _scores(scratch_lm, prompts, labels), atol=1e-5)
    shards[1].unlink()
    with pytest.raises(InputError, match=rf"cannot be loaded: .*{shards[1].name}"):
        load_model(folder)


def test_tied_weights_are_saved_once_and_come_back_tied(
    make_lm: Families, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    lm = make_lm("gpt2", byte_tokenizer)
    lm.save(tmp_path / "m")
    assert "lm_head.weight" not in load_file(tmp_path / "m" / "model.safetensors")
    loaded = load_model(tmp_path / "m", device="cpu")
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    loaded.save(tmp_path / "again")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("m", "again"))
    assert first.keys() == second.keys()


def _grown(lm: LanguageModel, n_rows: int) -> LanguageModel:
    model = copy.deepcopy(lm.model)
    model.resize_token_embeddings(n_rows, mean_resizing=False)
    return LanguageModel(model=model, tokenizer=lm.tokenizer)


@pytest.mark.parametrize("family", ["neox", "gemma2", "gpt2"])
def test_ids_beyond_the_tokenizer_are_never_written(
    make_lm: Families, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, family: str
) -> None:
    """As in Pythia: 50,304 rows for 50,277 tokens. Here the surplus rows are what the model likes best."""
    lm = _grown(make_lm(family, byte_tokenizer), 384)
    n_tokens = len(byte_tokenizer)
    hidden: list[torch.Tensor] = []
    lm.model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    with torch.no_grad():
        lm.model(torch.tensor([byte_tokenizer("Cell?")["input_ids"]]))
        direction = hidden[0][0, -1]
        lm.model.get_output_embeddings().weight[n_tokens:] = 50 * direction / direction.norm() ** 2
    lm.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m", device="cpu")
    assert loaded.n_vocabulary == 384
    with torch.no_grad():
        logits = loaded.model(torch.tensor([byte_tokenizer("Cell?")["input_ids"]])).logits[0, -1]
    assert int(logits.argmax()) >= n_tokens  # so an unmasked choice would be wrong
    free, listed, one = (
        generate_answers(loaded, ["Cell?"] * 4, form, seed=1, n_samples=2)
        for form in (
            FreeText(max_tokens=12),
            DistinctWords(words=("ACTB", "B2M", "CD3D"), min_words=2, max_words=2),
            OneOf(options=("B cell", "NK cell")),
        )
    )
    assert len(free) == 4  # decoding an id beyond the tokenizer would fail or give nothing
    assert all(len(set(text.split())) == 2 for texts in listed for text in texts)
    assert {text for texts in one for text in texts} <= {"B cell", "NK cell"}


# Tokenizers


@pytest.mark.parametrize("family", ["neox", "gpt2", "bloom"])
def test_the_side_on_which_a_tokenizer_pads_changes_nothing(
    make_lm: Families,
    byte_tokenizer: PreTrainedTokenizerBase,
    prompts: tuple[str, ...],
    labels: tuple[str, ...],
    tmp_path: Path,
    family: str,
) -> None:
    """Some checkpoints ask for left padding, some for right: a batch must be what its rows are alone either way."""
    found = []
    for side in ("left", "right"):
        make_lm(family, byte_tokenizer).save(tmp_path / side)
        config = json.loads((tmp_path / side / "tokenizer_config.json").read_text())
        (tmp_path / side / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": side}))
        lm = load_model(tmp_path / side, device="cpu")
        assert lm.tokenizer.padding_side == side
        alone = [generate_answers(lm, [p], FreeText(max_tokens=8), seed=0, keys=[p])[0] for p in prompts]
        together = generate_answers(lm, prompts, FreeText(max_tokens=8), seed=0, keys=list(prompts))
        assert together == alone
        found.append((together, _scores(lm, prompts, labels), embed_texts(lm, prompts)))
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)
    np.testing.assert_allclose(found[0][2], found[1][2], atol=1e-5)


def test_added_tokens_need_their_rows(folder: Path, prompts: tuple[str, ...], labels: tuple[str, ...]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["TP53", "EGFR"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"only 335 rows; .*call model\.resize_token_embeddings"):
        load_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    loaded = load_model(folder, device="cpu")
    assert loaded.n_vocabulary == len(loaded.tokenizer) == 337
    np.testing.assert_allclose(
        _scores(loaded, prompts, labels), score_answers_naive(loaded, prompts, labels), atol=1e-4
    )


def test_a_token_whose_id_has_no_row_is_refused(folder: Path) -> None:
    """As many tokens as rows, but their ids are not without gaps."""
    backend = json.loads((folder / "tokenizer.json").read_text())
    backend["model"]["vocab"]["ĠACTB"] = 400
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    with pytest.raises(InputError, match="has 401 tokens but the model only 335 rows"):
        load_model(folder)


def test_a_model_without_a_context_length_is_used_without_a_limit(
    byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = FalconMambaConfig(
        vocab_size=len(byte_tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4, eos_token_id=0
    )
    torch.manual_seed(0)
    LanguageModel(model=AutoModelForCausalLM.from_config(config), tokenizer=byte_tokenizer).save(tmp_path / "m")
    lm = load_model(tmp_path / "m", device="cpu")
    assert lm.context_length is None
    answers = generate_answers(lm, ["Cell?"], DistinctWords(words=("ACTB", "B2M"), min_words=2, max_words=2), seed=0)
    assert sorted(answers[0][0].split()) == ["ACTB", "B2M"]
    assert _scores(lm, ("Cell?",), (" B cell.", " NK cell.")).shape == (1, 2)


# Released checkpoints of cell models, as tiny copies


def test_a_copy_of_a_pythia_checkpoint(
    byte_tokenizer: PreTrainedTokenizerBase, prompts: tuple[str, ...], labels: tuple[str, ...], tmp_path: Path
) -> None:
    """No opening token, no pad token, half precision, partial rotary positions, more rows than tokens."""
    config = GPTNeoXConfig(
        vocab_size=384,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.25},
        use_parallel_residual=True,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    LanguageModel(model=AutoModelForCausalLM.from_config(config).half(), tokenizer=byte_tokenizer).save(tmp_path / "m")
    lm = load_model(tmp_path / "m", device="cpu")
    assert lm.model.dtype == torch.float32
    assert lm.pad_id == lm.tokenizer.eos_token_id == 0
    assert byte_tokenizer("a")["input_ids"] == byte_tokenizer("a", add_special_tokens=False)["input_ids"]
    np.testing.assert_allclose(_scores(lm, prompts, labels), score_answers_naive(lm, prompts, labels), atol=1e-4)


def test_a_copy_of_a_gemma_2_checkpoint(
    word_tokenizer: PreTrainedTokenizerBase, prompts: tuple[str, ...], labels: tuple[str, ...], tmp_path: Path
) -> None:
    """An opening token, capped attention and output logits, alternating windows, tied vectors, bfloat16."""
    config = Gemma2Config(
        vocab_size=len(word_tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=256,
        sliding_window=128,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
        bos_token_id=word_tokenizer.bos_token_id,
        eos_token_id=word_tokenizer.eos_token_id,
        pad_token_id=word_tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    LanguageModel(model=copy.deepcopy(model).bfloat16(), tokenizer=word_tokenizer).save(tmp_path / "m")
    lm = load_model(tmp_path / "m", device="cpu")
    assert lm.tokenizer("ACTB")["input_ids"][0] == word_tokenizer.bos_token_id
    assert lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight
    naive = score_answers_naive(lm, prompts, labels)
    np.testing.assert_allclose(_scores(lm, prompts, labels), naive, atol=1e-4)
    lm.model.config.attn_logit_softcapping = None
    for layer in lm.model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert np.abs(score_answers_naive(lm, prompts, labels) - naive).max() > 1e-2  # so the cap was in force


# Adapters


def _adapter(base: Path, folder: Path, *, train_vectors: bool = False) -> tuple[Path, LanguageModel]:
    """Save an adapter of random weights on the base; return its folder and the merged model."""
    lm = add_lora(load_model(base, device="cpu"), rank=4, dropout=0.0, train_vectors=train_vectors, seed=0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for p in lm.model.parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn(p.shape, generator=generator)
    save_adapter(lm, folder)
    return folder, merge_lora(lm)


@pytest.mark.parametrize("train_vectors", [False, True])
def test_an_adapter_is_merged_into_the_base_it_names(
    folder: Path, tmp_path: Path, prompts: tuple[str, ...], labels: tuple[str, ...], train_vectors: bool
) -> None:
    adapter, expected = _adapter(folder, tmp_path / "adapter", train_vectors=train_vectors)
    loaded = load_model(adapter, device="cpu")
    assert not hasattr(loaded.model, "peft_config")
    assert loaded.source == str(adapter)
    scores = _scores(loaded, prompts, labels)
    np.testing.assert_allclose(scores, _scores(expected, prompts, labels), atol=1e-4)
    assert np.abs(scores - _scores(load_model(folder, device="cpu"), prompts, labels)).max() > 0.01
    loaded.save(tmp_path / "merged")
    again = load_model(tmp_path / "merged", device="cpu")
    np.testing.assert_allclose(_scores(again, prompts, labels), scores, atol=1e-5)


def test_the_configuration_of_an_adapter_is_that_of_its_base(folder: Path, tmp_path: Path) -> None:
    adapter, _ = _adapter(folder, tmp_path / "adapter")
    config, tokenizer = read_configuration(adapter)
    assert config.model_type == "llama"
    assert len(tokenizer) == 335


def test_a_base_that_is_gone_is_explained(folder: Path, tmp_path: Path) -> None:
    adapter, _ = _adapter(folder, tmp_path / "adapter")
    folder.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=rf"was trained on {folder}, which is not here; .*base_model_name_or_path"):
        load_model(adapter)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="the folder above holds the weights with this adapter merged in"):
        load_model(adapter)
    (tmp_path / "config.json").unlink()
    _change(adapter / "adapter_config.json", base_model_name_or_path="../moved")
    load_model(adapter, device="cpu")
    _change(adapter / "adapter_config.json", base_model_name_or_path="nobody/no-such-model")
    with pytest.raises(InputError, match="needs its base nobody/no-such-model: no folder 'nobody/no-such-model' here"):
        load_model(adapter)
    _change(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(InputError, match="names no base model"):
        load_model(adapter)


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_an_adapter_of_which_a_part_is_missing_is_refused(folder: Path, tmp_path: Path) -> None:
    adapter, _ = _adapter(folder, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"does not fit .*missing adapter keys"):
        load_model(adapter)


def test_an_adapter_of_another_model_is_refused(
    folder: Path, make_lm: Families, byte_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    adapter, _ = _adapter(folder, tmp_path / "adapter")
    make_lm("gpt2", byte_tokenizer).save(tmp_path / "other")
    _change(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"the adapter in .* does not fit .*other"):
        load_model(adapter)


def test_a_whole_model_and_an_adapter_in_one_folder_are_ambiguous(folder: Path, tmp_path: Path) -> None:
    adapter, _ = _adapter(folder, tmp_path / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, folder)
    with pytest.raises(InputError, match=r"both a whole model and an adapter .* move the adapter into a folder"):
        load_model(folder)


def test_tokens_that_came_with_an_adapter(folder: Path, tmp_path: Path) -> None:
    """An adapter whose vectors were trained with added tokens has a tokenizer and more rows than its base."""
    lm = load_model(folder, device="cpu")
    lm.tokenizer.add_tokens(["TP53"])
    lm.model.resize_token_embeddings(len(lm.tokenizer), mean_resizing=False)
    save_adapter(add_lora(lm, rank=2, dropout=0.0, train_vectors=True, seed=0), tmp_path / "adapter")
    lm.tokenizer.save_pretrained(tmp_path / "adapter")
    _change(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(folder))
    loaded = load_model(tmp_path / "adapter", device="cpu")
    assert len(loaded.tokenizer) == loaded.n_vocabulary == 336


# Code, precision, unfinished folders


def test_code_of_a_model_is_named_as_such(folder: Path, tmp_path: Path) -> None:
    _change(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match=r"brings Python code of its own, which is not run unless you pass trust_rem"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_the_code_of_a_tokenizer_is_not_run_either(folder: Path, tmp_path: Path) -> None:
    _change(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="which is not run unless you pass trust_remote_code"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_quantized_weights_need_a_gpu_and_their_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for quantize in ("8bit", "4bit"):
        with pytest.raises(InputError, match=rf"quantize={quantize} needs an NVIDIA GPU, found cpu"):
            load_model(folder, device="cpu", quantize=quantize)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="quantize must be none, 8bit or 4bit, found 'fp4'"):
        load_model(folder, device="cpu", quantize="fp4")  # type: ignore[arg-type]
    monkeypatch.setattr(load_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package bitsandbytes; run: pip install bitsandbytes"):
        load_module._quantization("4bit", torch.device("cuda"))


def test_what_is_asked_of_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module.importlib.util, "find_spec", lambda name: object())
    four = load_module._quantization("4bit", torch.device("cuda"))
    assert isinstance(four, BitsAndBytesConfig)
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == (True, "nf4", torch.bfloat16)
    eight = load_module._quantization("8bit", torch.device("cuda"))
    assert eight is not None
    assert eight.load_in_8bit
    assert load_module._quantization("none", torch.device("cpu")) is None


def test_an_unfinished_training_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / ".work" / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(InputError, match="its training was not finished: run the same `cytoglot train` again"):
        load_model(tmp_path)


# The hub, as its cache holds it


@pytest.fixture
def cache(scratch_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache with two commits of me/cells; main is the second. No network: HF_HUB_OFFLINE is set for all tests."""
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--me--cells"
    for number, commit in enumerate(("1" * 40, "2" * 40)):
        model = copy.deepcopy(scratch_lm.model)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1 + number)
        LanguageModel(model=model, tokenizer=scratch_lm.tokenizer).save(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("2" * 40)
    (repository / "refs" / "first").write_text("1" * 40)
    return tmp_path / "hub"


def test_the_commit_that_was_loaded_is_known(
    cache: Path, scratch_lm: LanguageModel, prompts: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    main = load_model("me/cells", device="cpu")
    assert (main.source, main.revision) == ("me/cells", "2" * 40)
    first = load_model("me/cells", device="cpu", revision="first")
    assert first.revision == "1" * 40
    np.testing.assert_allclose(_scores(first, prompts, labels), _scores(scratch_lm, prompts, labels), atol=1e-5)
    assert np.abs(_scores(main, prompts, labels) - _scores(first, prompts, labels)).max() > 0.01
    pinned = load_model("me/cells", device="cpu", revision="1" * 40)
    assert pinned.revision == "1" * 40


def test_names_without_a_commit(cache: Path, folder: Path) -> None:
    assert commit_of(str(folder)) is None
    assert commit_of("me/other") is None
    assert load_model(folder, device="cpu").revision is None
    with pytest.raises(InputError, match="could not provide a model of that name"):
        load_model("me/cells", revision="no-such-branch")


def test_an_adapter_on_the_hub_and_its_base_on_the_hub(
    cache: Path, tmp_path: Path, prompts: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    base = cache / "models--me--cells" / "snapshots" / ("1" * 40)
    adapter, expected = _adapter(base, tmp_path / "adapter")
    _change(adapter / "adapter_config.json", base_model_name_or_path="me/cells", revision="first")
    repository = cache / "models--me--adapter"
    shutil.copytree(adapter, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    loaded = load_model("me/adapter", device="cpu")
    assert (loaded.source, loaded.revision) == ("me/adapter", "a" * 40)
    np.testing.assert_allclose(_scores(loaded, prompts, labels), _scores(expected, prompts, labels), atol=1e-4)
