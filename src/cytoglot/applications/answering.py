"""Answers to a file of prompts, to a file: any model, any backend, one machine or many, killed and gone on with."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from cytoglot.answer_format import AnswerFormat, FreeText, GeneratedAnswer, OneOf
from cytoglot.applications.parquet_parts import PartsReport, map_parts, n_parts_done
from cytoglot.cell_model.load import CellModel
from cytoglot.engines import Engine
from cytoglot.errors import InputError, UnknownNameError
from cytoglot.lm.generation.sampling import Sampling
from cytoglot.lm.model.fingerprint import source_fingerprint
from cytoglot.lm.model.load import load_model
from cytoglot.lm.model.tokenizer import encode_prompts
from cytoglot.protocols import AnswerSampler, AnswerScorer, TextGenerator
from cytoglot.texts import read_text, storable

logger = logging.getLogger(__name__)

Backend = Literal["transformers", "vllm", "openai"]
_SURROGATE = re.compile("[\ud800-\udfff]")
BACKENDS: tuple[Backend, ...] = get_args(Backend)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts, each with an id of its own, which also names its noise."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.texts) or not self.ids:
            raise InputError(
                f"expected as many ids as prompts and at least one, found {len(self.ids)}, {len(self.texts)}"
            )
        if len(set(self.ids)) < len(self.ids):
            seen: set[str] = set()
            repeated = next(one for one in self.ids if one in seen or seen.add(one))  # type: ignore[func-returns-value]
            raise InputError(
                f"the ids of prompts must be distinct, found {len(self.ids) - len(set(self.ids))} repeated, such as "
                f"{repeated!r}; an id names the noise of its prompt"
            )
        broken = [one for one, text in zip(self.ids, self.texts, strict=True) if _SURROGATE.search(one + text)]
        if broken:
            raise InputError(
                f"{len(broken)} prompts hold half a character, such as that of id {broken[0]!r}; write UTF-8"
            )
        empty = [one for one, text in zip(self.ids, self.texts, strict=True) if not text.strip()]
        if empty:
            raise InputError(f"{len(empty)} of {len(self.ids)} prompts are empty, such as that of id {empty[0]!r}")


@runtime_checkable
class StatesSettings(Protocol):
    """A generator that says what decides its answers, so that they are told from another's."""

    def settings(self) -> dict[str, Any]:
        """Return JSON values of all that decides its answers: a fingerprint of the weights as "model", its options."""
        ...


@runtime_checkable
class GeneratorSource(StatesSettings, Protocol):
    """Makes a generator where it is needed; frozen and hashable, so that each worker makes it once."""

    def open(self) -> TextGenerator | AnswerSampler:
        """Return the generator."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model behind one of the backends."""

    model: str
    """folder or hub name; for "openai" the name that the server knows it by"""
    backend: Backend = "transformers"
    url: str | None = None
    """of the server, for "openai" """
    temperature: float = 1.0
    top_p: float = 1.0
    terminator: str = "."
    batch_size: int = 64
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    revision: str | None = None
    concurrency: int = 8
    """requests under way at a time, for "openai" """
    exact: bool = False
    """for "vllm": our own constraint inside of the engine instead of its structured outputs"""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UnknownNameError("backend", self.backend, BACKENDS)
        # Refuses what is out of range, before anything is made.
        Sampling(temperature=self.temperature, top_p=self.top_p)
        if self.backend == "openai" and self.url is None:
            raise InputError(
                "the backend openai needs the address of its server, such as url='http://localhost:8000/v1'"
            )

    def open(self) -> AnswerSampler:
        """Return the generator, loaded."""
        sampling: dict[str, Any] = {"temperature": self.temperature, "top_p": self.top_p, "terminator": self.terminator}
        if self.backend == "openai":
            from cytoglot.lm.backends.openai import OpenAiServer

            return OpenAiServer(url=str(self.url), model=self.model, concurrency=self.concurrency, **sampling)
        if self.backend == "vllm":
            from cytoglot.lm.backends.vllm import load_vllm

            return load_vllm(self.model, dtype=self.dtype, revision=self.revision, exact=self.exact, **sampling)
        loaded = load_model(self.model, device=self.device, dtype=self.dtype, revision=self.revision)
        return replace(loaded, batch_size=self.batch_size, **sampling)

    def settings(self) -> dict[str, Any]:
        """Return what decides the answers: of a folder its weights, of a name on the hub the commit."""
        known = asdict(self)
        for neutral in ("device", "batch_size", "concurrency"):
            del known[neutral]
        found = None if self.backend == "openai" else source_fingerprint(self.model, self.revision)
        return known if found is None else {**known, "model": found}


