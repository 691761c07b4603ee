"""Renamed models, vocabularies, stages and residency, together."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.checkpoints import Checkpoint
from evomerge.checkpoints.sharing import scratch_folder
from evomerge.merging import MergeEngine, StagedEngine, devices_of, write_merge
from evomerge.recipe import Recipe, read_recipes
from tests.merging.kinds import write_kind
from tests.merging.speakers import EMBEDDING, WORDS, blend, speaker
from tests.merging.worlds import Family, recipe_of, rewrite, same_bits, stored, write_tokenizer

RESIDENCIES = ("device", "host")
TIES: dict[str, Any] = {"parameters": {"density": 0.6}}


def joined(folder: Path) -> None:
    """Store a mixture's experts joined, under the loaded model's names."""
    model = Checkpoint.open(str(folder)).load_model()
    rewrite(folder, {name: one.detach() for name, one in model.named_parameters()})


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Mixtures of experts, the last one stored otherwise."""
    family = write_kind("mixtral", tmp_path_factory.mktemp("mixtures"))
    for path in family.all:
        write_tokenizer(path)
    joined(family.tuned[1])
    return family


def live_of(engine: MergeEngine | StagedEngine, like: Path, *recipes: Recipe) -> Any:
    live = Checkpoint.open(str(like)).load_model()
    if isinstance(engine, StagedEngine):
        engine.merge_into(live, recipes)
    else:
        engine.merge_into(live, recipes[0])
    return live


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the shared files, of this test alone."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return scratch_folder()


def test_a_fused_mixture_is_merged_wherever_it_is_held(
    mixtures: Family, tmp_path: Path, scratch: Path
) -> None:
    recipes = [
        recipe_of(mixtures, method, (0.5, [0.2, 0.9])) for method in ("ties", "dare_ties", "linear")
    ]
    engines = {
        residency: MergeEngine(
            str(mixtures.base), [str(path) for path in mixtures.tuned], residency=residency
        )
        for residency in RESIDENCIES
    }
    for number, recipe in enumerate(recipes):
        write_merge([recipe], tmp_path / str(number))
        written = Checkpoint.open(str(tmp_path / str(number))).load_model()
        for engine in engines.values():
            live = live_of(engine, mixtures.base, recipe)
            same_bits(dict(live.named_parameters()), dict(written.named_parameters()))
    # What was put together from joined experts is one file that all workers map.
    assert len([*scratch.glob("*.lock")]) == 1
    engines.clear()
    del engine
    gc.collect()
    assert not [*scratch.iterdir()]


def test_a_fused_mixture_goes_where_its_live_parts_lie(mixtures: Family) -> None:
    """As a model over several GPUs says it: loading changes its names."""
    like = Checkpoint.open(str(mixtures.base))
    live = like.load_model()
    places = devices_of(live, like)
    assert set(places) >= set(like.names) | set(dict(live.named_parameters()))
    engine = MergeEngine(like, [str(path) for path in mixtures.tuned], device=places)
    recipe = recipe_of(mixtures, "ties")
    engine.merge_into(live, recipe)
    plain = MergeEngine(like, [str(path) for path in mixtures.tuned])
    again = live_of(plain, mixtures.base, recipe)
    same_bits(dict(live.named_parameters()), dict(again.named_parameters()))


