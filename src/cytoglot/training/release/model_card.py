"""The card of a model folder: what a person wants to know before using it, as Markdown, from what the folder holds.

Its head is what the Hugging Face Hub reads. The same folder and evaluation give the same text. No torch here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from cytoglot.atomic import write_text
from cytoglot.cell_model.spec import TRAINING_FILE, CellModelSpec, load_split
from cytoglot.corpus.format.folder import PARTS, Corpus
from cytoglot.data.splits.split import Split
from cytoglot.errors import InputError
from cytoglot.tasks.task import tasks as registered_tasks

CARD = "README.md"
_LISTED = 60
"""labels of a table at most"""
_HUB_LICENCES = {
    "cc0": "cc0-1.0",
    "cc0 1.0": "cc0-1.0",
    "cc by 4.0": "cc-by-4.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc by-sa 4.0": "cc-by-sa-4.0",
    "cc by-nc 4.0": "cc-by-nc-4.0",
    "mit": "mit",
    "apache 2.0": "apache-2.0",
    "apache-2.0": "apache-2.0",
    "gpl-3": "gpl-3.0",
    "gpl-3.0": "gpl-3.0",
}
"""licences as people write them → their identifiers on the hub"""
_SHOWN_METRICS = ("accuracy", "macro_f1", "balanced_accuracy", "exact_match", "gene_overlap", "token_f1", "ece")
"""of an evaluation, in this order; all of it is in its own folder"""


def corpus_facts(corpus: Corpus) -> dict[str, Any]:
    """Return what a card tells of a corpus, plain JSON: cells of each part, sources with their licences."""
    description = corpus.description
    return {
        "fingerprint": description.fingerprint,
        "cells": {part: description.total("n_cells", part) for part in PARTS},
        "sources": [
            {
                "name": source.name,
                "study": source.study,
                "title": source.title,
                "organism": source.organism,
                "licence": source.licence,
                "cells": source.n_kept,
            }
            for source in description.sources
        ],
    }


def write_model_card(folder: str | Path, evaluation: str | Path | None = None) -> Path:
    """Write `README.md` into a model folder and return its path; an older card is replaced.

    Parameters
    ----------
    folder
        A finished model folder. `training.json` may hold beside its history `corpus`, as `corpus_facts` returns it, and
        `validation`, score → value, as `HeldOutTasks.scores` returns it.
    evaluation
        A folder that `cytoglot evaluate` wrote about this very model; its test metrics are shown with their intervals
        beside those of the baselines.

    Raises
    ------
    InputError
        The folder is no finished model folder, or the evaluation cannot be read or is of another model.
    """
    folder = Path(folder)
    facts = _Facts.read(folder)
    results = None if evaluation is None else _read_evaluation(Path(evaluation), facts.spec)
    write_text(folder / CARD, _card(facts, results))
    return folder / CARD


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the folder holds."""

    spec: CellModelSpec
    config: Mapping[str, Any]
    """of the architecture"""
    training: Mapping[str, Any]
    split: Split | None
    n_parameters: int
    has_adapter: bool

    @classmethod
    def read(cls, folder: Path) -> _Facts:
        spec = CellModelSpec.load(folder)
        return cls(
            spec=spec,
            config=_json(folder / "config.json"),
            training=_json(folder / TRAINING_FILE),
            split=load_split(folder),
            n_parameters=_count_parameters(folder),
            has_adapter=(folder / "adapter" / "adapter_config.json").is_file(),
        )

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The whole recipe, or nothing for a model that was not trained here."""
        found: Mapping[str, Any] = self.spec.manifest.get("config", {}).get("recipe", {})
        return found

    @property
    def source(self) -> str:
        """Name of the file or corpus."""
        return str(self.spec.manifest.get("inputs", {}).get("source", "cells"))

    @property
    def base(self) -> str | None:
        """The model that training started from, a folder by its name alone; None for a model from nothing."""
        base = self.recipe.get("model", {}).get("base")
        return None if base is None else base if _is_hub_name(base) else Path(base).name

    @property
    def sources(self) -> Sequence[Mapping[str, Any]]:
        """Sources of the corpus; () for a file."""
        return tuple(self.training.get("corpus", {}).get("sources", ()))


@dataclass(frozen=True, kw_only=True)
class _Results:
    """Test metrics, whoever measured them: rows of task, method, metric, value, low, high, n, unit."""

    rows: Sequence[Mapping[str, Any]]
    not_shown: Mapping[str, str]
    messages: Sequence[str]


def _card(facts: _Facts, results: _Results | None) -> str:
    parts = [
        _head(facts),
        f"# A language model of cells, trained on {facts.source}\n",
        _summary(facts),
        _usage(facts),
        _data(facts),
        _tasks(facts),
        _training(facts),
        _validation(facts),
        _rewards(facts),
        _test(results),
        _limits(facts, results),
        _making(facts),
    ]
    return "\n".join(part for part in parts if part)


def _head(facts: _Facts) -> str:
    stated = {str(source["licence"]).strip().lower() for source in facts.sources}
    head: dict[str, Any] = {
        "license": _hub_licence(stated),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["cytoglot", "single-cell", "cell-sentences", "biology"],
    }
    base = facts.recipe.get("model", {}).get("base")
    if base is not None and _is_hub_name(base):
        head["base_model"] = base
        head["base_model_relation"] = "finetune"
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n"


def _hub_licence(stated: set[str]) -> str:
    """Return the identifier of the one licence of all sources; other for several or an uncommon one."""
    if stated <= {""}:
        return "unknown"
    return _HUB_LICENCES.get(next(iter(stated)), "other") if len(stated) == 1 else "other"


def _summary(facts: _Facts) -> str:
    spec, lora = facts.spec, facts.recipe.get("lora")
    if facts.base is None:
        origin = "It was trained from nothing."
    else:
        revision = facts.recipe.get("model", {}).get("revision")
        pinned = f" (revision `{revision}`)" if revision else ""
        how = f"low-rank adapters of rank {lora['rank']}, merged into the weights" if lora else "all weights"
        origin = f"It was fine-tuned from `{facts.base}`{pinned}: {how}."
    genes = f"{len(spec.vocabulary):,} genes"
    labels = f" and knows {len(spec.labels):,} cell types" if spec.labels else ""
    return (
        f"A causal language model ({facts.config.get('model_type', 'unknown')}, {facts.n_parameters:,} parameters) "
        f"that reads and writes cells as sentences: their expressed genes from highest to lowest. It speaks of {genes}"
        f"{labels}. {origin}\n"
    )


def _usage(facts: _Facts) -> str:
    annotates = (
        'annotated = cg.annotate("cells.h5ad", model)      # cell types with calibrated probabilities\n'
        if facts.spec.labels
        else ""
    )
    writes = (
        f'new = cg.generate(model, "{facts.spec.labels[0]}", n=10)\n'
        if facts.spec.labels and "cell_generation" in facts.spec.tasks
        else ""
    )
    adapter = (
        "\n`adapter/` holds the adapters alone, as `peft` reads them; the weights beside it have them merged in.\n"
        if facts.has_adapter
        else ""
    )
    return (
        "## How to use it\n\n"
        "```python\nimport cytoglot as cg\n\n"
        f'model = cg.load_model("FOLDER")\n{annotates}vectors = cg.embed("cells.h5ad", model)\n{writes}```\n\n'
        "It is a plain `transformers` folder too:\n\n"
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model, tokenizer = (auto.from_pretrained("FOLDER") for auto in (AutoModelForCausalLM, AutoTokenizer))\n'
        "```\n" + adapter
    )


def _data(facts: _Facts) -> str:
    inputs = facts.spec.manifest.get("inputs", {})
    shown = ", ".join(f"{name} `{value}`" for name, value in inputs.items() if name != "source")
    text = f"## Data\n\nSource: {facts.source}" + (f" (fingerprints: {shown})" if shown else "") + ".\n"
    cells = facts.training.get("corpus", {}).get("cells")
    if facts.split is not None:
        cells = {part: len(facts.split.cells(part)) for part in PARTS}
        unit = "by cell" if facts.split.by == "cell" else f"by `{facts.split.by}`, each value in one part only"
        text += f"\nCells were divided {unit}.\n"
    if cells:
        text += "\n" + _table(("part", "cells"), cells.items())
        text += "\nTest cells were never read in training; validation cells ended it and set its temperatures.\n"
    if facts.sources:
        rows = [(s["name"], s["study"], s["organism"], s["licence"] or "not stated", s["cells"]) for s in facts.sources]
        text += "\n" + _table(("source", "study", "organism", "licence", "cells"), rows)
    messages = facts.training.get("messages", ())
    return text + ("\n" + "".join(f"- {message}\n" for message in messages) if messages else "")


def _tasks(facts: _Facts) -> str:
    shares = facts.recipe.get("tasks", {})
    total = sum(shares.values()) or 1
    rows = []
    for name in facts.spec.tasks:
        wordings = registered_tasks[name].templates.training if name in registered_tasks else ()
        shortest = wordings[0].text.replace("\n", " ") if wordings else ""
        share = f"{100 * shares[name] / total:.1f} %" if name in shares else "not stated"
        rows.append((name, share, len(wordings), f"`{shortest}`" if shortest else ""))
    context = "".join(f" {name}: {value}." for name, value in facts.spec.context.items())
    stated = f"\nEvery prompt states{context}\n" if context else ""
    return "## Tasks\n\n" + _table(("task", "share of examples", "wordings", "the shortest one"), rows) + stated


def _training(facts: _Facts) -> str:
    recipe, optim = facts.recipe, facts.recipe.get("optim", {})
    if not recipe:
        return ""
    rows: list[tuple[str, Any]] = [
        ("kind", recipe.get("kind", "sft")),
        ("seeds", _listed(facts.spec.manifest["seeds"])),
    ]
    rows += [(f"lora.{name}", value) for name, value in (recipe.get("lora") or {}).items()]
    if recipe.get("kind") == "grpo":
        rows += [(f"grpo.{name}", value) for name, value in recipe.get("grpo", {}).items()]
    rows += [("sentence.top_genes", recipe.get("sentence", {}).get("top_genes"))]
    rows += [(f"optim.{name}", value) for name, value in optim.items()]
    history = facts.training.get("history", ())
    text = "## Training\n\n" + _table(("setting", "value"), [(name, _value(value)) for name, value in rows])
    if not history:
        return text
    losses = [row["validation_loss"] for row in history if row.get("validation_loss") is not None]
    best = f"; lowest validation loss {min(losses):.4g} nats per example" if losses else ""
    tokens = f" and {history[-1]['tokens']:,} tokens" if history[-1].get("tokens") else ""
    return text + f"\nIt ended after {history[-1]['step']:,} steps{tokens}{best}.\n"


def _validation(facts: _Facts) -> str:
    scores = facts.training.get("validation") or _last_scores(facts.training.get("history", ()))
    calibration = facts.spec.calibration
    text = ""
    if scores:
        rows = [(*name.rsplit(".", 1), f"{value:.3f}") for name, value in sorted(scores.items())]
        text += _table(("task", "metric", "value"), rows)
        text += "\nOn some validation records, without intervals: these values ended the training or were looked at.\n"
    if calibration.n_validation:
        text += (
            f"\nOn {calibration.n_validation:,} validation cells the annotator's temperature became "
            f"{calibration.temperature:.3g}; its loss is then {calibration.validation_loss:.3f} nats per cell. Cells "
            f"whose best label has a probability below {calibration.threshold:.3g} are left unassigned.\n"
        )
    return f"## On validation records\n\n{text.lstrip()}" if text else ""


def _last_scores(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the task metrics of the last look, for folders that hold no others."""
    tasks = [{name: v for name, v in row.items() if "/" not in name} for row in history]  # others are of rewards
    looks = [{name: v for name, v in row.items() if "." in name and v is not None} for row in tasks]
    return next((look for look in reversed(looks) if look), {})