def answer_prompts(
    prompts: Prompts,
    generator: TextGenerator | AnswerSampler | GeneratorSource,
    output: str | Path,
    *,
    answer_format: AnswerFormat,
    n_samples: int = 1,
    seed: int = 0,
    log_likelihood: bool = False,
    keep_prompts: bool = False,
    part_prompts: int = 256,
    engine: Engine = "local",
    workers: int = 1,
    gpus_per_worker: float = 0.0,
    overwrite: bool = False,
) -> PartsReport:
    """Write `n_samples` answers for each prompt to a Parquet file, in the order of the prompts and samples.

    Columns: `id`, `sample` (from 0), `prompt` if kept, `answer`, `log_prob`: log-probability in nats that the backend
    gives to what it wrote (null where it does not say), for models in this process that of the tokens among those that
    the format allows, before temperature and top_p; and, if asked for, `log_likelihood`: log p(answer with its
    terminator | prompt) of the model without any constraint.

    An answer depends on seed, id, prompt and sample number, not on the other prompts. Killed, the same call goes on
    with the parts that are missing (`parquet_parts.map_parts`).

    Parameters
    ----------
    prompts
        Texts with ids (`read_prompts` reads them from a file).
    output
        Parquet file to write.
    answer_format
        What a valid answer is: see `LanguageModel.generate`.
    n_samples
        Answers for each prompt.
    seed
        Of the sampling.
    log_likelihood
        Add the column `log_likelihood`; not for free text.
    keep_prompts
        Add the column `prompt`.
    engine, workers, gpus_per_worker
        "local" computes in this process, or in `workers` processes; "ray" on a Ray cluster, with that many GPUs (or a
        fraction of one) for each worker.
    overwrite
        Begin anew where there are an output or parts of other settings.
    generator
        A generator, or what makes one in each worker (`ModelSource`), which more than one worker or Ray needs. A plain
        `TextGenerator` is asked prompt by prompt with a seed made of seed and id. A generator without `settings()`
        cannot be told from another, so its answers are not gone on with.
    part_prompts
        Prompts of a part: what is lost at most when killed, and what a backend can put into its batches.

    Raises
    ------
    InputError
        As `map_parts`; several workers without a `GeneratorSource`; log-likelihoods of free text, or of a generator
        that is no `AnswerScorer`.

    Examples
    --------
    >>> import cytoglot as cg
    >>> from cytoglot.answer_format import OneOf
    >>> from cytoglot.applications.answering import Prompts
    >>> prompts = Prompts(ids=("a", "b"), texts=("GENE8 GENE3. Its type is", "GENE5 GENE3. Its type is"))
    >>> lm = cg.load_model("model")
    >>> cg.answer_prompts(prompts, lm, "answers.parquet", answer_format=OneOf(["NK", "Monocyte"])).n_rows_written
    2
    """
    if log_likelihood and isinstance(answer_format, FreeText):
        raise InputError("log_likelihood is for answers with a frame; that of free text is its log_prob")
    if isinstance(generator, CellModel):
        generator = generator.lm
    is_source = isinstance(generator, GeneratorSource)
    if not is_source and (engine != "local" or workers > 1):
        raise InputError("several workers make their generators themselves; pass a ModelSource instead of a generator")
    if log_likelihood and not is_source and not isinstance(generator, AnswerScorer):
        raise InputError(f"{type(generator).__name__} cannot score answers; leave out log_likelihood")
    if n_samples < 1:
        raise InputError(f"n_samples must be at least 1, found {n_samples}")
    output = Path(output)
    if isinstance(generator, StatesSettings):
        described = generator.settings()
    elif overwrite or not (output.exists() or n_parts_done(output)):
        described = {"run": uuid.uuid4().hex}  # known by itself alone: never resumed
    else:
        raise InputError(
            f"{type(generator).__name__} has no settings() that say what decides answers, so what is in {output} or "
            "its parts may be another model's; pass another output, or overwrite=True to begin anew"
        )
    fields = asdict(answer_format)
    for name, value in fields.items():
        if isinstance(value, tuple) and len(value) > 50:  # such as the genes of a model
            digest = hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()
            fields[name] = f"{len(value)} texts {digest}"
    function = _Answer(
        generator=generator,
        answer_format=answer_format,
        n_samples=n_samples,
        seed=seed,
        log_likelihood=log_likelihood,
        keep_prompts=keep_prompts,
    )
    return map_parts(
        function,
        pa.table({"id": list(prompts.ids), "prompt": list(prompts.texts)}),
        output,
        settings={
            "class": type(generator).__name__,
            **described,
            "answer_format": {"kind": type(answer_format).__name__, **fields},
            "n_samples": n_samples,
            "seed": seed,
            "log_likelihood": log_likelihood,
            "keep_prompts": keep_prompts,
        },
        part_rows=part_prompts,
        engine=engine,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        overwrite=overwrite,
        description="answering",
    )


