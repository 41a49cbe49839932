from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from cytoglot.errors import InputError
from cytoglot.training.rl.hacking_checks import HackingCheckRow, HackingReport, check_reward_hacking
from cytoglot.training.rl.rewards import RewardInputs, RewardPrompts, make_reward
from cytoglot.training.rl.rewards.adversarial_answers import OTHER, TRUE, AdversarialAnswers

GENES = ("ACTB", "B2M", *(f"GENE{i:03d}" for i in range(118)))
TYPES = ("B cell", "Monocyte", "NK cell")
N_WORDS = 30


def draw_cells(cell_type: str, n: int, rng: np.random.Generator) -> tuple[tuple[str, ...], ...]:
    """Cells of a type: distinct genes, drawn in proportion to weights that fall from gene to gene."""
    order = np.random.default_rng(TYPES.index(cell_type)).permutation(len(GENES))
    log_weight = -0.07 * np.arange(len(GENES))
    return tuple(
        tuple(GENES[order[g]] for g in np.argsort(-(log_weight + rng.gumbel(size=len(GENES))))[:N_WORDS])
        for _ in range(n)
    )


@pytest.fixture(scope="module")
def context() -> RewardInputs:
    rng = np.random.default_rng(1)
    return RewardInputs(genes=GENES, labels=TYPES, reference={name: draw_cells(name, 60, rng) for name in TYPES})


def prompts_of(task: str, n: int, *, seed: int = 2) -> RewardPrompts:
    rng = np.random.default_rng(seed)
    types = [TYPES[i % len(TYPES)] for i in range(n)]
    cells = [" ".join(draw_cells(name, 1, rng)[0]) for name in types]
    writes = task in {"cell_generation", "unconditional_generation"}
    return RewardPrompts(
        prompts=tuple(
            f"Write a {name}:" if writes else f"{cell}. Which cell is it?"
            for name, cell in zip(types, cells, strict=True)
        ),
        columns={
            "task": (task,) * n,
            "answer": tuple(cells if writes else types),
            "cell_type": tuple(types),
            "num_genes": (N_WORDS if writes else 0,) * n,
            "key": tuple(f"cell {i}" for i in range(n)),
        },
    )


def probe(terms: dict[str, Any], context: RewardInputs, task: str = "cell_generation", n: int = 30) -> HackingReport:
    return check_reward_hacking(make_reward(terms, context), prompts_of(task, n), context)


def row_of(report: HackingReport, answer: str) -> HackingCheckRow:
    return next(row for row in report.rows if row.answer == answer)


def test_overlap_alone_is_refused_for_the_mean_profile(context) -> None:
    report = probe({"overlap": {}}, context)
    assert report.hackable
    profile, real = row_of(report, "the mean profile of the type"), row_of(report, OTHER)
    assert profile.reaches
    assert profile.reward.low > real.reward.high
    assert profile.behind.value == pytest.approx(real.reward.value - profile.reward.value)
    assert "cell_generation: the mean profile of the type earns" in report.message
    earned = real.parts["overlap"]
    assert f"let through by overlap ({profile.parts['overlap'] - earned:+.2f} to {earned:.3g})" in report.message


def test_diversity_as_heavy_as_overlap_stops_the_mean_profile(context) -> None:
    report = probe({"overlap": {}, "diversity": {"weight": 1}}, context)
    assert not report.hackable
    assert report.message.startswith("no answer without content reaches the real ones; nearest comes ")
    assert row_of(report, OTHER).reward.value > max(row.reward.value for row in report.rows if row.is_adversarial)


@pytest.mark.parametrize(
    ("terms", "answer"),
    [
        ({"distinctness": {}}, "random genes"),
        ({"validity": {}}, "one gene repeated"),
        ({"validity": {}}, "a constant answer"),
        ({"validity": {}, "distinctness": {}}, "housekeeping genes"),
        ({"kendall_tau_b": {}}, "the mean profile of the type"),
        ({"program_score": {"genes": GENES[:9]}}, "genes that please program_score"),
        ({"diversity": {}}, "an empty answer"),
        ({"own_rewards:like_real_cells": {}}, "one training cell of the type"),
        ({"own_rewards:length": {}}, "random genes, as many as allowed"),
        ({"own_rewards:negative_length": {}}, "an empty answer"),
        ({"own_rewards:likes_copies": {}}, "a copy of the prompt"),
    ],
)
def test_every_probe_finds_the_mixture_that_it_is_for(
    context, monkeypatch: pytest.MonkeyPatch, terms: dict[str, Any], answer: str
) -> None:
    monkeypatch.setattr("cytoglot.training.rl.rewards.mixture.load_own", lambda path: OWN[path.split(":")[1]])
    report = probe(terms, context)
    assert report.hackable
    assert row_of(report, answer).reaches
    assert report.message.startswith("the mixture can be fooled: ")


