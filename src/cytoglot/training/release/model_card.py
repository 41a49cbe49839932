"""The card of a model folder: what a person wants to know before using it, as Markdown, from what the folder holds.

Its head is what the Hugging Face Hub reads. The same folder and evaluation give the same text. No torch here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from cytoglot.atomic import write_text
from cytoglot.cards import render_card
from cytoglot.cell_model.spec import TRAINING_FILE, CellModelSpec, load_split
from cytoglot.corpus.format.folder import PARTS, Corpus
from cytoglot.errors import InputError
from cytoglot.metrics.uncertainty import interval_note
from cytoglot.tasks.task import tasks as registered_tasks

CARD = "README.md"
_HUB_LICENCES = ("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "mit", "apache-2.0", "gpl-3.0")
"""identifiers on the hub, as people write licences too, but for case and spaces"""
_SHOWN_METRICS = ("accuracy", "macro_f1", "balanced_accuracy", "exact_match", "gene_overlap", "token_f1", "ece")
"""of an evaluation, in this order; all of it is in its own folder"""


def corpus_facts(corpus: Corpus) -> dict[str, Any]:
    """Return what a card tells of a corpus, plain JSON: cells of each part, sources with their licences."""
    description = corpus.description
    told = ("name", "study", "title", "organism", "licence")
    return {
        "fingerprint": description.fingerprint,
        "cells": {part: description.total("n_cells", part) for part in PARTS},
        "sources": [
            {name: getattr(source, name) for name in told} | {"cells": source.n_kept} for source in description.sources
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
    spec = CellModelSpec.load(folder)
    results = None if evaluation is None else _read_evaluation(Path(evaluation), spec)
    content = _content(folder, spec)
    write_text(folder / CARD, render_card(__package__, "model_card.md.j2", **content, results=results))
    return folder / CARD


def _content(folder: Path, spec: CellModelSpec) -> dict[str, Any]:
    """Return what the template shows, from the files of the folder."""
    training, split = _json(folder / TRAINING_FILE), load_split(folder)
    inputs: Mapping[str, Any] = spec.manifest.get("inputs", {})
    # Nothing for a model that was not trained here.
    recipe: Mapping[str, Any] = spec.manifest.get("config", {}).get("recipe", {})
    start = recipe.get("model", {})
    base = start.get("base")
    corpus = training.get("corpus", {})
    sources = corpus.get("sources", ())
    # The one licence of all sources; other for several or an uncommon one.
    stated = {"-".join(str(source["licence"]).lower().split()) for source in sources}
    stated = {{"cc0": "cc0-1.0", "gpl-3": "gpl-3.0"}.get(name, name) for name in stated}
    licence = "unknown" if stated <= {""} else "other"
    if len(stated) == 1 and stated <= set(_HUB_LICENCES):
        (licence,) = stated
    head: dict[str, Any] = {
        "license": licence,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["cytoglot", "single-cell", "cell-sentences", "biology"],
    }
    if base is not None and _is_hub_name(base):
        head |= {"base_model": base, "base_model_relation": "finetune"}
    n_parameters = 0  # in the weights, tied ones once, from the heads of the files
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as tensors:
                shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"the weights {path} are damaged ({error}); copy the model folder again") from error
        n_parameters += sum(map(math.prod, shapes))
    organism = spec.context.get("organism")
    history = training.get("history", ())
    losses = [row["validation_loss"] for row in history if row.get("validation_loss") is not None]
    scores = training.get("validation")
    if not scores:  # an older folder: the task metrics of the last evaluation; names with a slash are of rewards
        found = ({n: v for n, v in row.items() if "." in n and "/" not in n and v is not None} for row in history)
        scores = next((evaluation for evaluation in reversed(list(found)) if evaluation), {})
    shares = recipe.get("tasks", {})
    tasks = []
    for name in spec.tasks:
        wordings = registered_tasks[name].templates.training if name in registered_tasks else ()
        share = f"{100 * shares[name] / (sum(shares.values()) or 1):.1f} %" if name in shares else "not stated"
        tasks.append((name, share, len(wordings), f"`{wordings[0].text}`" if wordings else ""))
    sections = ["lora", *(["grpo"] if recipe.get("kind") == "grpo" else [])]
    settings: list[tuple[str, Any]] = [
        ("kind", recipe.get("kind", "sft")),
        ("seeds", _listed(spec.manifest.get("seeds", {}))),
        *((f"{section}.{name}", value) for section in sections for name, value in (recipe.get(section) or {}).items()),
        ("sentence.top_genes", recipe.get("sentence", {}).get("top_genes")),
        *((f"optim.{name}", value) for name, value in recipe.get("optim", {}).items()),
    ]
    ids = spec.label_ontology_ids
    return {
        "head": head,
        "spec": spec,
        "source": inputs.get("source", "cells"),
        "model_type": _json(folder / "config.json").get("model_type", "unknown"),
        "n_parameters": n_parameters,
        "base": base if base is None or _is_hub_name(base) else Path(base).name,
        "revision": start.get("revision"),
        "lora": recipe.get("lora"),
        "has_adapter": (folder / "adapter" / "adapter_config.json").is_file(),
        "fingerprints": ", ".join(f"{name} `{value}`" for name, value in inputs.items() if name != "source"),
        "split_by": None if split is None else split.by,
        "cells": corpus.get("cells") if split is None else {part: len(split.cells(part)) for part in PARTS},
        "sources": [(s["name"], s["study"], s["organism"], s["licence"] or "not stated", s["cells"]) for s in sources],
        "species": sorted({str(s["organism"]) for s in sources if s["organism"]}) or ([organism] if organism else []),
        "messages": training.get("messages", ()),
        "tasks": tasks,
        "settings": [(name, _value(value)) for name, value in settings] if recipe else [],
        "history": history,
        "lowest_loss": min(losses, default=None),
        "scores": [(*name.rsplit(".", 1), f"{value:.3f}") for name, value in sorted(scores.items())],
        "rewards": _rewards(training),
        "labels": [(name, n, ids.get(name, "")) for name, n in zip(spec.labels, spec.label_counts, strict=True)],
        "versions": _listed(spec.manifest.get("versions", {})),
    }


def _rewards(training: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what rewards said of the last look at held-out prompts, for a model that was aligned with them."""
    looked = [row for row in training.get("evaluation", ()) if row.get("mean") is not None]
    if not looked:
        return None
    kept = training.get("last_good_step", training.get("kept_step"))  # as earlier versions called it
    step = looked[-1]["step"] if kept is None else kept
    rows = [
        (
            row["reward"],
            row["answers"],
            _bounded(row["mean"], row["low"], row["high"]),
            _bounded(row["gain"], row["gain_low"], row["gain_high"]),
        )
        for row in looked
        if row["step"] == step
    ]
    return {"rows": rows, "step": step, "prompts": looked[-1]["prompts"], "unit": looked[-1]["unit"]}


