"""Templates: shipped ones keep the rules, broken ones are refused with the reason, the choice is stable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cytoglot.errors import InputError, UnknownNameError
from cytoglot.tasks import Template, TemplateSet, load_templates, tasks

NAMES = ["cell_type_annotation", "cell_generation", "unconditional_generation"]


def template_file(folder: Path, text: str = "Genes: {cell_sentence}. Type:", answer: str = "{cell_type}.") -> Path:
    path = folder / "own.toml"
    path.write_text(
        f'name = "own"\nfields = ["cell_sentence", "num_genes", "cell_sentences"]\nanswer = "{answer}"\n'
        f'[[prompt]]\nname = "first"\ntext = "{text}"\n',
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize("name", NAMES)
def test_each_task_ships_at_least_eleven_training_and_three_held_out_wordings(name: str) -> None:
    templates = load_templates(name)
    assert templates.name == name
    assert len(templates.training) >= 11
    assert len(templates.held_out) >= 3
    assert len({t.text for t in templates.templates}) == len(templates.templates)


@pytest.mark.parametrize("name", NAMES)
def test_every_wording_states_the_number_of_genes(name: str) -> None:
    assert all("num_genes" in t.fields for t in load_templates(name).templates)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_wording_is_the_shortest_of_all(name: str) -> None:
    templates = load_templates(name)
    assert min(templates.templates, key=lambda t: len(t.text)) is templates.training[0]


@pytest.mark.parametrize("name", ["cell_generation", "cell_type_annotation"])
def test_a_wording_that_names_the_answer_would_leak_it(name: str) -> None:
    templates = load_templates(name)
    answer_fields = Template(name="answer", text=templates.answer).fields
    assert not answer_fields & set(templates.fields)


def test_the_choice_is_a_function_of_seed_task_cell_and_epoch_alone() -> None:
    templates = load_templates("cell_generation")
    chosen = [templates.choose("cell_7", seed=3, epoch=e).name for e in range(6)]
    assert chosen == [templates.choose("cell_7", seed=3, epoch=e).name for e in range(6)]
    assert len(set(chosen)) > 1
    assert templates.choose("cell_7", seed=3).name == "sentence"  # frozen: a change here changes every corpus


def test_the_choice_is_even_and_keeps_to_its_pool() -> None:
    templates = load_templates("cell_generation")
    counts = Counter(templates.choose(f"cell_{i}").name for i in range(2800))
    assert set(counts) == {t.name for t in templates.training}
    assert min(counts.values()) > 130  # 200 expected, sd 14
    held_out = {templates.choose(f"cell_{i}", held_out=True).name for i in range(100)}
    assert held_out == {t.name for t in templates.held_out}


def test_a_template_is_found_by_position_and_by_name() -> None:
    templates = load_templates("cell_generation")
    assert templates.get(0).name == "terse"
    assert templates.get("held_out_terse").held_out
    with pytest.raises(UnknownNameError, match=r"unknown template of cell_generation 'ters'; did you mean .*'terse'"):
        templates.get("ters")
    with pytest.raises(InputError, match=r"template 99 of cell_generation does not exist; pass a number from 0 to 13"):
        templates.get(99)


def test_the_fingerprint_follows_the_wording(tmp_path: Path) -> None:
    first = load_templates(template_file(tmp_path))
    assert first.fingerprint == load_templates(template_file(tmp_path)).fingerprint
    assert (
        first.fingerprint != load_templates(template_file(tmp_path, text="Genes: {cell_sentence}. Kind:")).fingerprint
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Genes:{cell_sentence}. Type:", r"must stand after a space"),
        ("{cell_sentence}. Type:", r"must stand after a space"),
        (r"Genes:\n{cell_sentence}. Type:", r"must stand after a space"),
        ("Genes: {cell_sentence}, type:", r"before a full stop, a space or a line break"),
        ("Genes: {cell_sentence}. Type: ", r"neither start nor end in white space"),
        ("", r"must be non-empty"),
        (
            "Genes: {cell_sentence} of {tissue}",
            r"names the fields \['tissue'\]; known: \['cell_sentence', 'num_genes', 'cell_sentences'\]",
        ),
        ("Cells: {cell_sentences}", r"{cell_sentences} must stand at the start of a line"),
        (r"Cells:\n{cell_sentences} Tissue:", r"must stand at .* before a full stop or a line break"),
    ],
)
def test_a_wording_that_breaks_a_rule_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_templates(template_file(tmp_path, text=text))


def test_an_answer_without_its_terminator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the answer of own must end in '.'"):
        load_templates(template_file(tmp_path, answer="{cell_type}"))


def test_a_file_that_is_missing_or_malformed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.toml do not exist"):
        load_templates(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ", encoding="utf-8")
    with pytest.raises(InputError, match=r"not valid TOML"):
        load_templates(broken)
    broken.write_text('name = "x"\nanswer = "{a}."\nfields = []\nprompts = []\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"missing \['prompt'\], unknown \['prompts'\]"):
        load_templates(broken)
    broken.write_text('name = "x"\nanswer = "{a}."\nfields = []\n[[prompt]]\ntext = "a"\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"prompt 0: expected the keys \['name', 'text'\].*missing \['name'\]"):
        load_templates(broken)


def test_names_must_differ_and_one_wording_must_be_for_training() -> None:
    one = Template(name="one", text="Write")
    with pytest.raises(InputError, match=r"distinct names, found more than once: \['one'\]"):
        TemplateSet(name="x", fields=(), answer="{a}.", templates=(one, one))
    with pytest.raises(InputError, match=r"at least one template that is not held out"):
        TemplateSet(name="x", fields=(), answer="{a}.", templates=(Template(name="t", text="W", held_out=True),))


def test_every_registered_task_has_its_templates() -> None:
    assert set(NAMES) <= set(tasks)
    assert all(task.templates.name == name for name, task in tasks.items())