def _typicality(text: str) -> float:
    """Greatest overlap with the likeliest genes of a type: about the same for every real cell."""
    words = set(text.strip(" .").split())
    likeliest = [np.random.default_rng(t).permutation(len(GENES))[:N_WORDS] for t in range(len(TYPES))]
    return max(len(words & {GENES[g] for g in genes}) for genes in likeliest) / N_WORDS


OWN = {
    "like_real_cells": lambda completions, **_: [-abs(_typicality(text) - 0.62) for text in completions],
    "length": lambda completions, **_: [float(len(text.split())) for text in completions],
    "negative_length": lambda completions, **_: [-float(len(text.split())) for text in completions],
    "likes_copies": lambda completions, prompts, **_: [
        float(p.rstrip(":") in c) for c, p in zip(completions, prompts, strict=True)
    ],
}


def test_a_program_is_stopped_by_clipping_it_where_real_cells_are(context) -> None:
    terms = {"overlap": {}, "diversity": {}, "program_score": {"genes": GENES[:9]}}
    report = probe(terms, context)
    assert report.hackable
    high = float(report.message.split("program_score (")[1].split(" to ")[1].split(")")[0])
    clipped = terms | {"program_score": {"genes": GENES[:9], "clip_high": high}}
    assert not probe(clipped, context).hackable


def test_labels_are_judged_by_the_true_ones(context) -> None:
    report = probe({"label_match": {}}, context, "cell_type_annotation")
    assert not report.hackable
    assert row_of(report, TRUE).reward.value == 1
    constant = row_of(report, "a constant answer")
    # a third of the prompts has the constant's label; to other lymphocytes and monocytes it is not far
    assert 1 / 3 < constant.reward.value < 0.7
    assert row_of(report, "every label").reward.value == 0
    assert OTHER not in {row.answer for row in report.rows}


def test_prompts_with_one_answer_only_cannot_be_told_from_a_constant(context) -> None:
    prompts = prompts_of("cell_type_annotation", 30).take(range(0, 30, 3))
    report = check_reward_hacking(make_reward({"label_match": {}}, context), prompts, context)
    assert report.hackable
    assert row_of(report, "a constant answer").reaches


def test_too_few_prompts_are_no_proof(context) -> None:
    terms = {"overlap": {}, "diversity": {}}
    report = check_reward_hacking(make_reward(terms, context), prompts_of("cell_generation", 1), context)
    assert report.hackable
    assert math.isnan(row_of(report, "an empty answer").behind.low)
    assert report.message.startswith("the mixture can be fooled: ")


def test_a_margin_asks_for_more(context) -> None:
    reward = make_reward({"overlap": {}, "diversity": {}}, context)
    prompts = prompts_of("cell_generation", 30)
    assert not check_reward_hacking(reward, prompts, context, margin=0.0).hackable
    assert check_reward_hacking(reward, prompts, context, margin=1.0).hackable


def test_tasks_are_judged_one_by_one(context) -> None:
    cells, labels = prompts_of("cell_generation", 30), prompts_of("cell_type_annotation", 30)
    both = RewardPrompts(
        prompts=cells.prompts + labels.prompts,
        columns={name: cells.columns[name] + labels.columns[name] for name in cells.columns},
    )
    report = check_reward_hacking(make_reward({"overlap": {}, "label_match": {"weight": 100}}, context), both, context)
    assert report.hackable
    assert {row.task for row in report.rows if row.reaches} == {"cell_generation"}


def test_a_task_that_no_reward_rates_is_an_error(context) -> None:
    with pytest.raises(
        InputError, match=r"none of the rewards overlap rates answers to the task 'cell_type_annotation'"
    ):
        probe({"overlap": {}}, context, "cell_type_annotation")
    with pytest.raises(InputError, match=r"probes of a reward need prompts of held-out cells, found none"):
        check_reward_hacking(make_reward({"overlap": {}}, context), prompts_of("cell_generation", 0), context)


def test_without_other_real_cells_there_is_nothing_to_compare_with() -> None:
    bare = RewardInputs(genes=GENES)
    with pytest.raises(InputError, match=r"other real cells of the same types, found none of B cell, Monocyte; give"):
        check_reward_hacking(make_reward({"overlap": {}}, bare), prompts_of("cell_generation", 2), bare)


