"""From a recipe and a layout to one set of coefficients per output tensor.

The meaning is mergekit 0.1.5's (its planner and parameter resolver), tensor by tensor:

- Depth: t = i / (n - 1) for layer i of a slice of n, 1 in a slice of one layer, 0 outside the
  layers.
- Tensors before the layers take the first slice's settings, those after them the last slice's.
- A filter is compared with the model's own tensor name for what each model has its own of (weight,
  density, …), with the output's for what all models share; where slices move layers these differ.
- A model's settings go before its slice's, these before the module's, these before the recipe's; a
  level none of whose filters fits is passed over.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from evomerge.errors import Fault, RecipeError
from evomerge.recipe.checks import several_problem
from evomerge.recipe.layout import Contribution, Layout, TensorMerge
from evomerge.recipe.ledger import RecipeWarning
from evomerge.recipe.model import Recipe, Slice, Source
from evomerge.recipe.ranges import density_problem
from evomerge.recipe.settings import Value, lookup
from evomerge.references import ModelReference

_T = TypeVar("_T")


def output_layers(recipe: Recipe, num_layers: int) -> int:
    """How many layers the merged model has.

    Args:
        recipe: the recipe.
        num_layers: how many layers the models that it names have.
    """
    return sum(num_layers if b.num_layers is None else b.num_layers for b in recipe.blocks)


def resolve(recipe: Recipe, layout: Layout) -> tuple[TensorMerge, ...]:
    """Every output tensor's inputs and coefficients, all defaults applied.

    The tensors before the layers come first, then layer by layer, then those behind; their order
    follows the layout's. Slices give output layers numbers from 0 in the order of the recipe.

    Raises:
        RecipeError: a slice asks for layers or tensors that the layout lacks, a model has no weight
            for some tensor, a density or epsilon is out of range there, ``linear`` is to divide by
            weights that sum to 0, ``slerp`` has no ``t`` for some tensor, or the variant ``paper``
            is to trim a model by several densities. All at once, each named once with the first
            tensor concerned.
    """
    blocks = tuple(_ranged(block, layout.num_layers) for block in recipe.blocks)
    _check_ranges(blocks, layout)
    _warn_of_short_first(recipe, blocks)
    resolver = _Resolver(recipe, layout)
    merges = tuple(resolver.merge(tensor) for tensor in _tensors(recipe, blocks, layout))
    resolver.raise_faults()
    return merges


@dataclass(frozen=True)
class _Tensor:
    """An output tensor before its coefficients; ``inputs`` go with the block's sources."""

    name: str
    block: Slice
    inputs: tuple[str, ...]
    t: float


def _ranged(block: Slice, num_layers: int) -> Slice:
    """The block with every source's layers written out."""
    whole = (0, num_layers)
    return replace(
        block, sources=tuple(replace(s, layers=s.layers or whole) for s in block.sources)
    )


def _first(source: Source) -> int:
    return source.layers[0] if source.layers else 0


def _check_ranges(blocks: tuple[Slice, ...], layout: Layout) -> None:
    faults = [
        Fault(
            source.place,
            f"layer_range [{source.layers[0]}, {source.layers[1]}] is refused: the model has "
            f"{layout.num_layers} layers, so the second number is at most {layout.num_layers}",
        )
        for block in blocks
        for source in block.sources
        if source.layers and source.layers[1] > layout.num_layers
    ]
    if faults:
        raise RecipeError(faults)


def _warn_of_short_first(recipe: Recipe, blocks: tuple[Slice, ...]) -> None:
    """mergekit 0.1.5 counts the sources of the last tensors by the first slice; we do not."""
    first, last = len(blocks[0].sources), len(blocks[-1].sources)
    if first < last:
        left_out = ", ".join(str(source.model) for source in blocks[-1].sources[first:])
        warnings.warn(
            f"{recipe.place}: the first slice has {first} sources, the last {last}: mergekit 0.1.5 "
            f"leaves {left_out} out of the tensors behind the layers, we merge them as written",
            RecipeWarning,
            stacklevel=3,
        )


def _tensors(recipe: Recipe, blocks: tuple[Slice, ...], layout: Layout) -> Iterator[_Tensor]:
    outside = [name for name, layer in layout.tensors.items() if layer is None]
    for name in outside:
        if name not in layout.last:
            yield _Tensor(name, blocks[0], (name,) * len(blocks[0].sources), 0.0)
    index = 0
    for block in blocks:
        base = recipe.base_of(block)
        lead = next((s for s in block.sources if s.model == base), block.sources[0])
        count = block.num_layers or 0
        for step in range(count):
            t = step / (count - 1) if count > 1 else 1.0
            for name in layout.layers[_first(lead) + step]:
                inputs = tuple(layout.at_layer(name, _first(s) + step) for s in block.sources)
                yield _Tensor(layout.at_layer(name, index), block, inputs, t)
            index += 1
    for name in outside:
        if name in layout.last:
            yield _Tensor(name, blocks[-1], (name,) * len(blocks[-1].sources), 0.0)


