"""Rewards of written cells, each against a value worked out by hand."""

from __future__ import annotations

import math

import pytest

from cytoglot.metrics import kendall_tau
from cytoglot.training.rl.rewards import RewardInputs, make_reward


def test_validity_counts_genes_length_and_the_end(rate) -> None:
    assert rate("validity", [" A B C D.", " A B C D", " A B X D.", " A B.", " A B C D E F G H."]) == pytest.approx(
        [1, 0.5, 0.75, 0.5, 0.5]
    )
    assert rate("validity", ["", " .", " A. B C D."]) == pytest.approx([0, 0, 0.75])  # an end within is no gene
    assert rate("validity", [" A B C D"], unended=0) == [0]


def test_validity_of_a_label_and_of_free_text(rate) -> None:
    label = {"task": "cell_type_annotation", "answer": "B cell", "num_genes": 0}
    assert rate("validity", [" B cell.", " b cell.", " Monocyte", " B cell or T."], **label) == [1, 1, 0.5, 0]
    assert rate("validity", [" B cell."], task="interpretation", answer="a text", num_genes=0) == [None]


def test_a_gene_that_ends_like_an_answer_is_not_cut(rate) -> None:
    given = RewardInputs(genes=("A.", "B"))
    assert rate("validity", [" B A.", " B A.."], answer="B A.", num_genes=2, given=given) == [0.5, 1]


def test_distinctness_is_the_share_of_new_words(rate) -> None:
    assert rate("distinctness", [" A B C D.", " A A A A.", " A B A B.", ""]) == pytest.approx([1, 0.25, 0.5, 0])
    assert rate("distinctness", [" A B C A.", " A A A A."], strength=2) == pytest.approx([0.5, 0])


def test_overlap_divides_by_the_longer_of_asked_and_written(rate) -> None:
    answers = [" D C B A.", " A B.", " A B C D E F G H.", " A A A A.", " X Y A B.", ""]
    assert rate("overlap", answers) == pytest.approx([1, 0.5, 0.5, 0.25, 0.5, 0])


def test_overlap_with_the_profile_is_with_the_most_typical_training_genes(rate) -> None:
    # A and B in 3 of 3 cells, D in 2 of 3, then C, E, F, G in one each: C and F at rank 3, C first by name
    assert rate("overlap", [" A B D C.", " A B D F."], against="profile") == pytest.approx([1, 0.75])
    assert rate("overlap", [" A B D C."], against="profile", cell_type="unseen") == [None]


def test_a_task_that_hides_the_type_is_judged_by_all_types(rate) -> None:
    of_all = rate("overlap", [" A B G J."], against="profile", task="unconditional_generation")
    assert of_all == rate("overlap", [" A B G J."], against="profile", cell_type="")


def test_kendall_shares_the_last_rank_ranks_what_was_asked_and_ends_at_minus_one(rate) -> None:
    given = RewardInputs(genes=tuple("ABCDE"))
    hand = 3 / math.sqrt(7 * 9)  # "C A" against "A B C" over ABCDE
    assert rate("kendall_tau_b", [" C A."], answer="A B C", num_genes=3, given=given) == pytest.approx([hand])
    assert rate("kendall_tau_b", [" A B C D.", "", " x y z."], given=given) == pytest.approx([1, -1, -1])
    longer = rate("kendall_tau_b", [" A B C D E F G H I J."])
    assert longer == pytest.approx([1])  # what lies beyond the words asked for is not ranked
    mixed = rate("kendall_tau_b", [" B X A C D."])  # X takes the second of the four words
    assert mixed == pytest.approx([kendall_tau("BAC", "ABCD", "ABCDEFGHIJ")])


def test_diversity_credits_what_an_answer_adds_to_the_group(rate) -> None:
    # overlaps of A B C D, A B C E, F G H I: 3/4, 0, 0 → means 3/8, 3/8, 0; half of their mean is 1/8
    assert rate("diversity", [" A B C D.", " A B C E.", " F G H I."]) == pytest.approx([-0.25, -0.25, 0.125])
    assert rate("diversity", [" A B C D."] * 3) == pytest.approx([-0.5] * 3)
    assert rate("diversity", [" A B C D."]) == [None]
    assert rate("diversity", [" A B C D."] * 2, prompts=["one", "two"]) == [None, None]