def test_the_same_seed_gives_the_same_report_and_it_can_be_stored(context) -> None:
    first, second = (probe({"overlap": {}, "diversity": {}}, context, n=9) for _ in range(2))
    assert first == second
    assert json.loads(json.dumps(first.to_dict()))["hackable"] is first.hackable
    table = first.table().splitlines()
    assert len(table) == len(first.rows) + 2
    assert table[0] == "| task | answer | reward | real − this | overlap | diversity |"


class TestAnswers:
    """What is written to a prompt."""

    @pytest.fixture
    def answers(self, context) -> AdversarialAnswers:
        return AdversarialAnswers(prompts_of("cell_generation", 6), context, group_size=3, max_words=None, seed=0)

    def test_each_kind_answers_every_prompt_of_the_group(self, answers) -> None:
        assert {len(completions) for completions in answers.completions.values()} == {18}
        assert answers.columns["key"][:4] == ["cell 0"] * 3 + ["cell 1"]

    def test_sentences_have_the_length_asked_for_and_end(self, answers) -> None:
        for kind in (
            TRUE,
            OTHER,
            "a constant answer",
            "housekeeping genes",
            "the mean profile of the type",
            "random genes",
        ):
            words = answers.completions[kind][0].removesuffix(".").split()
            assert len(words) == len(set(words)) == N_WORDS, kind
            assert set(words) <= set(GENES)
        assert answers.completions["an empty answer"] == [""] * 18
        assert len(set(answers.completions["one gene repeated"][0].removesuffix(".").split())) == 1
        assert len(answers.completions["random genes, as many as allowed"][0].split()) == len(GENES)
        assert answers.completions["housekeeping genes"][0].startswith(" B2M ACTB ")

    def test_other_real_cells_are_of_the_type_and_not_the_cell_itself(self, answers) -> None:
        held_out = dict(zip(answers.columns["key"], answers.completions[TRUE], strict=True))
        for key, other in zip(answers.columns["key"], answers.completions[OTHER], strict=True):
            assert other != held_out[key]
        group = answers.completions[OTHER][:3]
        assert len(set(group)) == 3
        profile = set(answers.completions["the mean profile of the type"][0].removesuffix(".").split())
        assert all(len(profile & set(cell.removesuffix(".").split())) > N_WORDS / 2 for cell in group)

    def test_a_group_of_real_cells_holds_none_twice(self, context) -> None:
        few = dataclasses.replace(context, reference={"B cell": context.reference["B cell"][:2]})
        prompts = prompts_of("cell_generation", 6)  # two of each type: three other B cells, one other of the rest
        answers = AdversarialAnswers(prompts, few, group_size=8, max_words=None, seed=0)
        assert answers.group_size == 3
        assert set(answers.columns["cell_type"]) == {"B cell"}
        assert all(len(set(answers.completions[OTHER][i : i + 3])) == 3 for i in (0, 3))

    def test_a_copy_of_the_cell_is_none_of_the_others(self, context) -> None:
        prompts = prompts_of("cell_generation", 6)
        twice = prompts.take([*range(6), *range(6)])  # two prompts of each cell
        remembered = {
            name: (
                *(
                    tuple(a.split())
                    for a, t in zip(*(prompts.columns[c] for c in ("answer", "cell_type")), strict=True)
                    if t == name
                ),
                *cells[:4],
            )
            for name, cells in context.reference.items()
        }
        known = dataclasses.replace(context, reference=remembered)
        answers = AdversarialAnswers(twice, known, group_size=4, max_words=None, seed=0)
        assert answers.group_size == 4
        assert not set(zip(answers.columns["key"], answers.completions[TRUE], strict=True)) & set(
            zip(answers.columns["key"], answers.completions[OTHER], strict=True)
        )
        assert len(set(answers.completions[OTHER][:4])) == 4

    def test_a_prompt_is_copied_by_its_genes_where_it_shows_some(self, context) -> None:
        shown = AdversarialAnswers(prompts_of("cell_type_annotation", 2), context, group_size=1, max_words=None, seed=0)
        copy = shown.completions["a copy of the prompt"][0]
        assert copy.removesuffix(".").split() == shown.columns["prompts"][0].split(".")[0].split()
        hidden = AdversarialAnswers(prompts_of("cell_generation", 2), context, group_size=1, max_words=None, seed=0)
        assert hidden.completions["a copy of the prompt"][0] == " Write a B cell:."

    def test_a_task_that_hides_the_type_gets_cells_of_any(self, context) -> None:
        answers = AdversarialAnswers(
            prompts_of("unconditional_generation", 6), context, group_size=4, max_words=9, seed=0
        )
        profiles = {" ".join(text.split()) for text in answers.completions["the mean profile of the type"]}
        assert len(profiles) == 1
        assert len(answers.completions["random genes, as many as allowed"][0].split()) == 9
