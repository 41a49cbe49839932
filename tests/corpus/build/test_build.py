"""Building a corpus: nothing lost, nothing twice; the same bytes whoever builds it and however often it is killed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
from build_files import content, recipe_of, sentences_of, some_cells, two_sources

import cytoglot
from cytoglot.corpus.build import build as build_module
from cytoglot.corpus.build import shuffle as build_shards
from cytoglot.corpus.build.build import BuildSummary, build_corpus, forecast_build
from cytoglot.corpus.format.folder import PARTS, open_corpus
from cytoglot.corpus.sources.recipe import CorpusRecipe
from cytoglot.engines import Engine
from cytoglot.errors import InputError
from cytoglot.sentence.rank_curve import rank_curve_from_dict

Command = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is killed here is a process and never the machine, so nothing has to be on the disk itself."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def recipe(tmp_path: Path) -> CorpusRecipe:
    return two_sources(tmp_path)


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., BuildSummary]:
    def call(recipe: CorpusRecipe, out: str = "out", **options: Any) -> BuildSummary:
        return build_corpus(recipe, tmp_path / out, base=tmp_path, **options)

    return call


def test_every_cell_is_there_once_as_encode_writes_it(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    summary = build(recipe)
    corpus = open_corpus(tmp_path / "out")
    found = sentences_of(corpus)
    expected = {}
    for name in ("first", "second"):
        cells = anndata.read_h5ad(tmp_path / f"{name}.h5ad")
        sentences = cytoglot.encode(cells, genes=corpus.vocabulary)
        expected |= {(name, cell): words for cell, words in zip(cells.obs_names, sentences, strict=True)}
    repeated = ("second", "cell3")
    assert expected.pop(repeated) == found[("first", "cell10")]
    assert found == expected
    assert summary.removed == {"repeats an earlier cell": 1}
    assert summary.cells == 159
    assert summary.ranked_ids == sum(map(len, expected.values()))
    assert summary.shards == len(corpus.description.shards) > 3
    assert not (tmp_path / "out" / ".work").exists()


def test_metadata_are_those_of_the_files_and_words_for_unknown_are_missing(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    build(recipe)
    corpus = open_corpus(tmp_path / "out")
    assert set(corpus.description.metadata_columns) == {"cell_type", "donor_id", "organism", "tissue"}
    obs = {name: anndata.read_h5ad(tmp_path / f"{name}.h5ad").obs for name in ("first", "second")}
    for part in PARTS:
        for block in corpus.blocks(part):
            codes, sources = block.values("source")
            for column in ("cell_type", "donor_id", "tissue"):
                values, texts = block.values(column)
                for cell, name in enumerate(block.cell_ids.to_pylist()):
                    expected = obs[sources[codes[cell]]].loc[name, column]
                    assert (texts[values[cell]] if values[cell] >= 0 else "unknown") == expected
    assert corpus.labels("organism") == ("human",)
    assert sum(corpus.description.counts["tissue"].values()) == 159


def test_donors_stay_in_one_part_and_groups_are_of_one_donor(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    summary = build(recipe)
    corpus = open_corpus(tmp_path / "out")
    part_of_donor: dict[tuple[str, str], str] = {}
    sizes = []
    for part in PARTS:
        for block in corpus.blocks(part):
            donors, names = block.values("donor_id")
            codes, sources = block.values("source")
            for cell in range(len(block)):
                donor = sources[codes[cell]], names[donors[cell]]
                assert part_of_donor.setdefault(donor, part) == part
            for group in np.unique(block.group[block.group >= 0]):
                cells = np.flatnonzero(block.group == group)
                sizes.append(len(cells))
                assert len({(codes[c], donors[c]) for c in cells}) == 1
                assert np.array_equal(cells, np.arange(cells[0], cells[-1] + 1))
    assert min(sizes) >= 2
    assert max(sizes) <= 20
    assert summary.cell_groups == len(sizes) > 5
    assert corpus.splits["units"]["first\td0"] == part_of_donor[("first", "d0")]


def test_cells_are_shuffled(build: Callable[..., BuildSummary], tmp_path: Path) -> None:
    some_cells(300, seed=4).write_h5ad(tmp_path / "cells.h5ad")
    build(recipe_of("cells.h5ad", shard_ids=100_000, groups={"min_cells": 2, "max_cells": 2}, split={"by": "cell"}))
    (block,) = open_corpus(tmp_path / "out").blocks("train")
    rows = np.array([int(name.removeprefix("cell")) for name in block.cell_ids.to_pylist()])
    assert abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.2


def test_the_bytes_do_not_depend_on_the_number_of_workers(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    alone = build(recipe, "one")
    together = build(recipe, "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert alone == together


@pytest.mark.slow
def test_the_bytes_are_the_same_on_ray(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    build(recipe, "one")
    build(recipe, "two", workers=2, engine="ray")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_the_seed_changes_the_order_and_the_split(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    assert build(recipe, "one").fingerprint != build(recipe, "two", seed=1).fingerprint
    assert sentences_of(open_corpus(tmp_path / "one")) == sentences_of(open_corpus(tmp_path / "two"))


class KilledError(BaseException):
    """Stands for a kill: nothing catches it."""


@contextmanager
def killed_at(step: int) -> Iterator[list[int]]:
    """Kill before (even) or after (odd) the rename of this number; the file not yet renamed stays, as after a kill."""
    real, count = Path.replace, [0]

    def replace(self: Path, target: Any) -> Path:
        if count[0] == step:
            left = self.with_name(f".left.partial{self.suffix}")
            shutil.copytree(self, left) if self.is_dir() else shutil.copy(self, left)
            raise KilledError
        renamed = real(self, target)
        count[0] += 2
        if count[0] == step + 1:
            raise KilledError
        return renamed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        yield count


def test_twenty_kills_each_resumed_give_the_same_bytes(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    with killed_at(-10) as count:
        build(recipe, "whole")
    expected = content(tmp_path / "whole")
    steps = np.random.default_rng(7).choice(count[0], 20, replace=False)
    for step in sorted(steps.tolist()):
        with killed_at(step), pytest.raises(KilledError):
            build(recipe, f"killed{step}")
        assert content(tmp_path / f"killed{step}") != expected or step == count[0] - 1
        build(recipe, f"killed{step}")
        assert content(tmp_path / f"killed{step}") == expected, step


def test_one_build_killed_again_and_again_ends(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    build(recipe, "whole")
    for _ in range(8):  # each writes the plan anew, and finishes two things more
        with killed_at(5), pytest.raises(KilledError):
            build(recipe, "killed")
    assert build(recipe, "killed").resumed_spans > 3
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.slow
def test_processes_killed_by_the_system_are_resumed(tmp_path: Path) -> None:
    recipe = two_sources(tmp_path)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    command = [sys.executable, "-c", "from cytoglot.cli.main import main; main()"]
    arguments = ["corpus", "build", str(tmp_path / "recipe.yaml"), "--workers", "2", "-o"]

    def run(out: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, *arguments, str(tmp_path / out)], start_new_session=True)

    started = time.monotonic()
    assert run("whole").wait() == 0
    seconds = time.monotonic() - started
    n_killed = 0
    for share in np.random.default_rng(0).uniform(0.3, 1.0, 6):
        process = run("killed")
        try:
            process.wait(share * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            n_killed += 1
    assert run("killed").wait() == 0
    assert n_killed
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_finished_shard_is_never_rebuilt_and_a_span_never_ranked_again(
    recipe: CorpusRecipe,
    build: Callable[..., BuildSummary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, n = build_shards._write, [0]

    def third_fails(*task: Any) -> Any:
        n[0] += 1
        if n[0] == 3:
            raise KilledError
        return real(*task)

    monkeypatch.setattr(build_shards, "_write", third_fails)
    with pytest.raises(KilledError):
        build(recipe)
    shards = sorted((tmp_path / "out").glob("*/*.parquet"))
    before = {shard: shard.stat().st_mtime_ns for shard in shards}
    assert len(before) == 2
    spans = sorted((tmp_path / "out" / ".work" / "spans").glob("[0-9]*"))
    summary = build(recipe)
    assert {shard: shard.stat().st_mtime_ns for shard in shards} == before
    assert summary.resumed_shards == 2
    assert summary.resumed_spans == len(spans) > 3


def test_a_finished_corpus_is_left_as_it_is(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    first = build(recipe)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    second = build(recipe)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert second.fingerprint == first.fingerprint
    assert second.resumed_shards == first.shards


def test_a_missing_or_cut_shard_of_a_finished_corpus_is_made_again(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    summary = build(recipe)
    before = content(tmp_path / "out")
    shards = sorted((tmp_path / "out").glob("*/*.parquet"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:100])
    again = build(recipe)
    assert content(tmp_path / "out") == before
    assert again.resumed_shards == summary.shards - 2


def test_what_has_changed_is_named_and_overwrite_replaces(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    build(recipe)
    with pytest.raises(InputError, match=r"differs from this build: seed 0 → 3; pass --overwrite"):
        build(recipe, seed=3)
    other = recipe.model_copy(update={"cells": recipe.cells.model_copy(update={"top_genes": 5})})
    with pytest.raises(InputError, match=r"recipe cells\.top_genes: None → 5"):
        build(other)
    some_cells(71, seed=9).write_h5ad(tmp_path / "second.h5ad")
    with pytest.raises(InputError, match=r"source 'second': fingerprint [0-9a-f]{16} → [0-9a-f]{16}"):
        build(recipe)
    assert build(recipe, overwrite=True).cells == 161
    build(recipe, "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_an_input_that_changes_while_the_build_is_interrupted_is_noticed(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    with killed_at(12), pytest.raises(KilledError):
        build(recipe)
    some_cells(71, seed=9).write_h5ad(tmp_path / "second.h5ad")
    with pytest.raises(InputError, match="source 'second': fingerprint"):
        build(recipe)
    build(recipe, overwrite=True)
    build(recipe, "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_a_missing_source_is_named_and_skipped_only_when_asked(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    recipe = recipe_of("first.h5ad", "absent.h5ad", "second.h5ad")
    with pytest.raises(InputError, match=r"source 'absent': absent\.h5ad is neither"):
        build(recipe)
    assert not (tmp_path / "out").exists()
    summary = build(recipe, skip_bad=True)
    assert summary.skipped == ("absent",)
    assert summary.cells == 159
    corpus = open_corpus(tmp_path / "out")
    assert "absent.h5ad is neither" in corpus.description.skipped["absent"]
    assert "absent" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match="none of 1 sources can be read"):
        build(recipe_of("absent.h5ad"), "nothing", skip_bad=True)


def damage(path: Path) -> None:
    """Make the values of some later cells NaN: the header is good, the fault shows when the cells are read."""
    with h5py.File(path, "r+") as file:
        file["X/data"][-40:] = np.nan


def test_a_source_that_proves_damaged_while_it_is_read_is_named_and_skipped_only_when_asked(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    damage(tmp_path / "first.h5ad")
    with pytest.raises(InputError, match="source 'first'"):
        build(recipe)
    summary = build(recipe, skip_bad=True)
    assert summary.skipped == ("first",)
    assert summary.cells == 70
    assert summary.genes == 60
    again = build(recipe, skip_bad=True)
    assert again.fingerprint == summary.fingerprint


def test_genes_of_another_namespace_are_refused(build: Callable[..., BuildSummary], tmp_path: Path) -> None:
    some_cells(20, seed=1).write_h5ad(tmp_path / "symbols.h5ad")
    other = some_cells(20, seed=2)
    other.var_names = [f"ENSMUSG{i:011d}" for i in range(other.n_vars)]
    other.write_h5ad(tmp_path / "ensembl.h5ad")
    (tmp_path / "genes.txt").write_text("\n".join(f"G{i}" for i in range(60)))
    recipe = recipe_of("symbols.h5ad", "ensembl.h5ad", genes={"repair": False, "vocabulary": "genes.txt"})
    with pytest.raises(InputError, match=r"source 'ensembl'.*found 0\.0%.*look like Ensembl ids of mouse"):
        build(recipe)
    assert build(recipe, skip_bad=True).cells == 20


def test_a_given_vocabulary_is_kept_in_its_order(build: Callable[..., BuildSummary], tmp_path: Path) -> None:
    cells = some_cells(30, seed=1)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    genes = [*(f"G{i}" for i in range(59, 20, -1)), "ABSENT"]
    (tmp_path / "genes.txt").write_text("\n".join(genes))
    build(recipe_of("cells.h5ad", genes={"repair": False, "vocabulary": "genes.txt"}))
    corpus = open_corpus(tmp_path / "out")
    assert corpus.vocabulary.symbols == tuple(genes)
    sentences = cytoglot.encode(cells, genes=genes)
    assert sentences_of(corpus) == {
        ("cells", name): words for name, words in zip(cells.obs_names, sentences, strict=True)
    }


def test_caps_max_cells_and_min_genes_leave_out_as_many_as_they_say(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    capped = recipe_of(
        "first.h5ad", "second.h5ad", caps={"max_cells": 20}, cells={"min_genes": 36, "duplicates": "keep"}
    )
    summary = build(capped)
    counts = open_corpus(tmp_path / "out").description.counts["cell_type"]
    assert set(counts) == {"B cell", "T cell"}
    assert max(counts.values()) <= 20
    assert summary.removed["too few genes"] > 0
    assert summary.cells + sum(summary.removed.values()) == 160
    limited = recipe_of("second.h5ad", "first.h5ad")
    sources = [limited.sources[0].model_copy(update={"max_cells": 25}), limited.sources[1]]
    summary = build(limited.model_copy(update={"sources": sources}), "limited")
    assert summary.removed["above max_cells of the source"] == 45


@pytest.mark.parametrize("ties", ["random", "rare_first", "common_first"])
def test_tie_rules_are_those_of_encode(build: Callable[..., BuildSummary], tmp_path: Path, ties: str) -> None:
    cells = some_cells(80, seed=5)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    summary = build(recipe_of("cells.h5ad", cells={"ties": ties}), seed=2)
    corpus = open_corpus(tmp_path / "out")
    train = {name for block in corpus.blocks("train") for name in block.cell_ids.to_pylist()}
    rates = cytoglot.sentence.ranker.detection_rates(cells[cells.obs_names.isin(train)].X)
    by_name = dict(zip(cells.var_names, rates, strict=True))
    sentences = cytoglot.encode(cells, genes=corpus.vocabulary, ties=ties, seed=2, tie_rates=by_name)
    expected = {("cells", name): words for name, words in zip(cells.obs_names, sentences, strict=True)}
    assert sentences_of(corpus) == expected
    assert summary.cells == 80


def test_the_rank_curve_is_fitted_on_training_cells_of_sources_with_counts(
    build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    cells = some_cells(60, seed=5)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    build(recipe_of("cells.h5ad"))
    corpus = open_corpus(tmp_path / "out")
    assert corpus.rank_curve is not None
    curve = rank_curve_from_dict(corpus.rank_curve)
    assert curve.vocabulary_fingerprint == corpus.vocabulary.fingerprint
    train = {name for block in corpus.blocks("train") for name in block.cell_ids.to_pylist()}
    chosen = cells[cells.obs_names.isin(train)][:, list(corpus.vocabulary.symbols)]
    expected = cytoglot.sentence.fit_curves.fit_rank_curve(
        "isotonic_length", cytoglot.encode(chosen, genes=corpus.vocabulary), log_counts(chosen.X)
    )
    fitted = corpus.rank_curve["base"]
    assert fitted == expected.to_dict()


def log_counts(counts: Any) -> Any:
    from cytoglot.data.normalize import normalize_log

    return normalize_log(counts)


def test_a_full_disk_is_one_line_and_the_build_goes_on_afterwards(
    recipe: CorpusRecipe,
    build: Callable[..., BuildSummary],
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    build(recipe, "whole")
    real = build_shards.write_shard

    def full(path: Path, blocks: Any, schema: Any) -> None:
        if "validation" in str(path):
            next(iter(blocks))
            path.parent.mkdir(exist_ok=True)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, blocks, schema)

    with monkeypatch.context() as patch:
        patch.setattr(build_shards, "write_shard", full)
        outcome = command("corpus", "build", tmp_path / "recipe.yaml", "-o", tmp_path / "out")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("cytoglot: no space left for")
    assert "Traceback" not in outcome.err
    assert not list((tmp_path / "out" / "validation").glob("*"))
    result = command("corpus", "build", tmp_path / "recipe.yaml", "-o", tmp_path / "out", "--json").result
    assert result["resumed_spans"] > 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_folder_with_other_things_and_a_second_build_at_once_are_refused(
    recipe: CorpusRecipe, build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(InputError, match=r"holds other things than a result of `cytoglot corpus build` \(notes.txt\)"):
        build(recipe, "mine", overwrite=True)
    (tmp_path / "out" / ".work").mkdir(parents=True)
    with (
        build_module.locked(tmp_path / "out" / ".work"),
        pytest.raises(InputError, match="another process is building"),
    ):
        build(recipe)


def test_the_command_prints_what_it_made_and_names_a_misspelt_key(
    recipe: CorpusRecipe, command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe.model_dump(mode="json")))
    forecast = command("corpus", "build", file, "-o", tmp_path / "out", "--dry-run", "--json").result
    assert not (tmp_path / "out").exists()
    result = command("corpus", "build", file, "-o", tmp_path / "out", "--json", "--set", "cells.top_genes=10").result
    assert {"cells", "cell_groups", "genes", "ranked_ids", "shards", "fingerprint"} <= set(result)
    assert (forecast["cells"], forecast["genes"]) == (160, result["genes"]) == (160, 60)
    assert result["ranked_ids"] == 10 * result["cells"]
    refusal = command("corpus", "build", file, "-o", tmp_path / "b", "--set", "cells.top_gene=10").refusal
    assert "did you mean 'top_genes'" in refusal
    assert "engine" in command("corpus", "build", file, "-o", tmp_path / "b", "--engine", "dask").refusal


def test_no_cell_left_is_refused_and_leaves_nothing(build: Callable[..., BuildSummary], tmp_path: Path) -> None:
    some_cells(20, seed=1).write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(InputError, match="no cell is left"):
        build(recipe_of("cells.h5ad", cells={"min_genes": 61}))
    copies = some_cells(20, seed=1)
    copies.obs["is_primary_data"] = False
    copies.write_h5ad(tmp_path / "copies.h5ad")
    with pytest.raises(InputError, match="no cell is left"):
        build(recipe_of("copies.h5ad"), "none")
    assert not (tmp_path / "none").exists()


def test_knowledge_tables_are_in_genes_of_the_corpus_and_in_parts(
    build: Callable[..., BuildSummary], tmp_path: Path
) -> None:
    some_cells(40, seed=1).write_h5ad(tmp_path / "cells.h5ad")
    sets = [f"SET_{i}\tno link\t" + "\t".join(f"G{(i + k) % 80}" for k in range(20)) for i in range(40)]
    sets.append("SMALL\tno link\tG1\tG2\tUNKNOWN\tOTHER\tTHIRD")
    (tmp_path / "made.gmt").write_text("\n".join(sets) + "\n")
    terms = ["id\tlabel\tdefinition\tsynonyms", "CL:0000236\tB cell\tA cell that makes antibodies.\tB lymphocyte"]
    terms += [f"CL:{i:07d}\tkind {i}\tA cell of kind {i}.\t" for i in range(1, 31)]
    (tmp_path / "cl.tsv").write_text("\n".join(terms) + "\n")
    markers = "species\tCL_ID\tmarker\tmarker_type\tECs_global\tSPs_global\n"
    markers += "Human\tCL:0000236\tG7\tpositive\t3\t0.5\nHuman\tCL:0000236\tABSENT\tpositive\t9\t0.5\n"
    (tmp_path / "markers.tsv").write_text(markers)
    (tmp_path / "orthologs.tsv").write_text("human_symbol\tmouse_symbol\nG1\tG2\nG3\tg3\n")
    recipe = recipe_of(
        "cells.h5ad",
        genes={"repair": False, "orthologs": "orthologs.tsv"},
        gene_sets=[{"path": "made.gmt", "collection": "made"}],
        cell_types={"ontology": "cl.tsv", "markers": "markers.tsv"},
    )
    build(recipe)
    corpus = open_corpus(tmp_path / "out")
    found = {part: corpus.gene_sets(part) for part in PARTS}
    every = {each.name: each for part in PARTS for each in found[part]}
    assert len(every) == sum(map(len, found.values())) == 40
    assert all(found.values())
    assert every["SET 70" if "SET 70" in every else next(iter(every))].collection == "made"
    assert all(gene in corpus.vocabulary for each in every.values() for gene in each.genes)
    terms_of = {term.label: term for part in PARTS for term in corpus.cell_type_terms(part)}
    assert len(terms_of) == 31
    assert terms_of["B cell"].markers == ("G7",)
    assert terms_of["B cell"].definition == "A cell that makes antibodies."
    assert corpus.orthologs is not None
    one, two = corpus.vocabulary.index_of(["G1", "G2"])
    assert (corpus.orthologs[one], corpus.orthologs[two]) == (two, one)
    assert int((corpus.orthologs >= 0).sum()) == 2


def test_a_forecast_reads_headers_alone(recipe: CorpusRecipe, tmp_path: Path) -> None:
    found = forecast_build(recipe, base=tmp_path)
    values = sum(anndata.read_h5ad(tmp_path / f"{name}.h5ad").X.nnz for name in ("first", "second"))
    assert found["ranked_ids"] == values
    assert found["shards"] == round(values / 1000)


def test_the_engine_is_checked_before_anything_is_read(recipe: CorpusRecipe, tmp_path: Path) -> None:
    engine: Any = "spark"
    checked: Engine = engine
    with pytest.raises(InputError, match="unknown engine 'spark'"):
        build_corpus(recipe, tmp_path / "out", base=tmp_path, engine=checked)
    with pytest.raises(InputError, match="at least 1 worker"):
        build_corpus(recipe, tmp_path / "out", base=tmp_path, workers=0)