def test_stages_of_mixtures_that_are_stored_otherwise(mixtures: Family, tmp_path: Path) -> None:
    """The first stage's models all have names other than the last stage's base."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        write = write_kind("mixtral", folder)
        joined(write.base)
        joined(write.tuned[0])
    random = torch.Generator().manual_seed(3)
    other = stored(second / "code")
    rewrite(
        second / "code",
        {
            name: one + torch.randn(one.shape, generator=random) * 0.05
            for name, one in other.items()
        },
    )
    stage = {
        "name": "joined",
        "merge_method": "dare_ties",
        "base_model": str(first / "base"),
        "models": [
            {"model": str(path), "parameters": {"weight": 0.6, "density": 0.5}}
            for path in (first / "code", second / "code")
        ],
        "dtype": "float32",
    }
    last = {
        "merge_method": "della",
        "base_model": str(mixtures.base),
        "models": [
            {"model": model, "parameters": {"weight": 0.5, "density": 0.5, "epsilon": 0.1}}
            for model in ("joined", str(mixtures.tuned[0]))
        ],
        "dtype": "float32",
    }
    recipes = read_recipes(yaml.safe_dump_all([stage, last], sort_keys=False))
    write_merge(recipes, tmp_path / "out")
    written = stored(tmp_path / "out")
    assert set(written) == set(stored(mixtures.base))
    models = [
        *(str(mixtures.base), str(mixtures.tuned[0])),
        *(str(first / "base"), str(first / "code"), str(second / "code")),
    ]
    for residency in RESIDENCIES:
        engine = StagedEngine(models, residency=residency)
        same_bits(written, dict(engine.engine_of(recipes).tensors(recipes[-1])))
        live = live_of(engine, mixtures.base, *recipes)
        again = Checkpoint.open(str(tmp_path / "out")).load_model()
        same_bits(dict(live.named_parameters()), dict(again.named_parameters()))


def mixture(folder: Path, words: tuple[str, ...], seed: int) -> Any:
    """A mixture of experts that speaks of some tokens."""
    import transformers as hf

    own = speaker(folder, words, seed=seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = hf.MixtralForCausalLM(hf.MixtralConfig(vocab_size=len(words), **sizes, **heads))
    model.save_pretrained(folder)
    return own


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("source", ["union", "base"])
@pytest.mark.filterwarnings("ignore::evomerge.errors.EvomergeWarning")
def test_a_second_stage_of_another_vocabulary(source: str, residency: Any, tmp_path: Path) -> None:
    """Both stages in one run, with one of them written between, and in memory: the same bits."""
    words = (*WORDS[:-2], "new", "other", "third")
    base, code = (mixture(tmp_path / name, WORDS, n) for n, name in enumerate(("base", "code")))
    tall = mixture(tmp_path / "tall", words, 2)
    joined(tall.folder)
    first = blend(base, code, base=base, method="task_arithmetic")
    last = blend(base, tall, base=base, method="dare_ties", tokenizer_source=source, **TIES)
    data = yaml.safe_load(last.to_yaml())
    data["models"].insert(0, {"model": "stage", "parameters": {"weight": 0.7, "density": 0.5}})
    documents = [{"name": "stage", **yaml.safe_load(first.to_yaml())}, data]
    recipes = read_recipes(yaml.safe_dump_all(documents, sort_keys=False))
    write_merge(recipes, tmp_path / "out")
    written = stored(tmp_path / "out")
    height = len({*WORDS, *words}) if source == "union" else len(WORDS)
    assert written[EMBEDDING].shape == (height, 16)

    models = [str(one.folder) for one in (base, code, tall)]
    engine = StagedEngine(models, residency=residency, vocabulary_of=recipes)
    target = engine.target_of(recipes)
    assert target.vocabulary.height == height
    live = target.vocabulary.fitted(
        Checkpoint.open(models[0]).load_model(), Checkpoint.open(models[0])
    )
    for _ in range(2):
        engine.merge_into(live, recipes)
        again = Checkpoint.open(str(tmp_path / "out")).load_model()
        same_bits(dict(live.named_parameters()), dict(again.named_parameters()))

    # The stage on its own, written; its name decides its masks.
    write_merge(recipes[:1], tmp_path / "stage")
    text = yaml.safe_dump(data, sort_keys=False).replace(
        "model: stage", f"model: {tmp_path / 'stage'}"
    )
    write_merge([Recipe.from_yaml(text)], tmp_path / "by hand")
    same_bits(stored(tmp_path / "by hand"), written)


@pytest.mark.filterwarnings("ignore::evomerge.errors.EvomergeWarning")
def test_rows_in_another_order_are_one_copy_for_all_workers(tmp_path: Path, scratch: Path) -> None:
    base = speaker(tmp_path / "base", seed=0)
    moved = speaker(tmp_path / "moved", (*WORDS[:3], *reversed(WORDS[3:]), "new"), seed=1)
    recipe = blend(base, moved, base=base, method="ties", tokenizer_source="union", **TIES)
    write_merge([recipe], tmp_path / "out")
    engines = [
        MergeEngine(
            None,
            [str(base.folder), str(moved.folder)],
            residency=residency,
            vocabulary_of=recipe,
        )
        for residency in ("host", "device", "host")
    ]
    # Embeddings and head of both: the base lacks a token.
    assert len([*scratch.glob("*.lock")]) == 4
    for engine in engines:
        same_bits(dict(engine.tensors(recipe)), stored(tmp_path / "out"))
    engines.clear()
    del engine
    gc.collect()
    assert not [*scratch.iterdir()]
