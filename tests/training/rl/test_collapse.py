"""When answers to one prompt are called too much alike."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from cytoglot.answer_format import DistinctWords, OneOf
from cytoglot.lm.generation.sampling import Sampling
from cytoglot.training.rl.collapse import CollapseMonitor, Diversity, diversity
from cytoglot.training.rl.prompts import EvalPrompt
from cytoglot.training.rl.reward_eval import RewardEval, ValidationRewards
from cytoglot.training.rl.rewards import RewardInputs, make_reward


def _alike(between: float, repeated_words: float = 0.0) -> Diversity:
    return Diversity(between_samples=between, repeated_answers=0.0, repeated_words=repeated_words, words=10.0)


def _watch(before: float, real: float = math.nan, on_collapse: str = "stop") -> CollapseMonitor:
    stop = "stop" if on_collapse == "stop" else "warn"
    return CollapseMonitor(before=_alike(before), max_overlap_gain=0.15, on_collapse=stop, real=real)


def test_the_collapse_of_the_prototype_is_seen() -> None:
    """Overlap rose from 0.36 to 0.55, real cells share 0.495."""
    watch = _watch(0.36, real=0.495)
    assert watch.warning(_alike(0.50)) is None
    message = watch.warning(_alike(0.55))
    assert message is not None
    assert "rose from 0.36 to 0.55" in message
    assert "above that of real cells of one type (0.49" in message
    assert watch.collapsed(_alike(0.55))
    assert not _watch(0.36, real=0.495, on_collapse="warn").collapsed(_alike(0.55))


def test_answers_may_become_as_alike_as_real_cells() -> None:
    watch = _watch(0.30, real=0.70)
    assert not watch.collapsed(_alike(0.65))
    assert watch.warning(_alike(0.65)) is None
    assert watch.collapsed(_alike(0.72))


def test_without_real_cells_the_gain_alone_counts() -> None:
    assert _watch(0.30).collapsed(_alike(0.46))
    assert not _watch(0.30).collapsed(_alike(0.44))


def test_nothing_is_said_where_nothing_can_be_compared() -> None:
    assert _watch(math.nan).warning(_alike(math.nan)) is None
    assert not _watch(0.3).collapsed(_alike(math.nan))


def test_repeated_words_are_worth_a_word_but_no_stop() -> None:
    watch = _watch(0.30)
    message = watch.warning(_alike(0.30, repeated_words=0.27))
    assert message is not None
    assert "from 0.0% to 27.0% of all words" in message
    assert not watch.collapsed(_alike(0.30, repeated_words=0.27))


@pytest.mark.parametrize(
    ("samples", "between", "repeated_answers", "repeated_words", "words"),
    [
        ([["A B", "A C"]], 0.5, 0.0, 0.0, 2.0),
        ([["A B", "B A"]], 1.0, 0.0, 0.0, 2.0),  # the same genes, in another order
        ([["A B", "A B"], ["A B", "C D"]], 0.5, 0.25, 0.0, 2.0),
        ([["A A", "B C D"]], 0.0, 0.0, 0.25, 2.5),  # half of two words repeats, none of three
        ([["", ""]], math.nan, 0.5, math.nan, 0.0),
        ([], math.nan, math.nan, math.nan, math.nan),
    ],
)
def test_diversity_by_hand(
    samples: Sequence[Sequence[str]],
    between: float,
    repeated_answers: float,
    repeated_words: float,
    words: float,
) -> None:
    found = diversity([[text.split() for text in one] for one in samples])
    expected = (between, repeated_answers, repeated_words, words)
    got = (found.between_samples, found.repeated_answers, found.repeated_words, found.words)
    np.testing.assert_allclose(got, expected)
    assert Diversity.from_row(json.loads(json.dumps(found.as_row()))).as_row() == found.as_row()


def _held_out(groups: Sequence[str] = ("",) * 6) -> ValidationRewards:
    genes = ("A", "B", "C", "D")
    form = DistinctWords(words=genes, min_words=2, max_words=2)
    asked = [
        EvalPrompt(
            prompt="p", task="t", answer="A B", answer_format=form, cell_type="T", num_genes=2, key=str(i), group=group
        )
        for i, group in enumerate(groups)
    ]
    asked.append(EvalPrompt(prompt="q", task="label", answer="T", answer_format=OneOf(options=("T",)), key="l"))
    context = RewardInputs(genes=genes, labels=("T",))
    sampling = Sampling(seed=0)
    return ValidationRewards(
        asked,
        make_reward({"overlap": {"weight": 2.0}}, context),
        context,
        constrained=True,
        n_samples=2,
        max_tokens=8,
        sampling=sampling,
        unit="donor_id",
    )


def _look(held_out: ValidationRewards, completions: Sequence[str], step: int = 0) -> RewardEval:
    """The look at given answers, two to each prompt."""
    alike, overlap = held_out._compare(list(completions))
    rewards = {"constrained": held_out._rate(list(completions))}
    return RewardEval(step=step, rewards=rewards, diversity={"constrained": alike}, overlap={"constrained": overlap})


def test_rewards_of_a_look_are_means_over_answers_and_prompts() -> None:
    held_out = _held_out()
    first = _look(held_out, [" A C.", " C D."] * 6 + [" T.", " T."])
    assert first.mean("constrained", "overlap") == pytest.approx(0.25)  # a half and nothing
    assert first.mean("constrained") == pytest.approx(0.5)  # twice as much by the weight
    assert first.overlap["constrained"] == pytest.approx(0.25)
    assert first.diversity["constrained"].between_samples == pytest.approx(0.5)
    assert np.isnan(first.rewards["constrained"]["overlap"]).tolist() == [False] * 6 + [True]  # no sentence
    second = _look(held_out, [" A B.", " A C."] * 6 + [" T.", " T."], step=4)
    rows = held_out.table([first, second])
    assert [(row["step"], row["reward"]) for row in rows] == [
        (0, "reward"), (0, "overlap"), (4, "reward"), (4, "overlap")
    ]  # fmt: skip
    assert rows[3]["mean"] == pytest.approx(0.75)
    assert rows[3]["gain"] == rows[3]["gain_low"] == rows[3]["gain_high"] == pytest.approx(0.5)
    assert (rows[3]["prompts"], rows[3]["unit"], rows[3]["units"]) == (6, "prompt", 6)
    again = RewardEval.from_dict(json.loads(json.dumps(second.to_dict())))
    assert again.to_dict() == second.to_dict()
    assert np.isnan(held_out.real_overlap())  # one cell that six prompts ask about is not compared with itself


def test_real_sentences_of_a_type_are_compared_with_each_other() -> None:
    held_out = _held_out()
    held_out._asked = (replace(held_out._asked[0], answer="A C"), *held_out._asked[1:])
    assert held_out.real_overlap() == pytest.approx(0.5)  # A B and A C share one of two words


def test_donors_are_resampled_where_there_are_enough() -> None:
    """A prompt without one keeps prompts as the unit, so the label's prompt is left out here."""
    held_out = _held_out(("a", "b", "c", "d", "e", "e"))
    assert held_out._unit == "prompt"
    held_out = ValidationRewards(
        held_out._asked[:-1],
        held_out._reward,
        held_out._context,
        constrained=True,
        n_samples=2,
        max_tokens=8,
        sampling=Sampling(seed=0),
        unit="donor_id",
    )
    evaluation = _look(held_out, [" A B.", " A B."] * 5 + [" C D.", " C D."])
    row = held_out.table([evaluation])[1]
    assert (row["unit"], row["units"], row["prompts"]) == ("donor_id", 5, 6)
    assert row["mean"] == pytest.approx(5 / 6)
    assert row["low"] < row["mean"] <= row["high"]
