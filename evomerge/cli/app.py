"""The commands and their options; each command's work is in a module of its own."""

from __future__ import annotations

import atexit
import gc
import os
from pathlib import Path
from typing import Annotated

import typer

from evomerge import __version__
from evomerge.cli.output import bear_any_encoding, errors_told

app = typer.Typer(
    name="evomerge",
    help="Search for the merge of language models that keeps the best of each.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Space = Annotated[Path, typer.Argument(help="The search space (YAML).", show_default=False)]
Study = Annotated[
    str, typer.Argument(help="A study's name (in studies/) or its folder.", show_default=False)
]
Storage = Annotated[
    str | None,
    typer.Option(help="Optuna storage URL, for a study kept elsewhere than in its folder."),
]
IncludePath = Annotated[
    list[Path] | None,
    typer.Option(help="A folder of lm-eval task definitions; may be given several times."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Items = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Items that search and race may score in all; the held-out comparison is on top.",
    ),
]
Backend = Annotated[
    str | None, typer.Option(help="What runs the merged models: hf, vllm; else the space's.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let models bring their own code.")
]


def main() -> None:
    """The entry point."""
    # The tokenizer's own threads and ours would fight over the cores, and warn about forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    bear_any_encoding()
    # Collections while the heavy libraries are imported, and of all they hold at the end, find
    # nothing and take a fifth of a second.
    gc.set_threshold(20_000, 10, 10)
    atexit.register(gc.freeze)
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"evomerge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Search for the merge of language models that keeps the best of each."""


@app.command()
@errors_told
def search(
    space: Space,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials of the study in all; else 200, or no limit with --items or --timeout.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Workers at once; else one per GPU, or one per CPU core."),
    ] = None,
    study: Annotated[str | None, typer.Option(help="The study's name; else the space's.")] = None,
    storage: Storage = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the space's.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which no trial is started.")
    ] = None,
    items: Items = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop once so many full trials' items brought no gain beyond noise.",
        ),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster ('auto' finds the local one).")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each worker; a fraction shares one.")
    ] = None,
    cpus: Annotated[float | None, typer.Option(min=0, help="CPU cores of each worker.")] = None,
    residency: Annotated[
        str | None, typer.Option(help="Where models are held: auto, device, host.")
    ] = None,
    backend: Backend = None,
    include_path: IncludePath = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew; the old study is set aside.")
    ] = False,
) -> None:
    """Search a space. The same command again goes on where it stopped."""
    from evomerge.cli.searching import run_search

    run_search(
        space,
        trials=trials,
        workers=workers,
        study=study,
        storage=storage,
        seed=seed,
        timeout=timeout,
        items=items,
        patience=patience,
        ray_address=ray_address,
        resources={"gpus": gpus, "cpus": cpus, "residency": residency},
        backend=backend,
        include_path=include_path or [],
        fresh=fresh,
    )


@app.command()
@errors_told
def check(
    space: Space,
    include_path: IncludePath = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="As for search: for the estimates.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="As for search: for the estimates.")] = 200,
    items: Items = None,
    as_json: Json = False,
) -> None:
    """Check a space: models, shapes, vocabularies, tasks, genes, items, memory and time."""
    from evomerge.cli.checking import run_check

    run_check(space, include_path or [], workers, trials, items, as_json=as_json)


@app.command()
@errors_told
def best(study: Study, storage: Storage = None, as_json: Json = False) -> None:
    """Show a study's best trial, its baselines and the held-out outcome."""
    from evomerge.cli.reading import show_best

    show_best(study, storage, as_json=as_json)


@app.command()
@errors_told
def export(
    study: Study,
    trial: Annotated[
        int | None, typer.Option(min=0, help="A trial's number; else the best one.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file; else the terminal.")
    ] = None,
    storage: Storage = None,
) -> None:
    """Export a trial's recipe, in mergekit's YAML."""
    from evomerge.cli.reading import export_recipe

    export_recipe(study, trial, output, storage)


@app.command()
@errors_told
def merge(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML).", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The model's folder, new.", show_default=False)],
    max_shard_size: Annotated[
        str, typer.Option(help="Size of a weight file at most, such as 500MB or 5GB.")
    ] = "5GB",
    device: Annotated[str, typer.Option(help="Where the arithmetic is done: cpu, cuda.")] = "cpu",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Merge a recipe and write the model."""
    from evomerge.cli.merging import run_merge

    run_merge(recipe, out, max_shard_size, device, trust_remote_code=trust_remote_code)


@app.command()
@errors_told
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A model (folder or hub name) or a recipe.", show_default=False)
    ],
    tasks: Annotated[
        str,
        typer.Option(
            help="lm-eval tasks, with commas between them; task=100 for a number of items.",
            show_default=False,
        ),
    ],
    compare: Annotated[
        str | None,
        typer.Option(help="Another model or recipe: the difference, paired item by item."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of all that the tasks report: acc, gold_prob, margin, bits_per_byte, …; "
            "may be given several times."
        ),
    ] = None,
    items: Annotated[
        int | None, typer.Option(min=1, help="Items per task, drawn by the seed; else all.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question; else the task's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of items.")] = 0,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; else the checkpoint's.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; else the GPU if any.")] = None,
    backend: Annotated[str, typer.Option(help="What runs the model: hf, vllm.")] = "hf",
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Render prompts with the chat template.")
    ] = False,
    fewshot_as_multiturn: Annotated[
        bool, typer.Option(help="Examples as turns of a conversation, with a chat template.")
    ] = True,
    system_instruction: Annotated[
        str | None, typer.Option(help="Put before the task's own description.")
    ] = None,
    include_path: IncludePath = None,
    trust_remote_code: TrustRemoteCode = False,
    confirm_unsafe: Annotated[
        bool, typer.Option("--confirm-unsafe", help="Let tasks run the code that the model writes.")
    ] = False,
    samples: Annotated[
        Path | None, typer.Option(help="A new file (JSON lines) for the scores of every item.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a model or a recipe on lm-eval tasks, or compare two."""
    from evomerge.cli.evaluating import run_evaluate

    run_evaluate(
        model,
        tasks,
        compare=compare,
        as_json=as_json,
        metric=metric or [],
        items=items,
        num_fewshot=num_fewshot,
        seed=seed,
        dtype=dtype,
        device=device,
        backend=backend,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn,
        system_instruction=system_instruction,
        include_path=include_path or [],
        trust_remote_code=trust_remote_code,
        confirm_unsafe=confirm_unsafe,
        samples=samples,
    )


@app.command()
@errors_told
def dashboard(
    study: Study,
    storage: Storage = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
) -> None:
    """Watch a study in the Optuna dashboard, on 127.0.0.1."""
    from evomerge.cli.watching import run_dashboard

    run_dashboard(study, storage, port)