def _rewards(facts: _Facts) -> str:
    """Return what rewards said of the last look at held-out prompts, for a model that was aligned with them."""
    looked = [row for row in facts.training.get("evaluation", ()) if row.get("mean") is not None]
    if not looked:
        return ""
    kept = facts.training.get("kept_step")
    step = looked[-1]["step"] if kept is None else kept
    rows = [
        (
            row["reward"],
            row["answers"],
            _bounded(row, "mean", "low", "high"),
            _bounded(row, "gain", "gain_low", "gain_high"),
        )
        for row in looked
        if row["step"] == step
    ]
    return (
        "## Rewards on held-out prompts\n\n"
        + _table(
            ("reward", "answers", f"mean at step {step:,} (95 % interval)", "gain from the base (95 % interval)"), rows
        )
        + f"\nOn {looked[-1]['prompts']:,} prompts of validation cells, always with the same noise; resampled by "
        f"{looked[-1]['unit']}.\n"
    )


def _bounded(row: Mapping[str, Any], value: str, low: str, high: str) -> str:
    bounds = "" if row[low] is None or row[high] is None else f" ({row[low]:.3f} to {row[high]:.3f})"
    return f"{row[value]:.3f}{bounds}"


def _test(results: _Results | None) -> str:
    if results is None:
        return (
            "## On test records\n\nNot measured yet: `cytoglot evaluate` does, and `cytoglot card FOLDER --evaluation "
            "RESULT` writes the result here.\n"
        )
    order = {name: i for i, name in enumerate(_SHOWN_METRICS)}
    rows = [row for row in results.rows if row["metric"] in order and row["value"] is not None]
    rows = sorted(rows, key=lambda row: (row["task"], order[row["metric"]]))
    shown = [
        (row["task"], row["metric"], row["method"], _with_interval(row), row["n"], row["unit"])
        for row in rows
        if not row["metric"].endswith("_difference")
    ]
    text = "## On test records\n\n" + _table(("task", "metric", "method", "value (95 % interval)", "n", "unit"), shown)
    for name, reason in results.not_shown.items():
        text += f"\n- {name} is not shown: {reason}"
    for message in results.messages:
        text += f"\n- {message}"
    return text.rstrip() + "\n"


