"""The benchmark's arithmetic, and the whole of it on models of no size."""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from evomerge.merging import MergeEngine
from evomerge.recipe import METHODS, Recipe, resolve
from tests.benchmarks.agreement import Agreement, compare
from tests.benchmarks.candidates import candidate, models_of, reads_base
from tests.benchmarks.commands import Commands, time_commands
from tests.benchmarks.limits import CopyBandwidth, buffer_bytes, bytes_moved, limit_seconds
from tests.benchmarks.memory import Peak, measure_peak
from tests.benchmarks.merge import main
from tests.benchmarks.models import CHANGE, Family, empty_model, ensure_family
from tests.benchmarks.ours import Ours
from tests.benchmarks.results import Figure, Result, number
from tests.benchmarks.shapes import PRESETS, Shape, parse_shape

pytest.importorskip("mergekit")

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def family(workdir: Path) -> Family:
    return ensure_family(workdir, TINY, 3)


# Arithmetic.


@pytest.mark.parametrize("name", PRESETS)
def test_a_shapes_parameters_are_the_models(name: str) -> None:
    shape = PRESETS[name]
    with torch.device("meta"):
        model = LlamaForCausalLM(shape.config())
    assert shape.parameters == sum(tensor.numel() for tensor in model.parameters())


def test_shapes_are_read() -> None:
    assert parse_shape("tiny") == TINY
    assert parse_shape("layers=2,width=512") == replace(PRESETS["350m"], layers=2, width=512)
    assert parse_shape(TINY.label) == TINY


@pytest.mark.parametrize("text", ["huge", "depth=3", "layers=0", "layers=x", "heads=3", ""])
def test_other_shapes_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"allowed: a preset|must divide"):
        parse_shape(text)


def test_the_limit_is_every_byte_once() -> None:
    assert bytes_moved(1000, 4) == 10_000
    assert limit_seconds(1000, 4, 5e3) == 2.0
    # Never smaller than the caches, and never more than a small machine has.
    assert buffer_bytes(100 << 20) == 256 << 20
    assert buffer_bytes(300 << 20) == 600 << 20
    assert buffer_bytes(100 << 30) == buffer_bytes(2 << 30) == 1 << 30


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.012345, "s", "0.0123 s"),
        (61.27, "×", "61.3×"),
        (1234.5, "GB/s", "1234 GB/s"),
        (1.2e-5, "s", "1.200e-05 s"),
        (0.0, "models", "0 models"),
        (3.0, "", "3"),
    ],
)
def test_numbers_have_three_digits(value: float, unit: str, text: str) -> None:
    assert number(value, unit) == text