def test_words_that_are_no_genes_make_no_answers_alike_or_diverse(rate) -> None:
    assert rate("diversity", [" x y z u.", " x y z u."]) == pytest.approx([0, 0])


def test_overlap_and_diversity_are_greatest_for_the_true_distribution() -> None:
    """The kernel score of the group: cells are {A} or {B} with even chances, whatever mixture is written."""
    context = RewardInputs(genes=("A", "B"))
    reward = make_reward({"overlap": {}, "diversity": {}}, context)

    def score(n_a: int) -> float:
        group = [" A."] * n_a + [" B."] * (40 - n_a)
        columns = {"prompts": ["p"] * 40, "task": ["cell_generation"] * 40, "cell_type": ["t"] * 40}
        rated = [
            reward(group, answer=[truth] * 40, num_genes=[1] * 40, key=["k"] * 40, **columns) for truth in ("A", "B")
        ]
        return sum(value for values in rated for value in values if value is not None) / 80

    assert max(range(41), key=score) == 20
    assert score(20) > score(30) > score(40)


def test_rewards_say_nothing_of_other_answers(rate) -> None:
    label = {"task": "cell_type_annotation", "answer": "B cell", "num_genes": 0}
    for name in ("distinctness", "overlap", "kendall_tau_b", "diversity"):
        assert rate(name, [" B cell.", " A B."], **label) == [None, None], name


def test_a_program_beside_its_controls_by_hand(rate) -> None:
    # weights of four words: 1, .75, .5, .25. With as many controls as there are other genes, all of them are controls.
    settings = {"genes": ("A", "C", "Z"), "controls_per_gene": 8}
    controls = (0.75 + 0.25) / 8  # B and D of the eight others
    assert rate("program_score", [" A B C D.", " B D."], **settings) == pytest.approx(
        [(1 + 0.5) / 2 - controls, -(1 + 0.75) / 8]
    )
    assert rate("program_score", [" A B C D."], direction="down", **settings) == pytest.approx([controls - 0.75])
    assert rate("program_score", ["", " A A A A."], **settings) == pytest.approx([0, 0.5])


def test_programs_by_type_and_controls_of_like_rank(rate, context) -> None:
    by_type = {"genes_of_type": {"B cell": ("C",)}, "controls_per_gene": 1}
    assert rate("program_score", [" C A B D."], cell_type="Monocyte", **by_type) == [None]
    reward = make_reward({"program_score": by_type}, context).terms[0].reward
    (control,) = reward.controls["B cell"]
    assert control in set("DEFGHI")  # C is rarely high; A, B and J usually are


def test_programs_from_files(rate, tmp_path) -> None:
    (tmp_path / "sets.gmt").write_text("FIRST\t\tA\tB\nSECOND\t\tI\tJ\n")
    (tmp_path / "markers.tsv").write_text(
        "species\tCL_ID\tmarker\tmarker_type\tECs_global\tSPs_global\nHuman\tCL:0000236\tA\tpositive\t3\t1\n"
    )
    gmt = str(tmp_path / "sets.gmt")
    high = rate("program_score", [" I J A B."], gmt=gmt, gene_set="SECOND")
    assert high[0] > rate("program_score", [" I J A B."], gmt=gmt, gene_set="FIRST")[0]
    marked = rate("program_score", [" A C D E.", " C D E A."], markers=str(tmp_path / "markers.tsv"))
    assert marked[0] > marked[1] > -1


def test_faults_of_a_program_are_named(rate) -> None:
    with pytest.raises(ValueError, match=r"reward 'program_score'.*exactly one of genes"):
        rate("program_score", [" A."])
    with pytest.raises(ValueError, match=r"reward 'program_score': none of the program's genes is in the vocabulary"):
        rate("program_score", [" A."], genes=("NOPE",))
    with pytest.raises(ValueError, match=r"gmt and gene_set go together"):
        rate("program_score", [" A."], gmt="sets.gmt")