def _with_interval(row: Mapping[str, Any]) -> str:
    bounds = [row.get("low"), row.get("high")]
    interval = "" if None in bounds else f" ({bounds[0]:.3f} to {bounds[1]:.3f})"
    return f"{row['value']:.3f}{interval}"


def _limits(facts: _Facts, results: _Results | None) -> str:
    spec, organisms = facts.spec, sorted({str(s["organism"]) for s in facts.sources if s["organism"]})
    organism = spec.context.get("organism")
    species = organisms or ([organism] if organism else [])
    lines = ["Made for research on single cells. It is not for diagnosis or any other clinical use."]
    if spec.labels:
        least = min(spec.label_counts)
        lines.append(
            f"It can only name the {len(spec.labels)} cell types below: a cell of another type gets one of these or, "
            f"below the threshold, none. The rarest was learned from {least:,} "
            f"{'cell' if least == 1 else 'cells'}."
        )
    lines.append(
        "It was trained on cells of " + " and ".join(species) + "; others were never shown."
        if species
        else "The species of its training cells is not stated in its folder."
    )
    words = spec.ranking.top_genes
    length = f"the {words:,} highest genes of a cell" if words else "all expressed genes of a cell"
    lines.append(
        f"A sentence holds {length}, of a vocabulary of {len(spec.vocabulary):,}: genes outside of it and differences "
        "among low genes are not seen. Absolute expression is lost; a rank curve gives an estimate of it."
    )
    if not spec.calibration.n_validation:
        lines.append("Its probabilities are not calibrated: there were no labelled validation cells.")
    else:
        lines.append("Its probabilities are calibrated on cells like those of its training, and on no others.")
    if results is None:
        lines.append("No test result stands here: nothing is claimed of how well it does.")
    text = "## Intended use and limits\n\n" + "".join(f"- {line}\n" for line in lines)
    return text + _labels(spec)


