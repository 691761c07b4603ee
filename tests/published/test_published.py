"""The two published recipes and the spaces around them, on small models of the same shape."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from evomerge.checkpoints import Checkpoint
from evomerge.errors import EvomergeWarning
from evomerge.merging import MergeEngine, StagedEngine, layout_of, write_merge
from evomerge.recipe import (
    Recipe,
    RecipeWarning,
    load_recipes,
    read_recipes,
    resolve,
    write_recipes,
)
from evomerge.references import ModelReference
from evomerge.search.baselines import baselines, decode
from evomerge.space import SearchSpace, load_space
from tests.merging.worlds import llama, same_bits, stored, write_tokenizer

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
HERMES, OPENBIO = "NousResearch/Hermes-2-Pro-Llama-3-8B", "aaditya/Llama3-OpenBioLLM-8B"
MISTRAL, CHAT = "mistralai/Mistral-7B-v0.1", "Intel/neural-chat-7b-v3-3"
MATH = "WizardLM/WizardMath-7B-V1.1"
ROWS, MORE = 30, 2  # of embeddings; those that Hermes has beside them


def mistral() -> MistralForCausalLM:
    """Grouped queries and an untied head, as Mistral-7B-v0.1 has them."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}
    return MistralForCausalLM(MistralConfig(vocab_size=ROWS, **sizes, **heads))


def write_models(folder: Path, kinds: Mapping[str, torch.nn.Module]) -> dict[str, Path]:
    """A bfloat16 model for each hub name: the first is the base, the others differ by a little."""
    random = torch.Generator().manual_seed(0)
    paths: dict[str, Path] = {}
    base: dict[str, torch.Tensor] = {}
    for name, model in kinds.items():
        for key, tensor in model.state_dict().items():
            old = base.get(key, torch.zeros_like(tensor))
            noise = torch.randn(tensor.shape, generator=random) * (0.05 if base else 0.2)
            noise[: len(old)] += old[: len(noise)] if old.dim() else old
            tensor.copy_(noise)
        base = base or {key: tensor.clone() for key, tensor in model.state_dict().items()}
        paths[name] = folder / name
        model.to(torch.bfloat16).save_pretrained(paths[name])
        write_tokenizer(paths[name])
    return paths


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    taller = llama(vocab_size=ROWS + MORE)
    kinds = {LLAMA: llama(vocab_size=ROWS), HERMES: taller, OPENBIO: llama(vocab_size=ROWS)}
    return write_models(tmp_path_factory.mktemp("llamas"), kinds)


@pytest.fixture(scope="module")
def even_llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same, Hermes without its further rows."""
    kinds = {name: llama(vocab_size=ROWS) for name in (LLAMA, HERMES, OPENBIO)}
    return write_models(tmp_path_factory.mktemp("even"), kinds)


@pytest.fixture(scope="module")
def mistrals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kinds = {name: mistral() for name in (MISTRAL, MATH, CHAT)}
    return write_models(tmp_path_factory.mktemp("mistrals"), kinds)


def published(name: str, models: Mapping[str, Path]) -> tuple[Recipe, ...]:
    """A published recipe, its hub names turned into the small models' folders."""

    def local(reference: ModelReference) -> ModelReference:
        path = models.get(reference.path)
        return reference if path is None else ModelReference(str(path))

    return tuple(one.renamed(local) for one in load_recipes(SPACES / f"{name}.recipe.yaml"))


def space_of(name: str, models: Mapping[str, Path], folder: Path) -> SearchSpace:
    text = (SPACES / f"{name}.yaml").read_text(encoding="utf-8")
    for hub, path in models.items():
        text = text.replace(hub, str(path))
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_space(folder / f"{name}.yaml")


def test_the_biomed_recipe_drops_its_base_with_a_warning() -> None:
    with pytest.warns(RecipeWarning) as told:
        (recipe,) = load_recipes(SPACES / "llama3-biomed.recipe.yaml")
    assert {str(one.message).partition(": ")[2].partition(":")[0] for one in told} == {
        *("models[0]", "models[1]")
    }
    assert all("is the base model and is dropped" in str(one.message) for one in told)
    assert recipe.models is not None
    assert [str(source.model) for source in recipe.models] == [HERMES, OPENBIO]
    assert str(recipe.base_model) == LLAMA
    assert recipe.beyond_mergekit() == []
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe, "as it is written, mergekit 0.1.5 reads it too"


@pytest.mark.filterwarnings("ignore::evomerge.recipe.RecipeWarning")
def test_the_biomed_recipe_merges(even_llamas: dict[str, Path], tmp_path: Path) -> None:
    (recipe,) = published("llama3-biomed", even_llamas)
    write_merge([recipe], tmp_path / "out")
    engine = MergeEngine(None, [str(path) for path in even_llamas.values()])
    same_bits(stored(tmp_path / "out"), dict(engine.tensors(recipe)))
    parts = resolve(recipe, engine.layout)[0].contributions
    assert [(part.label, part.weight, part.density) for part in parts] == [
        ("Hermes-2-Pro-Llama-3-8B", 0.1, 0.55),
        ("Llama3-OpenBioLLM-8B", 0.3, 0.55),
    ]