def result(**changes: Any) -> Result:
    """dare_ties at 350m: ours 0.5 s, mergekit 40 s, the limit a quarter of ours."""
    shape = PRESETS["350m"]
    ours = Ours(1.0, 3.0, shape.nbytes // 2, [0.4, 0.5, 9.0], bytes_moved(shape.parameters, 4) * 8)
    known = Result(
        "dare_ties", shape, 4, "cpu", ours, (39.0, 40.0, 70.0), Peak(5 * shape.nbytes, 1)
    )
    return replace(known, **changes)


def figures_of(one: Result) -> dict[str, Figure]:
    return {figure.name: figure for figure in one.figures()}


def test_figures_are_medians_beside_their_targets() -> None:
    one = result()
    assert (one.seconds, one.ratio, one.limit, one.over_limit) == (0.5, 80.0, 0.125, 4.0)
    found = figures_of(one)
    assert found["times faster"] == Figure("times faster", "80×", "≥ 60×", True)
    assert found["over the limit"] == Figure("over the limit", "4×", "≤ 2×", False)
    assert found["over the limit"].verdict == "short"
    first = found["first candidate, with the preparation"]
    assert (first.value, first.target, first.verdict) == ("3 s", "≤ 40 s", "ok")
    assert found["kept beside the models"].value == "0.5 models"
    peak = found["peak memory"]
    assert (peak.value, peak.target, peak.verdict) == ("5 models", "≤ 5.5 models", "ok")


@pytest.mark.parametrize(
    "changes", [{"shape": TINY}, {"models_held": 3}, {"device": "cuda"}], ids=str
)
def test_other_models_have_no_targets(changes: dict[str, Any]) -> None:
    assert not [figure for figure in result(**changes).figures() if figure.target]


def test_a_gpu_has_a_target_of_its_own() -> None:
    ours = replace(result().ours, seconds=[0.07], gpu_peak=4 * PRESETS["8b"].nbytes)
    found = figures_of(result(shape=PRESETS["8b"], device="cuda", ours=ours, peak=None))
    assert found["ours, per candidate"] == Figure(
        "ours, per candidate", "0.07 s", "≤ 0.06 s", False
    )
    assert found["peak memory of the GPU"].target == "≤ 5.5 models"


def test_commands_are_compared_by_their_medians() -> None:
    commands = Commands([2.0, 3.0, 9.0], [30.0, 27.0, 10.0], [1.0], [0.5])
    assert commands.ratio == 9.0
    found = figures_of(result(commands=commands))["command, times faster"]
    assert (found.value, found.target, found.met) == ("9×", "≥ 8×", True)


# Models and recipes.


def test_models_are_fine_tuned_from_the_base_and_the_same_again(
    family: Family, tmp_path: Path
) -> None:
    base, *tuned = (load_file(path / "model.safetensors") for path in family.all)
    assert all(tensor.dtype == torch.bfloat16 for tensor in base.values())
    name = "model.embed_tokens.weight"
    changes = [(one[name].float() - base[name].float()).flatten() for one in tuned]
    for change in changes:
        assert float(change.std()) == pytest.approx(CHANGE, rel=0.05)
    assert torch.corrcoef(torch.stack(changes)).triu(1).abs().max() < 4 / len(changes[0]) ** 0.5
    again = ensure_family(tmp_path, TINY, 1)
    assert torch.equal(load_file(again.tuned[0] / "model.safetensors")[name], tuned[0][name])
    other = ensure_family(tmp_path, TINY, 1, seed=1)
    assert not torch.equal(load_file(other.tuned[0] / "model.safetensors")[name], tuned[0][name])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_two_candidates_share_a_coefficient(family: Family, method: str) -> None:
    """So that nothing can be remembered from one candidate to the next."""
    names = [str(path) for path in family.tuned[: models_of(method, family)]]
    engine = MergeEngine(str(family.base) if reads_base(method) else None, names)
    seen: dict[str, set[float]] = {}
    for turn in range(4):
        specs = resolve(Recipe.from_yaml(candidate(family, method, turn)), engine.layout)
        spec = next(one for one in specs if "layers.1." in one.name)
        for part in spec.contributions:
            values = {"weight": part.weight, "density": part.density, "epsilon": part.epsilon}
            for key in set(values) & set(METHODS[method].parameters):
                assert values[key] not in seen.setdefault(key, set())
                seen[key].add(values[key])
            if "epsilon" in METHODS[method].parameters:
                assert part.epsilon < part.density < 1 - part.epsilon
    if "weight" in METHODS[method].parameters:
        assert len(seen["weight"]) == 4 * models_of(method, family)


# Both programs.


def live_merge(family: Family, method: str, turn: int) -> tuple[str, dict[str, torch.Tensor]]:
    live = empty_model(family.shape, torch.device("cpu"))
    text = candidate(family, method, turn)
    engine = MergeEngine(str(family.base), [str(path) for path in family.tuned])
    engine.merge_into(live, Recipe.from_yaml(text))
    return text, live.state_dict()


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_a_disagreement_is_seen(family: Family, method: str) -> None:
    text, ours = live_merge(family, method, 1)
    found = compare(family, text, ours, ours.items())
    assert found.holds
    assert found.change == 1
    # The lattice of bfloat16 ties many magnitudes at the threshold; the others are compared.
    assert 0.8 < found.compared <= 1
    name = "model.layers.0.mlp.up_proj.weight"
    for steps, agree in ((1, True), (3, False)):
        next_but = (ours[name].view(torch.int16) + steps).view(torch.bfloat16)
        found = compare(family, text, ours, {**ours, name: next_but}.items())
        assert found.same_numbers is agree, steps
    with pytest.raises(ValueError, match=f"only one program has: {name}"):
        compare(family, text, ours, [item for item in ours.items() if item[0] != name])
    with pytest.raises(ValueError, match=rf"{name}: .*bfloat16 and .*float32"):
        compare(family, text, ours, {**ours, name: ours[name].float()}.items())


def test_agreement_is_of_numbers_and_of_their_sum() -> None:
    assert Agreement(0.9, 0.0, 1.001).holds
    assert Agreement(1.0, 0.0, math.nan).holds
    assert not Agreement(0.9, 1e-4, 1.0).holds
    assert not Agreement(0.0, 0.0, 1.02).holds


def test_a_copys_bandwidth_counts_both_ways() -> None:
    copies = CopyBandwidth(torch.device("cpu"), 1 << 22)
    for _ in range(2):
        copies.measure()
    assert len(copies.measured) == 2
    # Between a tape and any memory there is.
    assert 1e7 < copies.median() < 1e13
    assert copies.median(1) == copies.measured[1]


def test_peak_memory_holds_all_the_models(workdir: Path) -> None:
    shape = Shape(4, 512, 1024, 8, 8, 4000)
    peak = measure_peak(workdir, shape, 2, "task_arithmetic", 1)
    if peak is None:
        pytest.skip("there is no Linux here to ask")
    # A base, two fine-tuned models and a live one, and what passes through.
    assert 4 * shape.nbytes < peak.bytes < 8 * shape.nbytes


def test_the_whole_benchmark(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["ties", "task_arithmetic", "dare_ties"]
    report = tmp_path / "report.json"
    threads = torch.get_num_threads()
    settings = f"--shape tiny --repetitions 2 --mergekit-repetitions 2 --threads {threads}"
    files = ["--json", str(report), "--workdir", str(workdir)]
    asked = ["--methods", ",".join(methods), "--verify", "--no-memory", "--copy-bytes", "4000000"]
    assert main([*settings.split(), *files, *asked]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed, "no colours in a pipe"
    for method in methods:
        assert re.search(rf"^ *{method} +ours, per candidate +[\d.e-]+ s", printed, re.MULTILINE)
    data = json.loads(report.read_text())
    assert data["conditions"]["shape"] == TINY.label
    assert [one["method"] for one in data["results"]] == methods
    for one in data["results"]:
        assert len(one["ours"]["seconds"]) == len(one["theirs"]) == 2
        assert one["ratio"] == pytest.approx(sum(one["theirs"]) / 2 / one["seconds"])
        assert one["over_limit"] == pytest.approx(one["seconds"] / one["limit"])
        assert abs(one["agreement"]["change"] - 1) < 0.01
        shown = {figure["name"]: figure for figure in one["figures"]}
        assert "numbers that both have differently" in shown or one["method"] == "dare_ties"
        assert shown["change of the base over mergekit's"]["met"] is True


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_memory_is_measured(workdir: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    asked = "--shape tiny --device cuda --methods task_arithmetic --verify --copy-bytes 4000000"
    assert main([*asked.split(), "--workdir", str(workdir), "--json", str(report)]) == 0
    (one,) = json.loads(report.read_text())["results"]
    # A base, three fine-tuned models and a live one.
    assert one["ours"]["gpu_peak"] >= 5 * TINY.nbytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "ties,magic"], "magic; allowed: .*dare_ties"),
        (["--models", "0"], "no whole number above 0"),
        (["--verify", "--no-mergekit"], "leave --no-mergekit out"),
    ],
)
def test_options_that_make_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_the_whole_commands(family: Family, workdir: Path) -> None:
    before = sorted(workdir.iterdir())
    took = time_commands(family, "ties", workdir, repetitions=1, dtype="float32", threads=1)
    assert [len(one) for one in (took.ours, took.theirs, took.plain, took.bare)] == [1] * 4
    assert took.plain[0] < took.bare[0] < took.ours[0]
    assert took.ratio == took.theirs[0] / took.ours[0]
    assert sorted(workdir.iterdir()) == before, "nothing is left behind"


def test_a_command_that_fails_says_so(family: Family, tmp_path: Path) -> None:
    broken = replace(family, tuned=(tmp_path / "none",))
    with pytest.raises(RuntimeError, match=r"evomerge merge .* failed:\n[\s\S]*none"):
        time_commands(broken, "ties", tmp_path, repetitions=1, dtype="float32", threads=1)
