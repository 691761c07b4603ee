"""mergekit 0.1.5's own planner and executor, in this process, writing nothing to disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from unittest.mock import patch

import torch
import yaml
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner

from tests.benchmarks.models import Family


class Mergekit:
    """Merges as ``mergekit-yaml`` does, up to where it would write.

    The plan is that of a merge to disk, and what is written to is put in the writer's place: the
    plan for merges in memory cannot be made in 0.1.5 (its task refuses its own arguments).

    The models' files stay open between merges, mapped into memory and read once before the first
    one: what it reads is in memory, as our models are.

    Args:
        family: the models that will be merged.
        device: where it does its arithmetic.
    """

    def __init__(self, family: Family, device: torch.device) -> None:
        logging.getLogger("mergekit").setLevel(logging.ERROR)
        self._device = device
        self._options = MergeOptions(quiet=True, device=str(device))
        self._cache = LoaderCache()
        self._cache.setup(options=self._options)
        self._warm(family)

    def tensors(self, recipe: MergeConfiguration) -> Iterator[tuple[str, torch.Tensor]]:
        """The merged model, tensor by tensor; planning is part of a merge, as it is of ours."""
        config = recipe.model_copy(deep=True)  # planning rewrites it
        architecture = get_architecture_info(config, self._options)
        base = config.base_model or config.referenced_models()[0]
        planner = MergePlanner(
            config, architecture, options=self._options, out_model_config=base.config()
        )
        executor = Executor(planner.plan_to_disk(out_path=""), math_device=self._device)
        writer = _Taken()
        with patch("mergekit.io.tasks.TensorWriter", lambda *_, **__: writer):
            for _ in executor.run(quiet=True):
                yield from writer.tensors
                writer.tensors.clear()

    def merge(self, recipe: MergeConfiguration) -> None:
        """Merge and drop each tensor as it comes."""
        for _ in self.tensors(recipe):
            pass

    def _warm(self, family: Family) -> None:
        listed = [{"model": str(path), "parameters": {"weight": 1.0}} for path in family.all]
        config = MergeConfiguration.model_validate({"merge_method": "linear", "models": listed})
        for model in config.referenced_models():
            loader = self._cache.get(model)
            for name in loader.index.tensor_paths:
                loader.get_tensor(name).view(torch.uint8).view(-1)[::4096].sum()


def read(text: str) -> MergeConfiguration:
    """A recipe, as it reads it."""
    return MergeConfiguration.model_validate(yaml.safe_load(text))


class _Taken:
    """Stands where the writer to disk would."""

    def __init__(self) -> None:
        self.tensors: list[tuple[str, torch.Tensor]] = []

    def save_tensor(self, name: str, tensor: torch.Tensor, clone: bool = False) -> None:
        self.tensors.append((name, tensor))

    def finalize(self) -> None: ...