@pytest.mark.filterwarnings("ignore::evomerge.errors.EvomergeWarning")
def test_hermes_larger_vocabulary(llamas: dict[str, Path], tmp_path: Path) -> None:
    """The base's rows are merged, what Hermes has beyond them is left out, and that is said."""
    (recipe,) = published("llama3-biomed", llamas)
    with pytest.warns(EvomergeWarning, match="Hermes-2-Pro-Llama-3-8B"):
        write_merge([recipe], tmp_path / "out")
    written = stored(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert written[name].shape[0] == ROWS
        base = stored(llamas[LLAMA])[name].float()
        assert not torch.equal(written[name].float(), base), "the rows in common are merged"


def test_the_biomed_space(even_llamas: dict[str, Path], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        space = space_of("llama3-biomed", even_llamas, tmp_path)
    genes = space.genes(4)
    assert len(genes) == 16
    assert {gene.initial for gene in genes} == {0.1, 0.3, 0.55}
    checkpoints = [Checkpoint.open(model) for model in space.stored_models]
    engine = MergeEngine(None, checkpoints)
    start = {gene.name: gene.initial or 0.0 for gene in genes}
    recipe = Recipe.from_yaml(decode(space, start, 4))
    found = resolve(recipe, layout_of(checkpoints[0]))
    assert {tuple(part.weight for part in merge.contributions) for merge in found} == {(0.1, 0.3)}
    assert all(torch.isfinite(tensor).all() for _, tensor in engine.tensors(recipe))
    assert [one.label for one in baselines(space, 4)] == [
        *("base", "uniform", "uniform × 0.5", "uniform × 1.19", "uniform × 1.41"),
        *("uniform density 0.5", "uniform density 0.2"),
        *("only Hermes-2-Pro-Llama-3-8B", "only Llama3-OpenBioLLM-8B"),
    ]


def test_the_two_stages_of_wizardmath(mistrals: dict[str, Path], tmp_path: Path) -> None:
    recipes = published("wizardmath-neural-chat", mistrals)
    first = recipes[0]
    assert first.name == "mistral-wizardmath-dare-0.7-density"
    write_merge(recipes, tmp_path / "out")
    engine = StagedEngine([str(path) for path in mistrals.values()])
    live = mistral().to(torch.bfloat16)
    engine.merge_into(live, recipes)
    same_bits(stored(tmp_path / "out"), dict(live.state_dict()))
    # By hand: neural-chat plus the sparse task vector of WizardMath.
    write_merge([first], tmp_path / "sparse")
    sparse, base = stored(tmp_path / "sparse"), stored(mistrals[MISTRAL])
    chat = stored(mistrals[CHAT])
    for name, tensor in stored(tmp_path / "out").items():
        wanted = chat[name].float() + (sparse[name].float() - base[name].float())
        torch.testing.assert_close(tensor.float(), wanted, rtol=2**-8, atol=2**-8)
    name = "model.layers.0.mlp.up_proj.weight"
    kept = (sparse[name] != base[name]).float().mean()
    assert 0.2 < float(kept) < 0.4


def test_the_space_around_the_two_stages(mistrals: dict[str, Path], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        space = space_of("wizardmath-neural-chat", mistrals, tmp_path)
    genes = space.genes(4)
    assert [gene.name for gene in genes][:2] == [
        *("wizardmath-dare/density/WizardMath-7B-V1.1", "weight/wizardmath-dare/0")
    ]
    assert len(genes) == 9
    engine = StagedEngine([str(model) for model in space.stored_models])
    planned = {one.label: one for one in baselines(space, 4)}
    assert list(planned) == [
        *("base", "uniform", "only WizardMath-7B-V1.1", "only neural-chat-7b-v3-3")
    ]
    live = mistral().to(torch.bfloat16)
    for label, hub in (("base", MISTRAL), ("only neural-chat-7b-v3-3", CHAT)):
        engine.merge_into(live, read_recipes(planned[label].recipe))
        same_bits(dict(live.state_dict()), stored(mistrals[hub]))
    uniform = planned["uniform"]
    assert uniform.genome is not None
    recipes = read_recipes(decode(space, uniform.genome, 4))
    assert write_recipes(recipes) == uniform.recipe
    engine.merge_into(live, recipes)
    assert all(torch.isfinite(tensor).all() for tensor in live.state_dict().values())


def test_the_tasks_are_lm_evals() -> None:
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("llama3-biomed", "wizardmath-neural-chat"):
            space = load_space(SPACES / f"{name}.yaml")
            assert {task.task for task in space.tasks} <= known
            assert not any(Path(model.path).is_absolute() for model in space.stored_models)
