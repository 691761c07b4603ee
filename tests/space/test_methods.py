"""Every method in a space: what it reads, how its parameters vary, methods to choose from."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from evomerge.errors import SpaceError
from evomerge.recipe import Recipe, TensorMerge, resolve
from evomerge.space import Common, Range, SearchSpace, load_space

from .conftest import Load, Write
from .spaces import layout

ATTENTION, MLP = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"


def text(method: str, genome: str = "", *, models: int = 2, extra: str = "") -> str:
    """A space of so many models; ``genome`` is YAML in braces."""
    names = ", ".join(f"models/{name}" for name in ("math", "code", "chat")[:models])
    return (
        f"base_model: models/base\nmodels: [{names}]\nmerge_method: {method}\n"
        f"genome: {{{genome}}}\ntasks: [arc_easy]\n{extra}"
    )


def middle(space: SearchSpace, num_layers: int = 4, **values: float) -> dict[str, float]:
    genome = {gene.name: (gene.low + gene.high) / 2 for gene in space.genes(num_layers)}
    assert set(values) <= set(genome)
    return genome | values


def merged(space: SearchSpace, genome: dict[str, float], layers: int = 4) -> dict[str, TensorMerge]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe = Recipe.from_mapping(space.recipe_mapping(genome, layers))
        return {merge.name: merge for merge in resolve(recipe, layout(layers))}


def names(space: SearchSpace) -> list[str]:
    return [gene.name for gene in space.genes(4)]


def faults(write: Write, space: str) -> list[str]:
    with pytest.raises(SpaceError) as refused:
        load_space(write(space))
    return [str(fault).rpartition("space.yaml:")[2] for fault in refused.value.faults]


def test_slerps_t_varies_like_a_weight(load: Load) -> None:
    genome = "layers: {groups: 2, smooth: true}, filters: [mlp], t: [0, 1]"
    space = load(text("slerp", genome, models=1))
    assert names(space) == ["t/mlp/0", "t/mlp/1", "t/rest/0", "t/rest/1"]
    point = dict(zip(names(space), (0.0, 0.75, 0.25, 0.25), strict=True))
    found = merged(space, point)
    assert (found[MLP].t, found[ATTENTION].t) == (0.25, 0.25)
    assert found["model.layers.3.mlp.up_proj.weight"].t == 0.75
    assert found["model.embed_tokens.weight"].t == 0.25
    whole = load(text("slerp", genome.replace("t: [0, 1]", "t: {whole: [0, 1]}"), models=1))
    assert names(whole) == ["t"]
    assert {merge.t for merge in merged(whole, {"t": 0.5}).values()} == {0.5}
    blocks = load(text("slerp", "layers: {groups: 2}, filters: [mlp], t: [0, 1]", models=1))
    found = merged(blocks, point)
    assert (found[MLP].t, found[ATTENTION].t) == (0.0, 0.25)
    assert found["model.layers.2.mlp.up_proj.weight"].t == 0.75


def test_slerp_needs_t_and_one_model(write: Write) -> None:
    assert faults(write, text("slerp", "", models=2)) == [
        "2: models: 2 models are refused: slerp merges exactly 1, the base not counted",
        "4: genome.t: is missing, and slerp requires it; write t: [0.0, 1.0] to search it",
    ]
    assert faults(write, text("slerp", "t: 0.5, weight: [0, 2]", models=1)) == [
        "4: genome.weight: has no effect: slerp reads t; weight is read by linear, "
        "task_arithmetic, ties, dare_linear, dare_ties, della, della_linear, breadcrumbs, "
        "breadcrumbs_ties, nuslerp",
        "4: genome: nothing varies: give at least one parameter a range, such as t: [0.0, 1.0]",
    ]


def test_lambda_for_each_group_and_filter(load: Load) -> None:
    varying = "layers: {groups: 2}, filters: [mlp], weight: 1, lambda: "
    whole = load(text("task_arithmetic", f"{varying}[0, 2]"))
    assert whole.genome.lambda_ == Common(Range(0.0, 2.0), each=False)
    assert names(whole) == ["lambda"]
    each = load(text("task_arithmetic", f"{varying}{{each: [0, 2]}}"))
    assert names(each) == ["lambda/mlp/0", "lambda/mlp/1", "lambda/rest/0", "lambda/rest/1"]
    point = dict(zip(names(each), (0.25, 0.5, 1.0, 1.5), strict=True))
    found = merged(each, point)
    assert [found[name].lambda_ for name in (MLP, ATTENTION)] == [0.25, 1.0]
    assert found["model.layers.2.mlp.up_proj.weight"].lambda_ == 0.5
    assert found["lm_head.weight"].lambda_ == 1.5
    assert each.digest() != whole.digest()
    plain = load(text("task_arithmetic", f"{varying}{{whole: [0, 2]}}"))
    assert plain.digest() == whole.digest(), "two ways to say the same"


def test_sce_and_model_stock(load: Load, write: Write) -> None:
    space = load(text("sce", "select_topk: [0.1, 1], layers: {groups: 2}", models=3))
    assert names(space) == ["select_topk/0", "select_topk/1"]
    found = merged(space, {"select_topk/0": 0.25, "select_topk/1": 1.0})
    assert found[MLP].select_topk == 0.25
    assert found["model.norm.weight"].select_topk == 1.0
    stock = text("[model_stock, sce]", "select_topk: [0.1, 1], filter_wise: true")
    space = load(stock)
    assert merged(space, {"merge_method": 0.1, "select_topk": 0.5})[MLP].filter_wise
    assert not merged(space, {"merge_method": 0.9, "select_topk": 0.5})[MLP].filter_wise
    assert (
        "1 models are refused: model_stock merges at least 2"
        in faults(write, text("[model_stock, sce]", "select_topk: [0.1, 1]", models=1))[0]
    )


def test_nuslerp_has_the_base_that_the_space_names(load: Load) -> None:
    space = load(text("nuslerp", "nuslerp_flatten: false, nuslerp_row_wise: true"))
    assert names(space) == ["weight/math", "weight/code"]
    found = merged(space, middle(space))[MLP]
    assert (found.base is not None, found.flatten, found.row_wise) == (True, False, True)
    without = load(text("nuslerp").replace("base_model: models/base\n", ""))
    assert merged(without, middle(without))[MLP].base is None


def test_gamma_for_each_model_and_as_a_share(load: Load, write: Write) -> None:
    genome = "weight: 1, density: [0.5, 1], gamma: {math: [0, 0.2], default: 0.05}"
    space = load(text("breadcrumbs_ties", genome))
    assert names(space) == ["density/math", "density/code", "gamma/math"]
    point = {"density/math": 0.9, "density/code": 0.5, "gamma/math": 0.2}
    assert [c.gamma for c in merged(space, point)[MLP].contributions] == [0.2, 0.05]
    share = load(text("breadcrumbs", "weight: 1, density: 0.75, gamma: {share: [0, 1]}"))
    point = {"gamma/math": 0.5, "gamma/code": 1.0}
    assert [c.gamma for c in merged(share, point)[MLP].contributions] == [0.125, 0.25]
    assert (
        "gamma: 1.0 is refused: must be in [0, 1); {share: [0, 1]} is a share"
        in faults(write, text("breadcrumbs", "density: 0.5, gamma: [0, 1.0]"))[0]
    )
    assert (
        "genome.gamma: has no effect without density"
        in faults(write, text("breadcrumbs", "gamma: [0, 0.5]"))[0]
    )


@pytest.mark.parametrize("density", [0.001, 0.3, 0.5, 0.9, 1.0])
def test_epsilon_as_a_share_of_what_density_leaves(load: Load, density: float) -> None:
    space = load(text("della", f"weight: 1, density: {density}, epsilon: {{share: [0, 1]}}"))
    room = min(density, 1 - density)
    for share in (0.0, 0.5, 1.0):
        found = merged(space, {"epsilon/math": share, "epsilon/code": 0.5})[MLP]
        epsilons = [one.epsilon for one in found.contributions]
        assert epsilons == pytest.approx([share * room, 0.5 * room], abs=2e-9)


def test_an_epsilon_that_is_no_share_is_a_half_width(load: Load, write: Write) -> None:
    for value in ("0.15", "[0, 0.4]", "{math: [0, 0.4], default: 0.1}"):
        load(text("della", f"density: [0.1, 1], epsilon: {value}"))
    assert (
        "epsilon: 0.5 is refused: must be in [0, 0.5); {share: [0, 1]} is a share of what"
        in (faults(write, text("della", "density: [0.1, 1], epsilon: [0, 0.5]"))[0])
    )
    assert (
        "epsilon: 1.5 is refused: must be in [0, 1], a share"
        in (faults(write, text("della", "density: [0.1, 1], epsilon: {share: [0, 1.5]}"))[0])
    )
    fixed = load(text("della", "density: 0.4, epsilon: {share: 0.5}, weight: [0, 1]"))
    assert merged(fixed, middle(fixed))[MLP].contributions[0].epsilon == 0.2


def test_the_method_is_a_gene(load: Load) -> None:
    space = load(
        text("[ties, dare_ties, linear]", "weight: [0, 1], density: [0.2, 0.9], rescale: true")
    )
    assert names(space) == [
        *("weight/math", "weight/code", "density/math", "density/code", "merge_method")
    ]
    assert space.methods == ("ties", "dare_ties", "linear")
    chosen = {
        value: merged(space, middle(space, merge_method=value))[MLP]
        for value in (0.0, 0.33, 0.34, 0.66, 0.67, 1.0)
    }
    assert [merge.method for merge in chosen.values()] == [
        *("ties", "ties", "dare_ties", "dare_ties", "linear", "linear")
    ]
    assert [merge.rescale for merge in chosen.values()] == [True] * 4 + [False] * 2
    assert {part.density for part in chosen[1.0].contributions} == {1.0}, "not read, so not said"
    mapping = space.recipe_mapping(middle(space, merge_method=1.0), 4)
    assert "base_model" not in mapping
    assert "mask_seed" not in mapping
    for method in space.methods:
        genome = space.encode(4, {"math": 0.5, "code": 0.5}, method=method)
        assert genome is not None
        assert merged(space, genome)[MLP].method == method
    again = SearchSpace.model_validate_json(space.model_dump_json())
    assert again == space
    assert again.digest() == space.digest()


def test_a_list_is_refused_where_a_method_cannot_be(write: Write) -> None:
    assert faults(write, text("[ties, slerp, linear]", "weight: [0, 1], gamma: 0.1")) == [
        "2: models: 2 models are refused: slerp merges exactly 1, the base not counted",
        "4: genome.t: is missing, and slerp requires it; write t: [0.0, 1.0] to search it",
        "4: genome.gamma: has no effect: ties and slerp and linear reads weight, normalize, "
        "lambda, density, rescale, t; gamma is read by breadcrumbs, breadcrumbs_ties",
    ]
    both = text("[ties, linear]", extra="tokenizer_source: base\n")
    assert (
        "tokenizer_source: 'base' is refused: linear blends only models" in faults(write, both)[0]
    )


def test_the_papers_variant_in_a_space(load: Load, write: Write) -> None:
    genome = "layers: {groups: 2}, filters: [mlp], density: [0.1, 0.9], lambda: [0.2, 1.2]"
    space = load(text("ties", genome, extra="variant: paper\n"))
    assert names(space) == ["density/math", "density/code", "lambda"], "one density for all"
    found = merged(space, {"density/math": 0.2, "density/code": 0.3, "lambda": 1.0})
    assert {merge.variant for merge in found.values()} == {"paper"}
    assert {tuple(c.density for c in merge.contributions) for merge in found.values()} == {
        (0.2, 0.3)
    }
    order = "density: [0.1, 0.9], trim: [0.1, 1], layers: {groups: 2}, lambda: 1"
    dare = load(text("dare_ties", order, extra="variant: paper\nmask_seed: 7\n"))
    assert names(dare) == [
        *("density/math/0", "density/math/1", "density/code/0", "density/code/1"),
        *("trim/math", "trim/code"),
    ]
    found = merged(dare, middle(dare, **{"trim/math": 0.25}))
    assert {merge.contributions[0].trim for merge in found.values()} == {0.25}
    assert {merge.mask_seed for merge in found.values()} == {7}
    assert (
        "genome.weight: has no effect: ties with variant paper reads lambda, density"
        in faults(
            write, text("ties", "weight: [0, 2], density: [0.1, 1]", extra="variant: paper\n")
        )[0]
    )
    assert (
        "genome.trim: has no effect"
        in faults(write, text("dare_ties", "density: 0.5, trim: [0.1, 1]"))[0]
    )


def test_ablations_in_a_space(load: Load, write: Write) -> None:
    keys = "mask_by: magnitude\nmask_of: weights\n"
    space = load(text("[dare_linear, ties]", "density: [0.1, 0.9], rescale: false", extra=keys))
    found = merged(space, middle(space, merge_method=0.0))[MLP]
    assert (found.mask_by, found.mask_of, found.rescale) == ("magnitude", "weights", False)
    plain = merged(space, middle(space, merge_method=1.0))[MLP]
    assert (plain.method, plain.mask_by, plain.mask_of) == ("ties", "random", "task_vectors")
    found_faults = faults(
        write, text("ties", "density: [0.1, 1]", extra=f"{keys}variant: papers\n")
    )
    assert found_faults == [
        "6: mask_by: 'magnitude' is refused: ties has none; allowed for dare_linear, dare_ties",
        "7: mask_of: 'weights' is refused: ties has none; allowed for dare_linear, dare_ties",
        "8: variant: 'papers' is refused: must be 'mergekit' or 'paper'",
    ]
    assert (
        "variant: 'paper' is refused: slerp has none; allowed for ties, dare_linear"
        in faults(write, text("slerp", "t: [0, 1]", models=1, extra="variant: paper\n"))[0]
    )
    assert space.digest() != space.model_copy(update={"mask_by": "random"}).digest()


def test_a_blend_that_cancels_out_is_still_a_blend(load: Load) -> None:
    genome = "weight: [-1, 1], layers: {groups: 2, smooth: true}"
    space = load(text("linear", genome))
    ends = {"weight/math/0": -1.0, "weight/math/1": 1.0, "weight/code/0": 0.0, "weight/code/1": 0.0}
    for point in (ends, {name: -value for name, value in ends.items()}, dict.fromkeys(ends, 0.0)):
        for layers in (3, 5):  # the middle layer's weights cancel out
            assert len(merged(space, point, layers)) == len(layout(layers).tensors)
    zero = text("[linear, ties]", "weight: {math: 0.5, code: -0.5}, lambda: [0, 1]")
    with pytest.raises(SpaceError, match=r"the weights sum to 0, and linear divides by their sum"):
        load(zero)


STAGED = """
name: reasoner
base_model: models/base
models: [models/math, models/code]
merge_method: dare_ties
genome: {weight: [0, 1], density: [0.1, 1]}
mask_seed: 3
---
base_model: models/base
models: [reasoner, models/chat]
merge_method: task_arithmetic
genome: {lambda: [0, 2], weight: 1}
tasks: [arc_easy]
"""


def test_a_space_of_two_stages(load: Load, folder: Path) -> None:
    space = load(STAGED)
    assert names(space) == [
        *("reasoner/weight/math", "reasoner/weight/code"),
        *("reasoner/density/math", "reasoner/density/code", "lambda"),
    ]
    genome = middle(space, **{"reasoner/weight/math": 0.25, "lambda": 1.5})
    base, math, code, chat = (str(folder / f"models/{n}") for n in ("base", "math", "code", "chat"))
    assert space.recipe_mappings(genome, 4) == (
        {
            "name": "reasoner",
            "merge_method": "dare_ties",
            "base_model": base,
            "models": [
                {"model": math, "parameters": {"weight": 0.25, "density": 0.55}},
                {"model": code, "parameters": {"weight": 0.5, "density": 0.55}},
            ],
            "mask_seed": 3,
        },
        {
            "merge_method": "task_arithmetic",
            "base_model": base,
            "models": [
                {"model": "reasoner", "parameters": {"weight": 1.0}},
                {"model": chat, "parameters": {"weight": 1.0}},
            ],
            "parameters": {"lambda": 1.5},
        },
    )
    assert [str(model) for model in space.stored_models] == [base, math, code, chat]
    assert space.methods_named == "dare_ties, then task_arithmetic"
    again = SearchSpace.model_validate_json(space.model_dump_json())
    assert (again, again.digest()) == (space, space.digest())
    changed = load(STAGED.replace("[0.1, 1]", "[0.2, 1]"))
    assert changed.describe_changes(space) == [
        "stages[0].genome.density is [0.2, 1.0], was [0.1, 1.0]"
    ]
    with pytest.raises(ValueError, match="several stages"):
        space.recipe_mapping(genome, 4)


def test_a_stage_may_be_fixed_and_be_the_base(load: Load) -> None:
    fixed = STAGED.replace("weight: [0, 1], density: [0.1, 1]", "weight: 1, density: 0.3")
    last = "base_model: reasoner\nmodels: [models/chat]"
    space = load(fixed.replace("base_model: models/base\nmodels: [reasoner, models/chat]", last))
    assert names(space) == ["lambda"]
    assert space.base_model is not None
    assert space.base_model.path == "reasoner"
    assert space.stored_models[0].path.endswith("models/base")


def test_what_is_wrong_with_stages_is_said_with_its_line(write: Write) -> None:
    def found(old: str, new: str) -> list[str]:
        return faults(write, STAGED.replace(old, new, 1))

    assert found("name: reasoner", "name: a/b")[0].startswith("1: name: 'a/b' is refused: a name")
    assert found("name: reasoner\n", "")[0].startswith("1: name: is missing: only the last")
    assert "the genes of the last stage are called so" in found("name: reasoner", "name: lambda")[0]
    assert found("[reasoner, models", "[models") == ["1: name: no later stage takes 'reasoner'"]
    assert found("[models/math, models/code]", "[models/math, reasoner]") == [
        "3: models[1]: 'reasoner' is a stage that is not made before this"
    ]
    assert found("[reasoner,", "[reasoner@v1,")[0] == (
        "9: models[0]: 'reasoner@v1' is the result of a stage, which has no revision and no adapter"
    )
    assert found("mask_seed: 3", "search: {seed: 1}") == [
        "6: search: is refused here: it stands in the last document"
    ]
    assert found("density: [0.1, 1]", "density: [0.1, 2]")[0].startswith("5: genome.density: 2 is")
    assert found("dare_ties", "dare_tie")[0].startswith("4: merge_method: 'dare_tie' is refused")
    twice = STAGED.replace("---\n", f"---{STAGED.partition('---')[0]}---\n", 1)
    assert any(fault.endswith(" is called so") for fault in faults(write, twice))
    assert found("tasks: [arc_easy]\n", "") == ["8: tasks: is missing and required"]
    nothing = STAGED.replace("weight: [0, 1], density: [0.1, 1]", "weight: 1, density: 0.3")
    assert faults(write, nothing.replace("[0, 2]", "1"))[0].startswith("11: genome: nothing varies")


def test_a_stages_baselines_as_genomes(load: Load) -> None:
    space = load(STAGED.replace("weight: 1}", "weight: [0, 1]}"))
    uniform = space.encode(4, {"reasoner": 0.5, "chat": 0.5})
    assert uniform == {
        **{"reasoner/weight/math": 0.5, "reasoner/weight/code": 0.5},
        **{"reasoner/density/math": 1.0, "reasoner/density/code": 1.0},
        **{"weight/reasoner": 0.5, "weight/chat": 0.5, "lambda": 1.0},
    }