def _bounded(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _read_evaluation(folder: Path, spec: CellModelSpec) -> dict[str, Any]:
    """Return the rows of the test metrics, and notes below them."""
    results, manifest = _json(folder / "results.json"), _json(folder / "manifest.json")
    if "results" not in results:
        raise InputError(f"{folder} is no result of `cytoglot evaluate`; pass the folder that it wrote")
    judged = manifest.get("config", {}).get("model", {})
    if any(judged.get(name) != spec.manifest.get(name) for name in ("config", "seeds", "inputs")):
        raise InputError(f"{folder} holds the evaluation of another model; evaluate this one, or pass its own result")
    order = {name: i for i, name in enumerate(_SHOWN_METRICS)}
    rows = [row for row in results["results"] if row["metric"] in order and row["value"] is not None]
    rows.sort(key=lambda row: (row["task"], order[row["metric"]]))
    return {
        "rows": [
            (
                row["task"],
                row["metric"],
                row["method"],
                _bounded(row["value"], row.get("low"), row.get("high")),
                row["n"],
                row["unit"],
            )
            for row in rows
        ],
        "notes": [
            *(interval_note(unit) for unit in dict.fromkeys(row["unit"] for row in rows)),
            *(f"{name} is not shown: {reason}" for name, reason in results.get("not_shown", {}).items()),
            *results.get("messages", ()),
            *_json(folder / "data_card.json").get("messages", ()),
        ],
    }


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); write it again") from error
    return value if isinstance(value, dict) else {}


def _is_hub_name(base: str) -> bool:
    return not Path(base).expanduser().exists() and re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", base) is not None


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_value(item)}" for name, item in value.items()) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
