"""The verb behind ``evomerge evaluate``: models on the same items, and the difference of two."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.arguments import check_backend, check_device, model_or_stages, write_new
from evomerge.errors import Fault, InputError, TaskError

if TYPE_CHECKING:
    from evomerge.evaluation import Scores, TaskRequest
    from evomerge.recipe import Recipe
    from evomerge.search.assessment import Evaluation, Scorable


def evaluate(
    model: str | Path | Recipe,
    tasks: Sequence[str | TaskRequest],
    *,
    metrics: Sequence[str] = (),
    items: int | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool = True,
    system_instruction: str | None = None,
    include_path: Sequence[Path] = (),
    trust_remote_code: bool = False,
    confirm_unsafe: bool = False,
    samples: Path | None = None,
    backend: str = "hf",
) -> Scores:
    """Score a model, or the model that a recipe makes: :func:`evaluate_models` of one.

    Args:
        model: a folder, a hub name, a recipe or a recipe's file (merged in memory).
        tasks: names, with every metric that they report, or requests.

    The others are those of :func:`evaluate_models`, and so are the errors.
    """
    found = evaluate_models(
        [model],
        tasks,
        metrics=metrics,
        items=items,
        num_fewshot=num_fewshot,
        seed=seed,
        dtype=dtype,
        device=device,
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn,
        system_instruction=system_instruction,
        include_path=include_path,
        trust_remote_code=trust_remote_code,
        confirm_unsafe=confirm_unsafe,
        samples=samples,
        backend=backend,
    )
    return found[0].scores


def evaluate_models(
    models: Sequence[str | Path | Recipe],
    tasks: Sequence[str | TaskRequest],
    *,
    metrics: Sequence[str] = (),
    items: int | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool = True,
    system_instruction: str | None = None,
    include_path: Sequence[Path] = (),
    trust_remote_code: bool = False,
    confirm_unsafe: bool = False,
    samples: Path | None = None,
    backend: str = "hf",
    faults: Sequence[Fault] = (),
) -> list[Evaluation]:
    """Score models on the same items, one after another; nothing is loaded before all is checked.

    Args:
        models: folders, hub names, recipes or recipes' files (merged in memory).
        tasks: names, or requests (whose metrics count only where ``metrics`` names none).
        metrics: which of the tasks' metrics, smooth ones too; empty is every one that they report.
        items: documents per task, drawn by the seed; None is all.
        num_fewshot: examples before each question; None is what the task says.
        seed: of the draw.
        dtype: ``float32``, ``bfloat16``, ``float16``; None is the checkpoint's or the recipe's.
        device: ``cpu``, ``cuda``; None is the accelerator where there is one.
        apply_chat_template: render prompts with the tokenizer's chat template.
        fewshot_as_multiturn: examples as turns of a conversation (with a chat template only).
        system_instruction: put before the task's own description.
        include_path: folders of task definitions.
        trust_remote_code: whether models may bring their own code.
        confirm_unsafe: allow tasks that run the code which the model writes.
        samples: a new file (JSON lines) for the scores of every item.
        backend: what runs the models: ``hf`` (transformers) or ``vllm``.
        faults: what the caller found wrong already; raised with all that is found here.

    Raises:
        InputError: everything that is wrong with models, tasks and options.
        TrialError: a model's answers are no numbers.
    """
    from evomerge.evaluation import Setting
    from evomerge.search.assessment import assess
    from evomerge.search.gathering import Faults

    gathered = Faults()
    gathered.add(faults, TaskError)
    gathered.gather(_check, tasks, dtype, device, samples, backend)
    setting = Setting(
        apply_chat_template=apply_chat_template,
        fewshot_as_multiturn=fewshot_as_multiturn,
        system_instruction=system_instruction,
        include_path=tuple(Path(folder).resolve() for folder in include_path),
        confirm_unsafe=confirm_unsafe,
    )
    found = assess(
        [_finder(model, dtype, device, trust_remote_code, backend) for model in models],
        _requests(tasks, metrics, items, num_fewshot, seed),
        setting,
        gathered,
        every_metric=not metrics,
    )
    if samples is not None:
        write_new(samples, "".join(_sample_lines(models, found)))
    return found


def _check(
    tasks: Sequence[Any],
    dtype: str | None,
    device: str | None,
    samples: Path | None,
    backend: str,
) -> None:
    """Whether the options can be followed at all."""
    from evomerge.merging import DTYPES
    from evomerge.search.gathering import Faults

    faults = Faults()
    if not tasks:
        faults.add([Fault("tasks", "none given; at least one is needed")], TaskError)
    if dtype is not None and dtype not in DTYPES:
        faults.add([Fault("dtype", f"{dtype!r}; allowed: {', '.join(DTYPES)}")], InputError)
    faults.gather(check_device, device)
    faults.gather(check_backend, backend)
    if samples is not None and samples.exists():
        faults.add([Fault(str(samples), "exists; it is not overwritten")], InputError)
    if samples is not None and not samples.absolute().parent.is_dir():
        faults.add([Fault(str(samples), "its folder does not exist")], InputError)
    faults.check()


def _requests(
    tasks: Sequence[str | TaskRequest],
    metrics: Sequence[str],
    items: int | None,
    num_fewshot: int | None,
    seed: int,
) -> list[TaskRequest]:
    """Every task with every metric."""
    from evomerge.evaluation import MetricName, TaskRequest

    asked = [
        TaskRequest(task, items=items, num_fewshot=num_fewshot, seed=seed)
        if isinstance(task, str)
        else task
        for task in tasks
    ]
    names = [MetricName.parse(name) for name in metrics]
    return [replace(one, metric=name) for one in asked for name in names] if names else asked


def _finder(
    model: str | Path | Recipe,
    dtype: str | None,
    device: str | None,
    trust_remote_code: bool,
    backend: str,
) -> Callable[[], Scorable]:
    """Finds a model when it is called; with a wrong type or device that was told already."""
    from evomerge.merging import DTYPES
    from evomerge.search.single import open_model

    known = dtype if dtype in DTYPES else None

    def find() -> Scorable:
        source = model_or_stages(model)
        if backend == "vllm":
            from evomerge.search.served import served_model

            return served_model(source, known, device, trust_remote_code=trust_remote_code)
        return open_model(source, known, device, trust_remote_code=trust_remote_code)

    return find


def _sample_lines(
    models: Sequence[str | Path | Recipe], found: Sequence[Evaluation]
) -> Iterator[str]:
    """A line of JSON for each model, leaf task and item, with the item's value of each metric."""
    for model, evaluation in zip(models, found, strict=True):
        for task, score in evaluation.scores.tasks.items():
            for row, document in enumerate(score.doc_ids):
                line = {"model": str(model), "task": task, "doc_id": document}
                values = {str(metric): _plain(array[row]) for metric, array in score.items.items()}
                yield json.dumps({**line, **values}, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """A number, a pair of them, or None for what is no number (JSON has no NaN)."""
    if getattr(value, "ndim", 0):
        return [_plain(part) for part in value]
    return float(value) if math.isfinite(value) else None