def prompt_lengths(prompts: Prompts, source: ModelSource) -> list[int]:
    """Return the number of tokens of each prompt; loads the tokenizer of a model but not the model.

    Raises
    ------
    InputError
        There is no tokenizer under that name.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.model, revision=source.revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"there is no model {source.model!r} here or on the hub: {reason}") from error
    return [len(ids) for ids in encode_prompts(tokenizer, prompts.texts)]


def read_prompts(path: str | Path) -> Prompts:
    """Read prompts from a file.

    `.parquet` and `.jsonl` have a column or field `prompt` and perhaps `id`, `.txt` has one prompt per line. Without
    ids, prompts are called by their places, "0", "1", ...

    Raises
    ------
    InputError
        The file is missing, of another kind, damaged, without prompts, or ids are repeated or prompts empty.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"the file of prompts {path} does not exist")
    # Other signs that end a line, such as U+2028, may stand inside of JSON.
    text = read_text(path) if path.suffix in {".txt", ".jsonl"} else ""
    lines = text.removesuffix("\n").split("\n") if text else []
    if path.suffix == ".txt":
        return Prompts(ids=tuple(map(str, range(len(lines)))), texts=tuple(lines))
    rows: dict[str, list[Any]]
    if path.suffix == ".jsonl":
        found = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"line {number} of {path} is not JSON: {error.msg}") from error
            if not isinstance(row, dict) or "prompt" not in row:
                raise InputError(f'line {number} of {path} must be an object such as {{"id": "a", "prompt": "..."}}')
            found.append(row)
        names = ["prompt", *(["id"] if any("id" in row for row in found) else [])]
        rows = {name: [row.get(name) for row in found] for name in names}
    elif path.suffix == ".parquet":
        try:
            names = [name for name in pq.read_schema(path).names if name in {"id", "prompt"}]
            rows = pq.read_table(path, columns=names).to_pydict()
        except pa.ArrowInvalid as error:
            raise InputError(f"{path} cannot be read as {path.suffix}: {str(error).splitlines()[0]}") from error
    else:
        raise InputError(f"a file of prompts must end in .parquet, .jsonl or .txt, found {path.name!r}")
    if "prompt" not in rows:
        raise InputError(
            f"{path} needs a column 'prompt' and perhaps 'id', found {', '.join(map(repr, rows)) or 'none'}"
        )
    texts = rows["prompt"]
    faulty = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if faulty is not None:
        raise InputError(f"prompts must be texts, found {texts[faulty]!r} in row {faulty} of {path}")
    ids = rows.get("id", list(range(len(texts))))
    if any(one is None for one in ids):
        raise InputError(f"{path} has rows without an id, such as row {ids.index(None)}; give every row one, or none")
    return Prompts(ids=tuple(map(str, ids)), texts=tuple(texts))


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """Answers a part of the prompts."""

    generator: TextGenerator | AnswerSampler | GeneratorSource
    answer_format: AnswerFormat
    n_samples: int
    seed: int
    log_likelihood: bool
    keep_prompts: bool

    def __call__(self, rows: pa.Table) -> pa.Table:
        generator = self.generator
        if isinstance(generator, GeneratorSource):
            source: Any = generator
            generator = _opened(source)
        ids, texts = rows.column("id").to_pylist(), rows.column("prompt").to_pylist()
        if isinstance(generator, AnswerSampler):
            answers = generator.sample(texts, self.answer_format, self.n_samples, self.seed, keys=ids)
        else:
            answers = []
            for text, one in zip(texts, ids, strict=True):
                key = f"{self.seed}\0{one}".encode()
                own_seed = int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "little") >> 1
                (samples,) = generator.generate([text], self.answer_format, self.n_samples, own_seed)
                answers.append([GeneratedAnswer(text=sample) for sample in samples])
        flat = [answer for samples in answers for answer in samples]
        columns: dict[str, pa.Array] = {
            "id": pa.array([one for one in ids for _ in range(self.n_samples)], pa.string()),
            "sample": pa.array(list(range(self.n_samples)) * len(ids), pa.int32()),
        }
        if self.keep_prompts:
            columns["prompt"] = pa.array([text for text in texts for _ in range(self.n_samples)], pa.string())
        columns["answer"] = pa.array([storable(answer.text) for answer in flat], pa.string())
        columns["log_prob"] = pa.array([answer.log_prob for answer in flat], pa.float64())
        if self.log_likelihood:
            scores = _log_likelihoods(generator, texts, answers, self.answer_format)
            columns["log_likelihood"] = pa.array(scores, pa.float64())
        return pa.table(columns)


@lru_cache(maxsize=1)
def _opened(source: Any) -> TextGenerator | AnswerSampler:
    """Return the generator of a source, made once in each process."""
    return source.open()


def _log_likelihoods(
    generator: object, texts: Sequence[str], answers: Sequence[Sequence[GeneratedAnswer]], answer_format: AnswerFormat
) -> list[float]:
    assert isinstance(generator, AnswerScorer)
    if isinstance(answer_format, OneOf):
        options = list(answer_format.options)
        scores = generator.log_likelihood(texts, options)
        place = {option: column for column, option in enumerate(options)}
        return [float(scores[row, place[answer.text]]) for row, samples in enumerate(answers) for answer in samples]
    found = []
    for text, samples in zip(texts, answers, strict=True):
        distinct = list(dict.fromkeys(answer.text for answer in samples))
        scores_1k = generator.log_likelihood([text], distinct)[0]
        found += [float(scores_1k[distinct.index(answer.text)]) for answer in samples]
    return found
