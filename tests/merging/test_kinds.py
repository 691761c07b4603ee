"""Models of many architectures are merged in place and written as they should be."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints import Checkpoint
from evomerge.checkpoints.structure import find_structure, told_by_names
from evomerge.merging import MergeEngine, layout_of, write_merge
from evomerge.recipe import Recipe
from tests.merging.kinds import KINDS, LAYERS, logits, write_kind
from tests.merging.worlds import (
    Family,
    recipe_of,
    recipe_text,
    rewrite,
    run_mergekit,
    same_bits,
    stored,
)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def family(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return write_kind(kind, tmp_path_factory.mktemp(kind))


@pytest.fixture(scope="module")
def engine(family: Family) -> MergeEngine:
    return MergeEngine(str(family.base), [str(path) for path in family.tuned])


def test_the_live_model_is_the_written_one(
    family: Family, engine: MergeEngine, tmp_path: Path
) -> None:
    live: Any = engine.like.load_model()
    before = logits(live)
    recipe = recipe_of(family, "dare_ties", (0.5, [0.2, 0.9]))
    engine.merge_into(live, recipe)
    write_merge([recipe], tmp_path / "out")
    written = type(live).from_pretrained(tmp_path / "out")
    same_bits(dict(live.named_parameters()), dict(written.named_parameters()))
    assert torch.equal(logits(live), logits(written))
    assert not torch.allclose(logits(live), before, atol=1e-3)
    # In place: no parameter was replaced, so that a second merge into it is the same model.
    engine.merge_into(live, recipe_of(family, "ties"))
    engine.merge_into(live, recipe)
    same_bits(dict(live.named_parameters()), dict(written.named_parameters()))


def test_the_tensors_are_those_of_the_files(family: Family, engine: MergeEngine) -> None:
    recipe = recipe_of(family, "task_arithmetic", (0.5, -0.25))
    base, code, maths = (stored(path) for path in family.all)
    made = dict(engine.tensors(recipe))
    assert set(made) == set(base)
    for name, tensor in made.items():
        start = base[name].double()
        exact = start + 0.5 * (code[name].double() - start) - 0.25 * (maths[name].double() - start)
        assert float((tensor.double() - exact).abs().max()) < 1e-6, name


def test_a_zero_merge_is_the_base_and_a_whole_one_the_tuned_model(
    family: Family, engine: MergeEngine
) -> None:
    live: Any = engine.like.load_model()
    for weights, path in (((0.0, 0.0), family.base), ((0.0, 1.0), family.tuned[1])):
        engine.merge_into(live, recipe_of(family, "task_arithmetic", weights))
        wanted = dict(type(live).from_pretrained(path).named_parameters())
        for name, parameter in live.named_parameters():
            close = torch.allclose(parameter, wanted[name], rtol=0, atol=1e-6)
            assert torch.equal(parameter, wanted[name]) if not any(weights) else close, name


def test_a_gradient_hits_each_layer(family: Family, engine: MergeEngine) -> None:
    # Layer i takes i/2 of the fine-tuned model, what stands outside nothing of it.
    recipe = recipe_of(family, "task_arithmetic", ([0.0, 1.0], 0.0))
    live: Any = engine.like.load_model()
    engine.merge_into(live, recipe)
    kind = type(live)
    base, tuned = (kind.from_pretrained(path).state_dict() for path in family.all[:2])
    found = set()
    for name, parameter in live.named_parameters():
        change, whole = parameter - base[name], tuned[name] - base[name]
        share = float((change * whole).sum() / (whole * whole).sum())
        layer = _layer(name)
        wanted = 0.0 if layer is None else layer / (LAYERS - 1)
        assert share == pytest.approx(wanted, abs=1e-4), name
        found.add(layer)
    assert found == {None, *range(LAYERS)}


def _layer(parameter: str) -> int | None:
    """The text layer of a live parameter, as this version of transformers names them."""
    if "vision" in parameter or "visual" in parameter:
        return None
    parts = parameter.split(".")
    for before, number in pairwise(parts):
        if before in ("layers", "layer", "h"):
            return int(number)
    return None


def test_layers_stand_where_they_do(family: Family) -> None:
    layout = layout_of(Checkpoint.open(str(family.base)))
    assert layout.num_layers == LAYERS
    counts = {len(layer) for layer in layout.layers}
    assert len(counts) == 1
    assert 0 not in counts
    outside = [name for name, layer in layout.tensors.items() if layer is None]
    first = [name for name in outside if name not in layout.last]
    embedding = Checkpoint.open(str(family.base)).embedding
    assert embedding in first
    assert all("vision" not in name and "visual" not in name for name in layout.last)
    assert all("embeddings.word" not in name for name in layout.last)


def test_names_that_leave_no_doubt_say_what_the_model_says(family: Family) -> None:
    base = Checkpoint.open(str(family.base))
    told = told_by_names(base.names, base.num_layers)
    found = find_structure(base._empty, base._place(base._stored.shapes))  # type: ignore[arg-type]
    if told is not None and found is not None:
        assert told == found


@pytest.mark.parametrize(
    "names",
    [
        ("wte", "h.0.w", "h.1.w", "ln_f.weight", "tower.0.w"),
        ("embed.w", "encoder.block.0.w", "decoder.block.0.w", "norm.w"),
        ("embed.w", "vision.layers.0.w", "vision.layers.1.w", "norm.w"),
        ("embed.w", "layers.0.w", "norm.w"),
        ("embed.w", "layers.0.w", "layers.1.w", "adapter.w"),
    ],
)
def test_where_names_leave_doubt_the_model_is_asked(names: tuple[str, ...]) -> None:
    assert told_by_names(names, 2) is None
    assert told_by_names(("embed.w", "layers.0.w", "layers.1.w", "norm.w"), 2) is not None


def test_what_follows_the_layers_but_is_listed_before_them(tmp_path: Path) -> None:
    layout = layout_of(Checkpoint.open(str(write_kind("opt", tmp_path).base)))
    outside = {name for name, layer in layout.tensors.items() if layer is None}
    first = {"embed_tokens.weight", "embed_positions.weight", "project_in.weight"}
    assert outside - layout.last == {f"model.decoder.{name}" for name in first}
    last = {"final_layer_norm.weight", "final_layer_norm.bias", "project_out.weight"}
    assert layout.last == {f"model.decoder.{name}" for name in last}


def test_without_trust_a_models_own_code_is_not_asked_for_its_layers(tmp_path: Path) -> None:
    names = ("vision.blocks.1.w", "transformer.blocks.0.w", "transformer.blocks.1.w", "lm_head.w")
    tensors = {name: torch.zeros(2, 2) for name in names}
    tmp_path.joinpath("config.json").write_text(
        '{"model_type": "own", "n_layers": 2, "auto_map": {"AutoConfig": "code.C"}}'
    )
    tmp_path.joinpath("code.py").write_text("raise SystemExit('it ran')")
    rewrite(tmp_path, tensors)
    layout = layout_of(Checkpoint.open(str(tmp_path)))
    assert dict(layout.tensors) == dict(zip(names, (None, 0, 1, None), strict=True))
    assert layout.last == {"lm_head.w"}


def test_layers_are_stacked(family: Family, tmp_path: Path) -> None:
    models = ", ".join(
        f"{{model: {path}, layer_range: [A, B], parameters: {{weight: {weight}}}}}"
        for path, weight in zip(family.tuned, (1.0, 0.0), strict=True)
    )
    base = f"{{model: {family.base}, layer_range: [A, B]}}"
    slices = [
        f"{{sources: [{base}, {models}]}}".replace("A", str(start)).replace("B", str(stop))
        for start, stop in ((0, 2), (1, 3))
    ]
    recipe = Recipe.from_yaml(
        f"{{merge_method: task_arithmetic, base_model: {family.base}, "
        f"slices: [{', '.join(slices)}]}}"
    )
    write_merge([recipe], tmp_path / "out")
    written = Checkpoint.open(str(tmp_path / "out"))
    assert written.num_layers == 4
    layout = layout_of(written)
    own = layout_of(Checkpoint.open(str(family.base)))
    made, tuned = stored(tmp_path / "out"), stored(family.tuned[0])
    for name, layer in layout.tensors.items():
        source = name if layer is None else layout.at_layer(name, (0, 1, 1, 2)[layer])
        assert source in own.tensors
        assert torch.allclose(made[name], tuned[source], rtol=0, atol=1e-6), name
    live = written.load_model()
    assert torch.isfinite(logits(live)).all()


# What mergekit makes of them.

# mergekit 0.1.5 joins these models' tensors as transformers does before it merges: a share of the
# largest elements is then one of all experts' together, where ours is one of each stored tensor.
_JOINED = ("mixtral", "qwen3_moe", "nomic_bert")
_MERGEKIT = ("llama", "qwen3", "gemma2", "gemma3", "gpt2", "bert_classifier", *_JOINED)


@pytest.mark.parametrize("name", _MERGEKIT)
@pytest.mark.parametrize("method", ["ties", "linear"])
def test_mergekit_makes_the_same(name: str, method: str, tmp_path: Path) -> None:
    family = write_kind(name, tmp_path / "models")
    density = 1.0 if name in _JOINED else 0.5
    text = recipe_text(family, method, (0.5, [0.2, 0.9]), density=density)
    run_mergekit(text, tmp_path / "out")
    engine = MergeEngine(str(family.base), [str(path) for path in family.tuned])
    live: Any = engine.like.load_model()
    engine.merge_into(live, Recipe.from_yaml(text))
    theirs = dict(type(live).from_pretrained(tmp_path / "out").named_parameters())
    for key, parameter in live.named_parameters():
        assert torch.allclose(parameter, theirs[key], rtol=0, atol=1e-6), key
