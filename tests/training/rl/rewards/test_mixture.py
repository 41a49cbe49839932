from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cytoglot.errors import InputError
from cytoglot.protocols import Reward
from cytoglot.training.rl.rewards import RewardInputs, RewardPrompts, make_reward, rewards
from cytoglot.training.rl.rewards.mixture import CheckedReward

OWN = "own_rewards"


@pytest.fixture(autouse=True)
def _own_rewards_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.delitem(sys.modules, OWN, raising=False)


def columns(n: int, **given: Any) -> dict[str, list[Any]]:
    one = {
        "prompts": "p",
        "task": "cell_generation",
        "answer": "A B",
        "cell_type": "B cell",
        "num_genes": 2,
        "key": "k",
    }
    return {name: [value] * n for name, value in {**one, **given}.items()}


def test_the_sum_is_weighted_and_clipped(context) -> None:
    reward = make_reward({"overlap": {"weight": 2}, f"{OWN}:length": {"weight": 0.5, "clip_high": 3}}, context)
    assert [term.weight for term in reward.terms] == [2, 0.5]
    assert reward([" A B.", " A B C D."], **columns(2)) == pytest.approx([2 * 1 + 0.5 * 2, 2 * 0.5 + 0.5 * 3])
    low = make_reward({f"{OWN}:length": {"clip_low": 5}}, context)
    assert low([" A B."], **columns(1)) == [5]


def test_a_part_that_says_nothing_is_left_out_of_the_sum(context) -> None:
    reward = make_reward({f"{OWN}:nothing_of_short": {}, "overlap": {}}, context)
    assert reward([" A.", " A B."], **columns(2)) == pytest.approx([0.5, 2])
    assert reward([" A.", " A B."], **columns(2, num_genes=0)) == [None, 1]


def test_parts_go_to_the_log_by_name(context) -> None:
    logged: dict[str, float] = {}
    reward = make_reward({"overlap": {}, "label_match": {}}, context)
    reward([" A B.", ""], **columns(2), log_metric=logged.__setitem__)
    assert logged == {"reward/overlap": 0.5}


def test_a_reward_can_be_there_twice_and_be_limited_to_tasks(context) -> None:
    terms = {"truth": {"reward": "overlap"}, "typical": {"reward": "overlap", "against": "profile", "tasks": ["other"]}}
    parts = make_reward(terms, context).parts([" A B."], **columns(1))
    assert parts == {"truth": [1], "typical": [None]}


def test_trl_sees_the_name_of_each_term(context) -> None:
    reward = make_reward({"overlap": {}, f"{OWN}:length": {}}, context)
    assert [term.__name__ for term in reward.terms] == ["overlap", f"{OWN}:length"]


def test_settings_of_an_own_function_are_its_arguments(context) -> None:
    reward = make_reward({"long": {"reward": f"{OWN}:length", "scale": 10, "weight": 0.1}}, context)
    assert reward([" A B C."], **columns(1)) == pytest.approx([3])


def test_an_own_class_of_rewards_has_settings_of_its_own(context) -> None:
    reward = make_reward({f"{OWN}:Brevity": {"words": 3}}, context)
    assert reward([" A B.", ""], **columns(2)) == [1.5, None]
    with pytest.raises(InputError, match=r"reward 'own_rewards:Brevity' has no setting 'word'; did you mean 'words'"):
        make_reward({f"{OWN}:Brevity": {"word": 3}}, context)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", "failed on 2 completions: ZeroDivisionError: division by zero"),
        ("one_too_few", "must return 2 rewards, one per completion, found 1"),
        ("not_a_number", "must return finite numbers, or None to say nothing, found nan for completion 0"),
        ("texts", "must return finite numbers, or None to say nothing, found 'good' for completion 0"),
        ("one_number", "must return a list of 2 rewards, one per completion, found float"),
    ],
)
def test_a_bad_reward_is_named(context, function: str, message: str) -> None:
    reward = make_reward({"mine": {"reward": f"{OWN}:{function}"}}, context)
    with pytest.raises(InputError, match=rf"^reward 'mine' {message}"):
        reward([" A.", " B."], **columns(2))