def _labels(spec: CellModelSpec) -> str:
    if not spec.labels:
        return ""
    ids = spec.label_ontology_ids
    rows = [(name, n, ids.get(name, "")) for name, n in zip(spec.labels, spec.label_counts, strict=True)]
    text = "\n" + _table(("cell type", "training cells", "Cell Ontology"), rows[:_LISTED])
    rest = len(rows) - _LISTED
    return text + (f"\nand {rest:,} more, which `cytoglot.json` lists.\n" if rest > 0 else "")


def _making(facts: _Facts) -> str:
    versions = facts.spec.manifest.get("versions", {})
    if not versions:
        return ""
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        "## How it was made\n\nBy `cytoglot train`; `cytoglot.json` holds the whole recipe, the seeds and fingerprints "
        f"of the inputs. Versions: {listed}.\n"
    )


def _read_evaluation(folder: Path, spec: CellModelSpec) -> _Results:
    results, manifest = _json(folder / "results.json"), _json(folder / "manifest.json")
    if "results" not in results:
        raise InputError(f"{folder} is no result of `cytoglot evaluate`; pass the folder that it wrote")
    judged = manifest.get("config", {}).get("model", {})
    if any(judged.get(name) != spec.manifest.get(name) for name in ("config", "seeds", "inputs")):
        raise InputError(f"{folder} holds the evaluation of another model; evaluate this one, or pass its own result")
    card = _json(folder / "data_card.json")
    return _Results(
        rows=results["results"],
        not_shown=results.get("not_shown", {}),
        messages=[*results.get("messages", ()), *card.get("messages", ())],
    )


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); write it again") from error
    return value if isinstance(value, dict) else {}


def _count_parameters(folder: Path) -> int:
    """Return the numbers in the weights, tied ones once, from the heads of the files."""
    n = 0
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as tensors:
                n += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"the weights {path} are damaged ({error}); copy the model folder again") from error
    return n


def _is_hub_name(base: str) -> bool:
    return not Path(base).expanduser().exists() and re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", base) is not None


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_value(item)}" for name, item in value.items()) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.replace("|", "\\|").split())