class _Resolver:
    """Looks up coefficients, and gathers what is wrong with them over all tensors."""

    def __init__(self, recipe: Recipe, layout: Layout) -> None:
        self._recipe = recipe
        self._spec = recipe.method
        self._reads = frozenset(recipe.reads)
        self._layout = layout
        self._labels = recipe.labels
        # (place, what is wrong) → the tensors concerned: a fault of one line is one message.
        self._faults: dict[tuple[str, str], list[str]] = {}
        # model → the one value that all its tensors have, where a model is trimmed as a whole.
        self._whole: dict[ModelReference, float] = {}
        # Without filters all tensors of a depth have the same coefficients: found once.
        self._filtered = any(
            parameters.filtered
            for block in recipe.blocks
            for level in ((), *((source,) for source in block.sources))
            for parameters in recipe.levels(block, *level)
        )
        self._found: dict[Hashable, Any] = {}

    def _once(self, owner: Source | Slice, name: str, t: float, find: Callable[[], _T]) -> _T:
        """What holds for a block's or a source's tensors of a depth; with filters, for one."""
        key = (id(owner), t, name if self._filtered else "")
        if key not in self._found:
            faults = sum(map(len, self._faults.values()))
            found = find()
            if faults != sum(map(len, self._faults.values())):
                return found  # every tensor that is concerned is counted
            self._found[key] = found
        return self._found[key]

    def merge(self, tensor: _Tensor) -> TensorMerge:
        base = self._recipe.base_of(tensor.block)
        base_input = None
        contributions = []
        for source, name in zip(tensor.block.sources, tensor.inputs, strict=True):
            if name not in self._layout.tensors:
                self._fault(source.place, f"{source.model} has no tensor for it", tensor.name)
            if source.model == base:
                base_input = (source.model, name)
            else:
                contributions.append(self._contribution(source, name, tensor))
        spec = self._spec
        shared = self._once(tensor.block, tensor.name, tensor.t, lambda: self._all_shared(tensor))
        divides = shared["normalize"] and spec.consensus == "blend"
        if divides and sum(c.weight for c in contributions) == 0:
            problem = f"the weights sum to 0 and {spec.name} divides by their sum"
            self._fault(tensor.block.place, f"{problem} (normalize: false would not)", tensor.name)
        return TensorMerge(
            name=tensor.name,
            method=spec.name,
            base=base_input,
            contributions=tuple(contributions),
            mask_seed=self._recipe.mask_seed,
            variant=self._recipe.variant,
            mask_by=self._recipe.mask_by,
            mask_of=self._recipe.mask_of,
            **shared,
        )

    def _all_shared(self, tensor: _Tensor) -> dict[str, Any]:
        """What all models share."""
        spec, shared = self._spec, self._shared
        return {
            "normalize": bool(shared("normalize", spec.normalize, tensor)),
            "rescale": bool(shared("rescale", spec.rescale, tensor)),
            "lambda_": float(shared("lambda", spec.lambda_, tensor)),
            "t": self._t(tensor),
            "select_topk": float(shared("select_topk", spec.select_topk, tensor)),
            "flatten": bool(shared("nuslerp_flatten", True, tensor)),
            "row_wise": bool(shared("nuslerp_row_wise", False, tensor)),
            "filter_wise": bool(shared("filter_wise", False, tensor)),
        }

    def _contribution(self, source: Source, name: str, tensor: _Tensor) -> Contribution:
        values = self._once(source, name, tensor.t, lambda: self._values(source, name, tensor))
        return Contribution(source.model, self._labels[source.model], name, **values)

    def _values(self, source: Source, name: str, tensor: _Tensor) -> dict[str, float]:
        """What a model has its own of."""
        spec, whole = self._spec, self._spec.trims_whole(self._recipe.variant)
        defaults: dict[str, float | None] = {
            "weight": None,
            "density": spec.density,
            "epsilon": spec.epsilon,
            "gamma": spec.gamma,
            "trim": 1.0,
        }
        values: dict[str, float] = {"weight": 1.0, "density": 1.0, "epsilon": 0.0}
        places: dict[str, str] = {}
        levels = self._recipe.levels(tensor.block, source)
        for parameter, default in defaults.items():
            if parameter not in self._reads:
                continue
            found, place = lookup(levels, parameter, name, tensor.t)
            places[parameter] = place or source.place
            if found is None and default is None:
                lacks = "has no weight: no filter fits, and no entry is without a filter"
                self._fault(source.place, f"{source.model} {lacks}", name)
            values[parameter] = float((default or 0.0) if found is None else found)
        problem = density_problem(spec, values["density"], values["epsilon"])
        if problem:
            self._fault(places["density"], f"{source.model}: {problem}", name)
        if whole:
            values[whole] = self._one_value(source, whole, values[whole], places[whole], name)
        return values

    def _one_value(
        self, source: Source, parameter: str, value: float, place: str, name: str
    ) -> float:
        """The value that a whole model has; a gradient of equal knots has it but for rounding."""
        first = self._whole.setdefault(source.model, value)
        if not math.isclose(first, value, rel_tol=1e-12):
            problem = several_problem(self._spec, parameter, {first, value})
            self._fault(place, f"{source.model}: {problem}", name)
        return first

    def _t(self, tensor: _Tensor) -> float:
        if "t" not in self._reads:
            return 0.0
        value, _ = lookup(self._recipe.levels(tensor.block), "t", tensor.name, tensor.t)
        if value is None:
            problem = f"{self._spec.name} has no t: no filter fits, and no entry is without one"
            self._fault(tensor.block.place, problem, tensor.name)
        return float(value or 0.0)

    def _shared(self, name: str, default: Value, tensor: _Tensor) -> Value:
        """A parameter that holds for the tensor; what the method does not read has its default."""
        if name not in self._reads:
            return default
        levels = self._recipe.levels(tensor.block)
        value, _ = lookup(levels, name, tensor.name, tensor.t)
        return default if value is None else value

    def _fault(self, place: str, problem: str, tensor: str) -> None:
        self._faults.setdefault((place, problem), []).append(tensor)

    def raise_faults(self) -> None:
        if not self._faults:
            return
        raise RecipeError(
            Fault(place, f"{problem} ({_concerned(tensors)})")
            for (place, problem), tensors in self._faults.items()
        )


def _concerned(tensors: list[str]) -> str:
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return f"tensor {tensors[0]}{more}"