def test_an_array_of_rewards_is_a_list_too(context) -> None:
    reward = make_reward({"overlap": {}}, context).terms[0]
    checked = CheckedReward("array", lambda completions, **_: np.array([0.5, 2.0]), reward.settings)
    assert checked(["a", "b"]) == [0.5, 2.0]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "needs at least one reward"),
        ({"overlapp": {}}, "unknown reward 'overlapp'; did you mean 'overlap'"),
        ({"overlap": {"wieght": 1}}, "reward 'overlap' has no setting 'wieght'; did you mean 'weight'"),
        ({"overlap": {"weight": -1}}, "setting 'weight' of reward 'overlap': .*greater than 0, found -1"),
        ({"overlap": {"against": "nobody"}}, "setting 'against' of reward 'overlap'"),
        ({"overlap": {"clip_low": 1, "clip_high": 0}}, "settings of reward 'overlap': .*clip_low must be below"),
        ({"no_such_module_x:f": {}}, "module 'no_such_module_x' cannot be imported .ModuleNotFoundError"),
        ({f"{OWN}:lenght": {}}, "has no 'lenght'; did you mean 'length'"),
        ({f"{OWN}:ANSWER": {}}, "must name a function or a class of rewards, found str"),
        ({"x": {"reward": ":f"}}, "is named package.module:function, found ':f'"),
        ({f"{OWN}:length": {"weight": "much"}}, "setting 'weight' of reward 'own_rewards:length'"),
        ({"embedding_distance": {}}, "reward 'embedding_distance': it needs a language model"),
        ({"text_similarity": {}}, "reward 'text_similarity': it needs a text encoder"),
    ],
)
def test_faults_of_a_recipe_are_named(context, terms: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_reward(terms, context)


def test_a_missing_column_and_chat_messages_are_refused(context) -> None:
    reward = make_reward({"overlap": {}}, context)
    given = columns(1)
    del given["num_genes"]
    with pytest.raises(InputError, match=r"reward 'overlap': a reward needs the column 'num_genes'"):
        reward([" A."], **given)
    with pytest.raises(InputError, match=r"column 'task' needs one value per completion: 2, found 1"):
        reward([" A.", " B."], **columns(1))
    with pytest.raises(InputError, match=r"completions must be texts, found list"):
        reward([[{"role": "assistant", "content": "A"}]], **columns(1))  # type: ignore[list-item]


def test_prompts_check_their_columns() -> None:
    with pytest.raises(InputError, match=r"task, answer, cell_type, num_genes, key; num_genes, key not found"):
        RewardPrompts(prompts=("p",), columns={"task": ("t",), "answer": ("a",), "cell_type": ("",)})
    whole = {name: tuple(values * 2) for name, values in columns(1).items() if name != "prompts"}
    with pytest.raises(InputError, match=r"one value per prompt .1., found"):
        RewardPrompts(prompts=("p",), columns=whole)
    assert len(RewardPrompts(prompts=("p", "q"), columns=whole).take([1, 1, 0])) == 3


SETTINGS = {"program_score": {"genes": ["A", "C"]}}
ODD = [
    "",
    " ",
    ".",
    " .",
    "\n\n",
    " A B",
    "A B.",
    " a b.",
    "…",
    "\u200b",
    "\ud800",
    "细胞 🧬 é",
    " A\x00B.",
    "A " * 10_000,
]


@pytest.mark.parametrize("name", [name for name in rewards if name not in {"embedding_distance", "text_similarity"}])
class TestContract:
    """What holds for every registered reward; those that need a model have the same tests beside theirs."""

    @pytest.mark.parametrize("task", ["cell_generation", "cell_type_annotation", "interpretation", "own_task"])
    def test_odd_answers_have_a_reward_in_range_or_none(self, context, name: str, task: str) -> None:
        term = make_reward({name: SETTINGS.get(name, {})}, context).terms[0]
        for n_genes in (0, 2, 100):
            rated = term(ODD, **columns(len(ODD), task=task, num_genes=n_genes))
            assert len(rated) == len(ODD)
            assert all(r is None or rewards[name].low <= r <= rewards[name].high for r in rated)

    @given(st.lists(st.text(alphabet="AB .,x\n", max_size=12), min_size=1, max_size=6))
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_text_has_a_reward_in_range(self, context, name: str, texts: list[str]) -> None:
        reward = rewards[name]
        function = make_reward({name: SETTINGS.get(name, {})}, context).terms[0]
        assert isinstance(function, Reward)
        for value in function(texts, **columns(len(texts))):
            assert value is None or (reward.low <= value <= reward.high and math.isfinite(value))

    def test_it_does_not_depend_on_the_order_of_the_answers(self, context, name: str) -> None:
        function = make_reward({name: SETTINGS.get(name, {})}, context).terms[0]
        answers = [" A B.", " B A.", " C D.", " A A"]
        assert function(answers[::-1], **columns(4)) == function(answers, **columns(4))[::-1]

    def test_it_says_what_it_is(self, context, name: str) -> None:
        assert rewards[name].__doc__
        assert all(field.description for field in rewards[name].settings_type.model_fields.values())


def test_a_context_with_a_gene_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"genes of rewards must be distinct, found 2, 1 of them"):
        RewardInputs(genes=("A", "A"))
