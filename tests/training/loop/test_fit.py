"""Training: a step does not depend on how it is cut up, a run not on being broken off; and what can go wrong."""

from __future__ import annotations

import copy
import errno
import json
import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from numbered_batches import NumberedBatches, collate
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig, PreTrainedModel, TrainerCallback
from transformers.integrations import integration_utils

from cytoglot.errors import InputError, NotFiniteError
from cytoglot.lm.model.language_model import LanguageModel
from cytoglot.lm.model.tokenizer import build_tokenizer
from cytoglot.manifest import Manifest
from cytoglot.training.loop.batches import ReadAhead
from cytoglot.training.loop.callbacks import History
from cytoglot.training.loop.fit import Run, can_pack, fit, start_model
from cytoglot.training.loop.loss import loss_sum
from cytoglot.training.loop.trainer import HeldOutScores, TrainingData, make_optimizer, make_schedule
from cytoglot.training.recipe import TrainRecipe

TOKENIZER = build_tokenizer(["ACTB", "B2M"], ["Cell type: B cell."], n_subwords=300)
STEPS = 8


class Examples(Dataset[dict[str, Any]]):
    """Random ids of 5 to 24 tokens; what example i is depends on i alone."""

    def __init__(self, n: int, *, first: int = 0) -> None:
        self._n, self._first = n, first

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i >= self._n:
            raise IndexError(i)
        rng = torch.Generator().manual_seed(self._first + i)
        length = int(torch.randint(5, 25, (), generator=rng))
        weights = torch.rand(length, generator=rng)
        weights[: length // 2] = 0
        ids = torch.randint(3, len(TOKENIZER), (length,), generator=rng)
        return {"input_ids": ids, "weights": weights, "about": f"cell {i}"}


class BrokenOffError(Exception): ...


class BreaksOff(NumberedBatches):
    """Raises before it gives a batch."""

    def __init__(self, *arguments: Any, at: int | None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._at = at

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(super().__iter__()):
            if number == self._at:
                raise BrokenOffError
            yield batch


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=1,
        )
        return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module")
def base_folder(base: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    base.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def recipe(*, lora: Mapping[str, Any] | None = None, base: Path | None = None, **optim: Any) -> TrainRecipe:
    settings = {"steps": STEPS, "batch_size": 12, "learning_rate": 1e-2, "evaluate_every": 4, "patience": None}
    return TrainRecipe.model_validate(
        {"optim": {**settings, **optim}, "lora": lora, "model": {"base": None if base is None else str(base)}}
    )


def run_of(folder: Path, settings: TrainRecipe, *, seed: int = 0) -> Run:
    return Run(folder=folder, recipe=settings, manifest=Manifest(command="train"), seed=seed, device="cpu")


def trained(
    folder: Path,
    base: PreTrainedModel,
    settings: TrainRecipe,
    *,
    break_at: int | None = None,
    held_out: HeldOutScores | None = None,
    ahead: bool = False,
    validates: bool = True,
) -> tuple[LanguageModel, History]:
    run, optim = run_of(folder, settings), settings.optim
    run.work.mkdir(parents=True, exist_ok=True)
    lm = start_model(run, lambda: (copy.deepcopy(base), TOKENIZER))
    packed = can_pack(lm, optim, auto=False)
    layout = partial(collate, pad_token_id=2, row_tokens=64 if packed else None)
    per_step = optim.batch_size * optim.gradient_accumulation
    batches = BreaksOff(Examples(optim.steps * per_step), layout, batch_size=optim.batch_size, at=break_at)
    held = NumberedBatches(Examples(20, first=10_000), layout, batch_size=8)
    data = TrainingData(
        batches=ReadAhead(batches) if ahead else batches,
        validation=list(held) if validates else (),
        held_out=held_out,
    )
    return fit(run, lm, data)


def weights(lm: LanguageModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in lm.model.parameters() if p.requires_grad])


def losses(history: History) -> list[float]:
    return [row["train_loss"] for row in history.rows if row["train_loss"] is not None]  # type: ignore[misc]


def test_a_step_does_not_depend_on_how_it_is_cut_up(base: PreTrainedModel, tmp_path: Path) -> None:
    """Batches of other sizes, and rows that hold several examples: the step is the same to rounding."""
    cuts = {
        "whole": recipe(batch_size=12),
        "halves": recipe(batch_size=6, gradient_accumulation=2),
        "quarters": recipe(batch_size=3, gradient_accumulation=4),
        "packed": recipe(batch_size=12, packing="on"),
        "packed quarters": recipe(batch_size=3, gradient_accumulation=4, packing="on"),
    }
    done = {name: trained(tmp_path / name, base, cut) for name, cut in cuts.items()}
    lm, history = done.pop("whole")
    start = torch.cat([p.detach().flatten() for p in base.parameters()])
    assert (weights(lm) - start).abs().max() > 1e-2
    for name, (other, its_history) in done.items():
        assert losses(its_history) == pytest.approx(losses(history), rel=1e-6), name
        torch.testing.assert_close(weights(other), weights(lm), rtol=0, atol=2e-6)
        assert its_history.n_tokens == history.n_tokens
        found, expected = its_history.rows[-1]["validation_loss"], history.rows[-1]["validation_loss"]
        assert found == pytest.approx(expected, rel=1e-6)


def test_the_first_loss_is_the_mean_over_the_examples_of_the_step(base: PreTrainedModel, tmp_path: Path) -> None:
    _, history = trained(tmp_path, base, recipe(steps=1, batch_size=3, gradient_accumulation=4))
    total = 0.0
    for one in Examples(12):
        logits_tv = base(input_ids=one["input_ids"][None]).logits[0]
        loss_t = torch.nn.functional.cross_entropy(logits_tv[:-1], one["input_ids"][1:], reduction="none")
        total += float((loss_t * one["weights"][1:]).sum().detach())
    assert losses(history)[0] == pytest.approx(total / 12, rel=1e-5)
    assert history.n_tokens == sum(len(one["input_ids"]) for one in Examples(12))


KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "averaged": {"weight_average": 0.5},
    "accumulated": {"batch_size": 6, "gradient_accumulation": 2},
    "packed": {"packing": "on"},
    "recomputed": {"gradient_checkpointing": True},
    "lora": {"lora": {"rank": 2, "dropout": 0.3}},
    "lora with vectors": {"lora": {"rank": 2, "train_vectors": True}, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_broken_off_ends_as_the_unbroken_one_to_the_last_bit(
    base: PreTrainedModel, base_folder: Path, tmp_path: Path, kind: str
) -> None:
    settings = recipe(**KINDS[kind], base=base_folder if "lora" in kind else None)
    n_batches = settings.optim.gradient_accumulation * STEPS
    whole, history = trained(tmp_path / "whole", base, settings)
    with pytest.raises(BrokenOffError):
        trained(tmp_path / "broken", base, settings, break_at=n_batches * 3 // 4)
    assert (tmp_path / "broken" / ".work" / "checkpoint-4").is_dir()
    torch.manual_seed(99)  # another process
    resumed, again = trained(tmp_path / "broken", base, settings, ahead=True)
    assert torch.equal(weights(whole), weights(resumed))
    assert losses(history) == losses(again)
    assert history.n_tokens == again.n_tokens
    assert [row["validation_loss"] for row in history.rows] == [row["validation_loss"] for row in again.rows]


class Scores:
    """Scores by number of the evaluation; the second is best."""

    def __init__(self, values: Sequence[float], direction: str) -> None:
        self._values, self._direction, self.evaluations = values, direction, 0

    def scores(self, lm: LanguageModel) -> Mapping[str, float]:
        assert not lm.model.training
        self.evaluations += 1
        return {"task.metric": self._values[self.evaluations - 1], "task.other": 0.5}

    def better(self, name: str) -> str:
        assert name == "task.metric"
        return self._direction


@pytest.mark.parametrize(("values", "direction"), [((0.1, 0.4, 0.3, 0.2), "higher"), ((9.0, 4.0, 5.0, 6.0), "lower")])
def test_a_held_out_score_ends_the_training_and_the_best_weights_are_kept(
    base: PreTrainedModel, tmp_path: Path, values: Sequence[float], direction: str
) -> None:
    scores = Scores(values, direction)
    settings = recipe(steps=20, evaluate_every=2, patience=2, stop_on="task.metric", weight_average=0.0)
    lm, history = trained(tmp_path / "m", base, settings, held_out=scores, validates=direction == "higher")
    evaluations = [row for row in history.rows if "task.metric" in row]
    assert [row["task.metric"] for row in evaluations] == list(values)
    assert [row["step"] for row in evaluations] == [2, 4, 6, 8]
    assert all(row["task.other"] == 0.5 for row in evaluations)
    straight, _ = trained(
        tmp_path / "n", base, settings.model_copy(), break_at=None, held_out=Scores(values, direction)
    )
    assert torch.equal(weights(lm), weights(straight))
    best = trained_for(4, base, settings)
    assert torch.equal(weights(lm), best)
    again, _ = trained(tmp_path / "m", base, settings, held_out=scores)  # broken off after its last evaluation
    assert scores.evaluations == 4
    assert torch.equal(weights(again), weights(lm))


def trained_for(n_steps: int, base: PreTrainedModel, settings: TrainRecipe) -> torch.Tensor:
    """The weights after some steps of a run, by a plain loop."""
    model = copy.deepcopy(base).train()
    optimizer = make_optimizer(model, settings.optim, from_nothing=True)
    schedule = make_schedule(optimizer, settings.optim)
    examples = NumberedBatches(Examples(n_steps * 12), partial(collate, pad_token_id=2), batch_size=12)
    for batch in examples:
        (loss_sum(model, batch) / torch.tensor(12)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optim.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_only_a_score_that_is_measured_can_end_the_training(base: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stop_on is 'task.metric', but nothing is held out"):
        trained(tmp_path, base, recipe(stop_on="task.metric"))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", (0.5, 1, 1, 1, 1, 1)),
        ("linear", (0.5, 1, 0.75, 0.5, 0.25, 0)),
        ("cosine", (0.5, 1, 0.8536, 0.5, 0.1464, 0)),
    ],
)
def test_learning_rates(base: PreTrainedModel, schedule: str, expected: Sequence[float]) -> None:
    optim = recipe(schedule=schedule, steps=10, warmup_share=0.2, word_learning_rate_ratio=3).optim
    optimizer = make_optimizer(copy.deepcopy(base), optim, from_nothing=True)
    steps = make_schedule(optimizer, optim)
    rates = []
    for _ in range(10):
        optimizer.step()
        steps.step()
        rates.append([group["lr"] / optim.learning_rate for group in optimizer.param_groups])
    found = [rates[i] for i in (0, 1, 3, 5, 7, 9)]
    for (vectors, matrices, norms), value in zip(found, expected, strict=True):
        assert (vectors, matrices, norms) == pytest.approx((3 * value, value, value), abs=1e-3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, optim.weight_decay, 0]


# Memory.


class Memory:
    """A model that fails on more than `room` tokens, in the forward or in the backward pass."""

    def __init__(self, model: torch.nn.Module, room: int, monkeypatch: pytest.MonkeyPatch, *, where: str) -> None:
        self.failures, self._room, self._where = 0, room, where
        forward = type(model).forward

        def limited(module: torch.nn.Module, **inputs: Any) -> Any:
            done = forward(module, **inputs)  # type: ignore[arg-type]
            if inputs["input_ids"].numel() > room:
                if where == "forward":
                    self.fail()
                done.logits.register_hook(self.fail)
            return done

        monkeypatch.setattr(type(model), "forward", limited)

    def fail(self, _: Any = None) -> None:
        self.failures += 1
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("packing", ["off", "on"])
def test_a_batch_without_memory_halves_itself_says_so_and_has_the_same_loss(
    base: PreTrainedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
    packing: str,
) -> None:
    settings = recipe(batch_size=6, gradient_accumulation=2, packing=packing)
    expected, history = trained(tmp_path / "roomy", base, settings)
    memory = Memory(base, 100, monkeypatch, where=where)
    with caplog.at_level(logging.WARNING, logger="cytoglot"):
        lm, its_history = trained(tmp_path / "tight", base, settings)
    said = [record.message for record in caplog.records]
    assert 1 <= memory.failures <= 3  # remembered: not in every step
    assert len(said) == memory.failures
    assert "out of memory at step 1; batches of 6 examples go on in 2 parts" in said[0]
    assert losses(its_history) == pytest.approx(losses(history), rel=1e-5)
    torch.testing.assert_close(weights(lm), weights(expected), rtol=0, atol=1e-5)


def test_a_single_example_without_memory_is_an_error(
    base: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Memory(base, 3, monkeypatch, where="forward")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trained(tmp_path, base, recipe())
    assert "a single example does not fit" in caught.value.__notes__[0]


# Numbers.


def test_a_loss_that_is_no_number_stops_before_the_weights_take_it_up(base: PreTrainedModel, tmp_path: Path) -> None:
    broken = copy.deepcopy(base)
    target = Examples(60)[41]["input_ids"][-2]  # an example of the fourth step
    with torch.no_grad():
        broken.get_input_embeddings().weight[target] = float("nan")
    used = [i for i in range(36) if target in Examples(60)[i]["input_ids"]]
    step = (min(used, default=41)) // 12 + 1
    with pytest.raises(
        NotFiniteError, match=rf"finite loss and gradient at step {step}.*not_finite-step-{step}-"
    ) as caught:
        trained(tmp_path, broken, recipe(evaluate_every=1, max_grad_norm=0.0))
    file = tmp_path / ".work" / f"not_finite-step-{step}-process-0.json"
    assert str(file) in str(caught.value)
    kept = json.loads(file.read_text())
    assert kept["step"] == step
    (batch,) = kept["batches"]
    assert batch["loss"] == "nan"
    assert batch["examples"] == [f"cell {i}" for i in range(12 * step - 12, 12 * step)]
    assert len(batch["rows"]) == 12


# Checkpoints.


@pytest.fixture
def broken_off(base: PreTrainedModel, tmp_path: Path) -> Path:
    """A run that was broken off after its second checkpoint."""
    with pytest.raises(BrokenOffError):
        trained(tmp_path / "m", base, recipe(evaluate_every=2), break_at=6)
    assert sorted(p.name for p in (tmp_path / "m" / ".work").glob("*-*")) == ["checkpoint-4", "checkpoint-6"]
    return tmp_path / "m"


class _Payload:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._mark,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    base: PreTrainedModel, broken_off: Path, tmp_path: Path, name: str, zipped: bool
) -> None:
    file = broken_off / ".work" / "checkpoint-6" / name
    payload = _Payload(tmp_path / "was_run")
    if zipped:
        torch.save({"state": payload}, file)
    else:
        file.write_bytes(pickle.dumps({"state": payload}, protocol=2))
    with pytest.raises(InputError, match=r"checkpoint-6 holds other things than numbers .* delete it"):
        trained(broken_off, base, recipe(evaluate_every=2))
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt", "history.json", "weight_average.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(
    base: PreTrainedModel, broken_off: Path, tmp_path: Path, name: str
) -> None:
    expected, _ = trained(tmp_path / "whole", base, recipe(evaluate_every=2))
    file = broken_off / ".work" / "checkpoint-6" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=r"checkpoint-6.* is damaged .* goes on from the checkpoint before"):
        trained(broken_off, base, recipe(evaluate_every=2))
    for part in (broken_off / ".work" / "checkpoint-6").iterdir():
        part.unlink()
    lm, _ = trained(broken_off, base, recipe(evaluate_every=2))
    assert torch.equal(weights(lm), weights(expected))


def test_a_checkpoint_of_another_vocabulary_or_of_other_weights_is_refused(
    base: PreTrainedModel, broken_off: Path
) -> None:
    wider = copy.deepcopy(base)
    wider.resize_token_embeddings(len(TOKENIZER) + 1)
    with pytest.raises(InputError, match=r"checkpoint-6 is of another run: expected vocabulary \d+, found \d+"):
        trained(broken_off, wider, recipe(evaluate_every=2))
    other = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=len(TOKENIZER), n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(InputError, match=r"checkpoint-6 is of another run: expected trained weights \d+, found"):
        trained(broken_off, other, recipe(evaluate_every=2))


@pytest.mark.parametrize("writer", ["save_file", "torch.save", "write_json"])
def test_a_full_disk_leaves_the_checkpoint_before_and_the_run_goes_on_from_it(
    base: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    expected, _ = trained(tmp_path / "whole", base, recipe(evaluate_every=2))
    n_written = 0

    def full(*arguments: Any, **options: Any) -> None:
        nonlocal n_written
        n_written += 1
        if n_written > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*arguments, **options)

    place = "torch.save" if writer == "torch.save" else f"cytoglot.training.loop.trainer.{writer}"
    module, name = place.rsplit(".", 1)
    original = getattr(__import__(module, fromlist=[name]), name)
    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        if writer != "save_file":
            n_written = -1 if writer == "write_json" else -2  # two or three files of the first checkpoint
        with pytest.raises(InputError, match=r"the checkpoint of step 4 cannot be written .* No space left") as caught:
            trained(tmp_path / "m", base, recipe(evaluate_every=2))
    assert isinstance(caught.value.__cause__, OSError)
    assert sorted(p.name for p in (tmp_path / "m" / ".work").iterdir()) == ["checkpoint-2", "manifest.json"]
    lm, _ = trained(tmp_path / "m", base, recipe(evaluate_every=2))
    assert torch.equal(weights(lm), weights(expected))


# The rest.


def test_a_model_is_given_back_as_it_was_but_for_its_weights(base: PreTrainedModel, tmp_path: Path) -> None:
    cached = base.config.use_cache
    lm, _ = trained(tmp_path, base, recipe(steps=2, bf16=True, gradient_checkpointing=True))
    assert lm.model.config.use_cache is cached is True
    assert not lm.model.training
    assert not lm.model.is_activation_checkpointing
    assert lm.model(input_ids=torch.tensor([[3, 4]])).logits.dtype == torch.float32
    assert lm.model.forward.__func__ is type(lm.model).forward


def test_a_tracker_that_is_not_there_is_named(base: PreTrainedModel, tmp_path: Path) -> None:
    settings = recipe(steps=2).model_copy(update={"report_to": ("nowhere",)})
    with pytest.raises(InputError, match=r"report_to nowhere: .*nowhere is not supported"):
        trained(tmp_path, base, settings)


def test_a_tracker_is_told_losses_and_scores(
    base: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, float]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            told.append(dict(logs or {}))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tracker", Tracker)
    settings = recipe(steps=4, evaluate_every=2).model_copy(update={"report_to": ("tracker",)})
    trained(tmp_path, base, settings, held_out=Scores((0.1, 0.2), "higher"))
    assert [logs["eval_task.metric"] for logs in told if "eval_task.metric" in logs] == [0.1, 0.2]
    assert all({"loss", "learning_rate", "grad_norm"} <= logs.keys() for logs in told if "loss" in logs)
    assert len([logs for logs in told if "loss" in logs]) == 4


def test_adapters_learn_slower_by_default(base_folder: Path) -> None:
    made = TrainRecipe.model_validate({"lora": {}, "model": {"base": str(base_folder)}})
    assert made.optim.learning_rate == 2e-4
    c2s = TrainRecipe.model_validate({"lora": {}, "model": {"base": str(base_folder)}, "preset": "c2s"})
    assert c2s.optim.learning_rate == 1e-5


def test_packing_is_refused_or_left_out_where_examples_would_see_each_other() -> None:
    model = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2))
    lm = LanguageModel(model=model, tokenizer=TOKENIZER)
    with pytest.raises(InputError, match="in a bloom model examples of one row see each other"):
        can_pack(lm, recipe(packing="on").optim, auto=True)
    assert not can_pack(lm, recipe(packing="auto").optim, auto=True)


