"""Shared fixtures: real data where it is, one torch thread, no network."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

if TYPE_CHECKING:
    from anndata import AnnData

    from cytoglot.cell_model.load import CellModel
    from cytoglot.corpus.format.folder import Corpus
    from cytoglot.training.recipe import TrainRecipe

REPOSITORY = Path(__file__).resolve().parents[1]


#: What an exception says where torch, or a package of the extras `lm` and `train`, is missing.
_NEEDS_TORCH = re.compile(
    r"No module named '(torch|transformers|accelerate|safetensors|tokenizers|peft|trl|grimp)\b|cytoglot\[(lm|train)\]"
)


def _skip_what_needs_torch(report: Any, excinfo: pytest.ExceptionInfo | None, where: Path) -> None:
    """Turn a failure for want of torch into a skip; `make matrix` runs the other tests on a Python without torch."""
    if not report.failed or excinfo is None:
        return
    error: BaseException | None = excinfo.value
    while error is not None:
        if _NEEDS_TORCH.search(str(error)):
            report.outcome, report.longrepr = "skipped", (str(where), 0, "Skipped: needs torch")
            return
        error = error.__cause__ or error.__context__


if importlib.util.find_spec("torch") is None:

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
        """A test file that imports torch."""
        report = yield
        _skip_what_needs_torch(report, report.call.excinfo, collector.path)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, Any, Any]:
        """A test, or a fixture of it, that comes to need torch."""
        report = yield
        _skip_what_needs_torch(report, call.excinfo, item.path)
        return report


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Two threads on a shared machine are slower than one, and results then depend on the load."""
    try:
        import torch
    except ModuleNotFoundError:
        return
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def garbage_of_imports_is_not_searched() -> None:
    """Keep what is imported out of garbage collections.

    The trainer collects at the start and the end of every training. Among the millions of objects of torch and
    transformers that takes a second each time, half of the processor time of a test that trains for eight steps.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_path() -> Callable[[str], Path]:
    """Return the path of a real data set, or skip the test with the reason."""
    folder = Path(os.environ.get("CYTOGLOT_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"{name} is not in {folder} (set CYTOGLOT_DATA to the folder of real data sets)")
        return path

    return find


def marked_cells() -> AnnData:
    """Return the cells of the fixture; for subprocesses, which have no fixtures."""
    import numpy as np
    from scipy.sparse import csr_matrix

    from cytoglot.data.synthetic import make_cells

    adata = make_cells(n_cells=240, n_genes=120, n_types=3, n_donors=6, expressed=24, seed=1)
    counts_ng, rng = adata.X.toarray(), np.random.default_rng(0)
    types = adata.obs["cell_type"].cat.codes.to_numpy()
    for number in range(3):
        mean_n1 = np.where(types == number, 2.0, 0.05)[:, None]
        counts_ng[:, 12 * number : 12 * (number + 1)] = rng.poisson(mean_n1, size=(adata.n_obs, 12))
    adata.X = csr_matrix(counts_ng)
    return adata


@pytest.fixture(scope="session")
def cells() -> AnnData:
    """240 synthetic cells of three types and six donors; tests that change them copy them first.

    Twelve genes are markers of each type, so that a model can tell the types after a few seconds of training.
    """
    return marked_cells()


@pytest.fixture(scope="session")
def cells_file(cells: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same cells as a file."""
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def small_corpus(cells: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """`cells` as a corpus with every kind of record; not to be changed. Donors 4 and 5 are validation and test.

    Training cells are in two shards and in groups of three neighbors of one donor. Two tissues, two sexes, one mouse
    gene as the ortholog of each of the first ten genes.
    """
    return write_small_corpus(cells, tmp_path_factory.mktemp("small_corpus") / "corpus")


def write_small_corpus(cells: AnnData, folder: Path) -> Corpus:
    """Write the corpus of the fixture, for tests that damage it."""
    import numpy as np

    from cytoglot.corpus.format.folder import SourceInfo, write_corpus
    from cytoglot.corpus.format.shard_file import make_block
    from cytoglot.data.genes.vocabulary import GeneVocabulary
    from cytoglot.sentence.encode import encode
    from cytoglot.tasks import CellTypeTerm, GeneSet

    symbols = (*map(str, cells.var_names), *(str(name).capitalize() + "m" for name in cells.var_names[:10]))
    vocabulary = GeneVocabulary(symbols)
    sentences = encode(cells, genes=vocabulary)
    donors = cells.obs["donor"].astype(str).to_numpy()
    names = sorted(set(donors))
    orthologs = np.full(len(symbols), -1)
    orthologs[:10], orthologs[-10:] = np.arange(len(symbols) - 10, len(symbols)), np.arange(10)

    def block(chosen: list[str]) -> Any:
        rows = np.flatnonzero(np.isin(donors, chosen))
        rows = rows[np.argsort(donors[rows], kind="stable")]
        part, numbers = sentences[rows], np.array([names.index(donor) for donor in donors[rows]])
        place = np.concatenate([np.arange(n) for n in np.unique(numbers, return_counts=True)[1]])
        return make_block(
            cell_ids=part.cell_ids,
            offsets=part.offsets,
            gene_ids=part.gene_ids,
            n_genes=len(symbols),
            source=["synthetic"] * len(rows),
            metadata={
                "cell_type": cells.obs["cell_type"].astype(str).to_numpy()[rows],
                "donor_id": donors[rows],
                "organism": ["human"] * len(rows),
                "tissue": np.where(numbers % 2, "lung", "blood"),
                "sex": np.where(numbers % 3, "female", "male"),
                "disease": [None if n == 0 else "normal" for n in numbers],
            },
            group=np.unique(numbers * 1000 + place // 3, return_inverse=True)[1],
        )

    sets = [GeneSet(name=f"programme {i}", genes=symbols[i * 9 : i * 9 + 9], collection="made") for i in range(9)]
    terms = [
        CellTypeTerm(
            label=f"type {i}", definition=f"A cell of kind {i}.", term_id=f"CL:{i}", markers=symbols[i : i + 4]
        )
        for i in range(9)
    ]
    return write_corpus(
        folder,
        {
            "train": [block(names[:2]), block(names[2:-2])],
            "validation": [block(names[-2:-1])],
            "test": [block(names[-1:])],
        },
        vocabulary=vocabulary,
        sources=[
            SourceInfo(name="synthetic", organism="human", licence="CC0", abstract="Cells that were made by a recipe.")
        ],
        gene_sets={"train": sets[:6], "validation": sets[6:7], "test": sets[7:]},
        terms={"train": terms[:6], "validation": terms[6:7], "test": terms[7:]},
        orthologs=orthologs,
    )


@pytest.fixture(scope="session")
def tiny_recipe() -> TrainRecipe:
    """One small layer, 160 steps: trains in seconds."""
    from cytoglot.lm.model.scratch import ScratchSettings
    from cytoglot.training.recipe import ModelRecipe, OptimRecipe, SentenceRecipe, TrainRecipe

    scratch = ScratchSettings(hidden_size=32, n_layers=1, n_heads=2, feed_forward=64, context_length=512)
    return TrainRecipe(
        sentence=SentenceRecipe(top_genes=40, hvg=None),
        model=ModelRecipe(scratch=scratch, word_vector_rank=16),
        optim=OptimRecipe(
            steps=160,
            batch_size=16,
            learning_rate=1e-2,
            weight_average=0.8,
            evaluate_every=25,
            patience=None,
            generation_weight=10.0,
        ),
        tasks={"cell_type_annotation": 0.5, "cell_generation": 0.45, "unconditional_generation": 0.05},
        views=1,
    )


@pytest.fixture(scope="session")
def tiny_cli(tiny_recipe: TrainRecipe) -> list[str]:
    """`tiny_recipe` as options of `cytoglot train`."""

    def settings(values: dict[str, Any], prefix: str = "") -> list[str]:
        found = []
        for name, value in values.items():
            if isinstance(value, dict):
                found += settings(value, f"{prefix}{name}.")
            else:
                found += ["--set", f"{prefix}{name}={json.dumps(value)}"]
        return found

    return settings(tiny_recipe.model_dump(mode="json", exclude_unset=True))


@pytest.fixture(scope="session")
def tiny_model(cells: AnnData, tiny_recipe: TrainRecipe, tmp_path_factory: pytest.TempPathFactory) -> CellModel:
    """A model of `cells`, trained once per session; its folder is `tiny_model.folder`, not to be changed."""
    from cytoglot.training.run import train

    folder = tmp_path_factory.mktemp("tiny_model") / "model"
    return train(cells, label="cell_type", out=folder, recipe=tiny_recipe, seed=3, device="cpu")


@pytest.fixture(scope="session")
def tiny_model_folder(tiny_model: CellModel) -> Path:
    """The folder of `tiny_model`."""
    assert tiny_model.folder is not None
    return tiny_model.folder


@dataclass(frozen=True)
class Outcome:
    """What a command left behind on its streams."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The one JSON object on stdout of a command that succeeded."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1, f"expected one line on stdout, found: {self.out}"
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value

    @property
    def refusal(self) -> str:
        """The one line that tells a user what is wrong with the input."""
        assert self.code == 2, f"exit code {self.code}: {self.err}"
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("cytoglot: ")
        assert "Traceback" not in line
        assert "internal error" not in line
        return line.removeprefix("cytoglot: ")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line in this process, as `cytoglot ARGUMENTS` would."""
    from cytoglot.cli.main import run

    def call(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call
