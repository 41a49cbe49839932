"""What the packages that train ask of each other, by their own metadata."""

from __future__ import annotations

from cytoglot.cli.doctor import examine, training_stack

GOOD = {
    "torch": ("2.9.0+cu130", ()),
    "transformers": ("5.2.0", ("torch>=2.6; extra == 'torch'",)),
    "accelerate": ("1.12.0", ("torch>=2.0",)),
    "peft": ("0.20.0", ("transformers",)),
    "trl": ("1.4.0", ("transformers>=4.56", "vllm<=0.31,>=0.22; extra == 'vllm'", "rich>=13")),
    "vllm": ("0.24.0+cu129", ("transformers<6,>=4.56", "torch==2.9.0")),
}


def row(name: str, **changes: tuple[str, tuple[str, ...]]) -> dict[str, str]:
    return next(line for line in training_stack({**GOOD, **changes}) if line["package"] == name)


def test_versions_that_fit_forbid_nothing() -> None:
    assert all(not line["clashes"] for line in training_stack(GOOD))
    assert row("trl") == {"package": "trl", "version": "1.4.0", "clashes": "", "forbids": ""}


def test_an_absent_package_forbids_what_needs_it() -> None:
    assert row("deepspeed")["version"] == "not installed"
    assert "deepspeed" in row("deepspeed")["forbids"]


def test_a_version_outside_of_an_extra_of_another_package_clashes() -> None:
    line = row("trl", vllm=("0.19.0", ()))
    assert line["clashes"] == "wants vllm<=0.31,>=0.22, found 0.19.0"
    assert "grpo" in line["forbids"]
    without = {name: value for name, value in GOOD.items() if name != "vllm"}
    assert next(line for line in training_stack(without) if line["package"] == "trl")["clashes"] == ""


def test_a_plain_requirement_clashes_too_and_a_local_version_does_not() -> None:
    line = row("vllm", transformers=("6.1.0", ()))
    assert "wants transformers<6,>=4.56, found 6.1.0" in line["clashes"]
    assert "torch" not in line["clashes"]


def test_the_stack_of_this_environment_is_examined() -> None:
    found = {line["package"]: line for line in examine()["training_stack"]}
    assert set(found) >= {"torch", "transformers", "trl", "vllm"}