def test_batches_of_several_processes_are_those_of_one() -> None:
    """Steps of 12 examples, in two batches: in one process of 6, in two of 3."""
    layout = partial(collate, pad_token_id=2)
    one = list(NumberedBatches(Examples(24), layout, batch_size=6))
    two = [list(NumberedBatches(Examples(24), layout, batch_size=3, rank=rank, world=2)) for rank in range(2)]
    for step, batch in enumerate(one):
        assert batch["about"] == two[0][step]["about"] + two[1][step]["about"]


def test_reading_ahead_gives_the_same_batches_and_the_position_of_what_was_given() -> None:
    layout = partial(collate, pad_token_id=2)
    plain = [batch["about"] for batch in NumberedBatches(Examples(30), layout, batch_size=3)]
    ahead = ReadAhead(NumberedBatches(Examples(30), layout, batch_size=3))
    given = []
    for batch in ahead:
        given.append(batch["about"])
        if len(given) == 4:
            break
    state = json.loads(json.dumps(ahead.state_dict()))
    assert state == {"examples": 12}
    other = ReadAhead(NumberedBatches(Examples(30), layout, batch_size=3))
    other.load_state_dict(state)
    assert given + [batch["about"] for batch in other] == plain


def test_a_fault_of_the_reader_is_raised_where_its_batch_would_be_given() -> None:
    source = BreaksOff(Examples(30), partial(collate, pad_token_id=2), batch_size=3, at=2)
    given = iter(ReadAhead(source))
    assert [next(given)["n_examples"] for _ in range(2)] == [3, 3]
    with pytest.raises(BrokenOffError):
        next(given)
