"""A causal language model: what one can ask of it, and the choice of devices and threads.

Its methods are the front of the floors above (generation, scoring, embedding), which therefore they import when called.
"""

from __future__ import annotations

import html
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as library_logging

from cytoglot.answer_format import AnswerFormat, GeneratedAnswer
from cytoglot.atomic import atomic_path
from cytoglot.errors import InputError
from cytoglot.lm.model.tokenizer import padding_id
from cytoglot.progress import progress_is_shown

if TYPE_CHECKING:
    from cytoglot.lm.embedding.embed import Pooling

_OF_CELLS = {"card", "embeddings", "genes", "label_scores", "labels", "rank_curve", "sentences", "spec", "write"}
"""what a cell model has besides"""


@dataclass(frozen=True, eq=False, repr=False)
class LanguageModel:
    """A causal language model that generates answers, scores them, and turns texts into vectors.

    It fills the sockets `TextGenerator`, `AnswerSampler` and `AnswerScorer`. Two are equal only if they are the same
    object.

    Examples
    --------
    >>> import cytoglot as cg
    >>> lm = cg.load_model("model")
    >>> lm.embed(["GENE8 GENE3", "GENE5"]).shape
    (2, 32)
    """

    model: PreTrainedModel
    """the network of `transformers`"""
    tokenizer: PreTrainedTokenizerBase
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a device is immutable
    source: str | None = None
    """folder or hub name that it was loaded from; None for a model made here"""
    revision: str | None = None
    """commit of the hub that it was loaded from"""
    temperature: float = 1.0
    """of sampled answers; 0 takes the most likely token"""
    top_p: float = 1.0
    """share of probability that tokens are drawn from"""
    terminator: str = "."
    """text between an answer and end of text in the training texts"""
    batch_size: int = 64
    """most answers written at the same time"""

    def __getattr__(self, name: str) -> Any:
        # `cytoglot.load_model` gave a model of cells for such a folder before; the error says what does so now.
        hint = "; cytoglot.load_cell_model loads a folder of cytoglot.train with its genes and labels"
        raise AttributeError(f"'LanguageModel' has no attribute {name!r}" + (hint if name in _OF_CELLS else ""))

    def __repr__(self) -> str:
        return f"<LanguageModel: {', '.join(self.facts)}>"

    def _repr_html_(self) -> str:
        return html_card("LanguageModel", self.facts)

    @property
    def facts(self) -> list[str]:
        """Architecture, size, device and source, as a line of text shows them."""
        size = f"{self.model.num_parameters() / 1e6:,.1f} M parameters"
        return [type(self.model).__name__, size, str(self.device), *([self.source] if self.source else [])]

    def settings(self) -> dict[str, Any]:
        """Return JSON values of all that decides the answers, the weights among them."""
        from cytoglot.lm.model.fingerprint import model_fingerprint

        sampling = {"temperature": self.temperature, "top_p": self.top_p, "terminator": self.terminator}
        return {"model": model_fingerprint(self), **sampling}

    def generate(
        self,
        prompts: Sequence[str],
        answer_format: AnswerFormat | str = "free_text",
        n_samples: int = 1,
        seed: int = 0,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> list[list[str]]:
        """Return `n_samples` answers for each prompt, without the space in front and the terminator.

        Parameters
        ----------
        prompts
            Texts. The answers to one do not depend on the others.
        answer_format
            What a valid answer is: a `OneOf`, `DistinctWords`, `Number` or `FreeText` of `cytoglot.answer_format`, or
            a text such as "one_of: B cell | T cell", "number: 0..1" or "free_text: 64" (256 tokens without a number).
        n_samples
            Answers for each prompt.
        seed
            Of the noise; the same seed gives the same answers.
        temperature, top_p
            Of the sampling: 0 always takes the most likely token, and tokens are drawn from the `top_p` most likely
            share of probability. None: `temperature` and `top_p` of the model, 1 unless they were changed.

        Raises
        ------
        InputError
            The format cannot be read, or a prompt has no room for an answer in the model's context.

        Examples
        --------
        >>> import cytoglot as cg
        >>> lm = cg.load_model("model")
        >>> prompts = ["Genes of a cell: GENE8 GENE3. Its type is"]
        >>> answers = lm.generate(prompts, "one_of: B cell | Monocyte", n_samples=3)
        >>> set(answers[0]) <= {"B cell", "Monocyte"}
        True
        """
        from cytoglot.lm.generation.generate import generate_answers

        return generate_answers(
            self,
            *_checked(prompts, answer_format),
            seed=seed,
            n_samples=n_samples,
            temperature=self.temperature if temperature is None else temperature,
            top_p=self.top_p if top_p is None else top_p,
            batch_size=self.batch_size,
            terminator=self.terminator,
        )

    def sample(
        self,
        prompts: Sequence[str],
        answer_format: AnswerFormat | str = "free_text",
        n_samples: int = 1,
        seed: int = 0,
        *,
        keys: Sequence[str] | None = None,
    ) -> list[list[GeneratedAnswer]]:
        """Return `n_samples` answers for each prompt with their log-probabilities.

        Parameters
        ----------
        prompts, answer_format, n_samples, seed
            As in `generate`.
        keys
            Names of the noise of each prompt, so that a prompt has the same answers in whatever list it comes; None:
            its place in the list.

        Examples
        --------
        >>> import cytoglot as cg
        >>> lm = cg.load_model("model")
        >>> [[answer]] = lm.sample(["Genes of a cell: GENE8 GENE3. Its type is"], "one_of: B cell | Monocyte")
        >>> answer.text in {"B cell", "Monocyte"}, answer.log_prob < 0
        (True, True)
        """
        from cytoglot.lm.generation.generate import sample_answers
        from cytoglot.lm.generation.sampling import Sampling

        return sample_answers(
            self,
            *_checked(prompts, answer_format),
            sampling=Sampling(temperature=self.temperature, top_p=self.top_p, seed=seed),
            n_samples=n_samples,
            batch_size=self.batch_size,
            terminator=self.terminator,
            keys=keys,
        )

    def log_likelihood(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        terminator: bool = True,
        normalize: Literal["sum", "mean"] = "sum",
        prior_prompts: Sequence[str] | None = None,
    ) -> NDArray[np.float64]:
        """Return log p(answer | prompt) in nats, shape (n_prompts, n_answers).

        Parameters
        ----------
        prompts
            Texts, n of them.
        answers
            Distinct texts, k of them; a space is put in front of those that do not begin with white space.
        terminator
            Whether the text that ends an answer, and end of text, are scored with it. Without them, an answer that is
            the beginning of another is always at least as likely.
        normalize
            "sum" over the tokens of an answer, or their "mean".
        prior_prompts
            Prompts without content. The log of the mean probability that they give to an answer is subtracted, which
            takes out the model's taste for some answers :cite:p:`zhao2021calibrate`. None: nothing is subtracted.

        Examples
        --------
        >>> import cytoglot as cg
        >>> lm = cg.load_model("model")
        >>> lm.log_likelihood(["Genes of a cell: GENE8 GENE3. Its type is"], ["B cell", "Monocyte"]).shape
        (1, 2)
        """
        from cytoglot.lm.scoring.score import score_answers

        if isinstance(answers, str):
            raise InputError(f"expected a list of answers, found one text of {len(answers)} characters; pass [text]")
        if not all(answer.strip() for answer in answers):
            raise InputError("answers to score must not be empty; leave the empty ones out")
        ending = self.terminator if terminator else ""
        framed = [f"{answer if answer[:1].isspace() else ' ' + answer}{ending}" for answer in answers]
        return score_answers(
            self, prompts, framed, terminator=terminator, normalize=normalize, prior_prompts=prior_prompts
        )

    def embed(
        self,
        texts: Sequence[str],
        layer: int = -1,
        pooling: Pooling = "mean",
        *,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> NDArray[np.float32]:
        """Return one vector per text, float32 of shape (n_texts, d).

        Parameters
        ----------
        texts
            Texts; the vector of one does not depend on the others.
        layer
            Hidden state: 0 the token vectors, 1 the first layer, …, -1 the last. Deeper layers are not computed.
        pooling
            "mean" over the tokens of a text, or its "last" token.
        spans
            For each text the characters (first, behind the last) to average over; None: the whole text.

        Examples
        --------
        >>> import cytoglot as cg
        >>> lm = cg.load_model("model")
        >>> lm.embed(["GENE8 GENE3", "GENE5"], layer=1, pooling="last").shape
        (2, 32)
        """
        from cytoglot.lm.embedding.embed import embed_texts

        return embed_texts(self, texts, layer=layer, pooling=pooling, spans=spans)

    @property
    def lm(self) -> LanguageModel:
        """The model itself, as it was found in a `CausalLm`."""
        warnings.warn("LanguageModel.lm is the model itself; leave out .lm", FutureWarning, stacklevel=2)
        return self

    @property
    def context_length(self) -> int | None:
        """Most tokens the model can read, or None when its configuration does not say."""
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def pad_id(self) -> int:
        """Id that fills up short rows; padded positions never influence a result."""
        return padding_id(self.tokenizer)

    @property
    def n_vocabulary(self) -> int:
        """Width of the output layer."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def body(self) -> torch.nn.Module:
        """The model without its output layer; returns hidden states."""
        return self.model.get_decoder()

    @property
    def is_adapted(self) -> bool:
        """Whether the model has an adapter that is not merged."""
        return hasattr(self.model, "peft_config")

    @property
    def attention_window(self) -> int | None:
        """Shortest span that some layer's attention is limited to, None when every layer sees the whole text."""
        config = self.model.config.get_text_config()
        slides = getattr(config, "use_sliding_window", True)
        spans = (
            getattr(config, "sliding_window", None) if slides else None,
            getattr(config, "attention_chunk_size", None),
        )
        return min((int(span) for span in spans if span), default=None)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Run a block without dropout and without a gradient graph; the model's mode is as before afterwards."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(was_training)

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), configuration and tokenizer as a plain `transformers` folder, atomically.

        Parameters
        ----------
        folder
            Where to write; what lies there is replaced.

        Examples
        --------
        >>> import cytoglot as cg
        >>> cg.load_model("model").save("plain")
        >>> cg.load_model("plain").source
        'plain'
        """
        with atomic_path(folder) as path, own_progress_only():
            self.model.save_pretrained(path)
            self.tokenizer.save_pretrained(path)


def html_card(title: str, lines: Sequence[str]) -> str:
    """Return what a notebook shows of a model."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<div><b>{html.escape(title)}</b><ul style='margin:0'>{items}</ul></div>"


def _checked(prompts: Sequence[str], answer_format: AnswerFormat | str) -> tuple[Sequence[str], AnswerFormat]:
    """Return prompts and format, after reading a format that is a text."""
    from cytoglot.lm.generation.answer_formats import read_answer_format

    if isinstance(prompts, str):
        raise InputError(f"expected a list of prompts, found one text of {len(prompts)} characters; pass [text]")
    return prompts, read_answer_format(answer_format) if isinstance(answer_format, str) else answer_format


@contextmanager
def own_progress_only() -> Iterator[None]:
    """Silence the bars that transformers draws even where there is no terminal, unless ours are shown."""
    was_enabled = library_logging.is_progress_bar_enabled()
    if not progress_is_shown():
        library_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            library_logging.enable_progress_bar()


def choose_device(name: str = "auto") -> torch.device:
    """Return the torch device; "auto" is cuda, else mps, else cpu.

    A process that a launcher has given a number on its machine (`LOCAL_RANK`) takes the GPU of that number.

    Raises
    ------
    InputError
        The name is not a device, or there is no such device here.
    """
    local_rank = os.environ.get("LOCAL_RANK")
    if name in ("auto", "cuda") and torch.cuda.is_available():
        name = "cuda" if local_rank is None else f"cuda:{local_rank}"
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device must be auto, cpu, cuda, cuda:N or mps, found {name!r}") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, True):
        raise InputError(f"device {name!r} is not available here; pass device='auto' or 'cpu'")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not available here, found {torch.cuda.device_count()} cuda devices")
    return device


def set_threads(n_threads: int | None) -> int:
    """Set the number of threads that torch computes with, None leaves it; return the number in force."""
    if n_threads is not None:
        if n_threads < 1:
            raise InputError(f"the number of threads must be at least 1, found {n_threads}")
        torch.set_num_threads(n_threads)
    return torch.get_num_threads()
