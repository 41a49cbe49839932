"""answer: a file of prompts in, a file of answers out; killed, the same command goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cytoglot.cli import options as opt
from cytoglot.cli.output import check_output, show
from cytoglot.engines import Engine
from cytoglot.errors import InputError

Backend = Literal["transformers", "vllm", "openai"]


def answer_command(
    prompts: Annotated[Path, typer.Argument(help=".parquet or .jsonl with prompt (and id), or .txt, one per line.")],
    output: opt.Parquet,
    answer_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="'one_of: A | B', 'distinct_words: 5..10 of genes.txt', 'number: 0..1', 'free_text: 64', or a .yaml.",
        ),
    ],
    model: Annotated[str | None, typer.Option("--model", help="Model folder or hub name.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers for each prompt.")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: the likeliest token.")] = 1.0,
    top_p: opt.TopP = 1.0,
    terminator: Annotated[str, typer.Option("--terminator", help="Text that ended answers in training.")] = ".",
    log_likelihood: Annotated[
        bool, typer.Option("--log-likelihood", help="Also score each answer without constraint.")
    ] = False,
    keep_prompts: Annotated[bool, typer.Option("--keep-prompts", help="Write the prompts too.")] = False,
    backend: Annotated[Backend, typer.Option("--backend", help="Engine of the model.")] = "transformers",
    url: Annotated[str | None, typer.Option("--url", help="Server of --backend openai; ends in /v1.")] = None,
    model_name: Annotated[str | None, typer.Option("--model-name", help="Name of the model on that server.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests to that server at a time.")] = 8,
    exact: Annotated[
        bool, typer.Option("--exact", help="With vllm: constrain answers by cytoglot, not by grammars.")
    ] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of the hub.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Answers at a time.")] = 64,
    chunk_prompts: Annotated[
        int, typer.Option("--chunk-prompts", min=1, help="Prompts between two saved parts.")
    ] = 256,
    engine: Annotated[Engine, typer.Option("--engine", help="Where workers run.")] = "local",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes; each loads the model.")] = 1,
    gpus: Annotated[float, typer.Option("--gpus-per-worker", min=0, help="With --engine ray.")] = 0.0,
    overwrite: opt.Overwrite = False,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    seed: opt.Seed = 0,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
) -> None:
    """Answer prompts with any model, in one format.

    The same command resumes an interrupted run. Workers may run on one machine or many.
    """
    # An output of the same prompts and settings is finished, and another one refused where it is made.
    check_output(output, suffixes=(".parquet",), overwrite=True, inputs=[prompts])
    from cytoglot.applications.answering import ModelSource, answer_prompts, read_prompts
    from cytoglot.applications.forecast import forecast_answers
    from cytoglot.cell_model.load import is_model_folder
    from cytoglot.cell_model.spec import CellModelSpec
    from cytoglot.lm.generation.answer_formats import read_answer_format
    from cytoglot.lm.model.language_model import set_threads

    set_threads(threads)
    options: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "terminator": terminator,
        "batch_size": batch_size,
        "device": device,
        "revision": revision,
        "concurrency": concurrency,
        "exact": exact,
    }
    if backend == "openai":
        if url is None or model_name is None:
            raise InputError("--backend openai needs --url, such as http://localhost:8000/v1, and --model-name")
        source = ModelSource(model=model_name, backend="openai", url=url, **options)
    elif url is not None or model_name is not None:
        raise InputError(f"--url and --model-name are for --backend openai, found --backend {backend}")
    elif model is None:
        raise InputError(f"--backend {backend} needs --model, a folder or a name on the hub")
    else:
        source = ModelSource(model=model, backend=backend, **options)
    asked = read_prompts(prompts)
    words = None  # of a format of genes that names none: those of the model
    if backend != "openai" and is_model_folder(source.model):
        words = CellModelSpec.load(Path(source.model)).vocabulary.symbols
    chosen = read_answer_format(answer_format, words=words)
    if dry_run:
        show(forecast_answers(asked, chosen, source, output, samples=samples, part=chunk_prompts), as_json=json)
        return
    report = answer_prompts(
        asked,
        source,
        output,
        answer_format=chosen,
        n_samples=samples,
        seed=seed,
        log_likelihood=log_likelihood,
        keep_prompts=keep_prompts,
        part_prompts=chunk_prompts,
        engine=engine,
        workers=workers,
        gpus_per_worker=gpus,
        overwrite=overwrite,
    )
    show(
        {
            "prompts": report.n_rows,
            "answers": report.n_rows_written,
            "parts": report.n_parts,
            "parts_from_earlier": report.n_parts_found,
            "output": report.output,
        },
        as_json=json,
    )
