"""A merge that a space may vary: the whole space's, or one stage of several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, StrictStr

from evomerge.documents import key_name
from evomerge.errors import Fault
from evomerge.references import ModelReference, labels
from evomerge.space.checks import stage_conflicts
from evomerge.space.methods import METHODS, names_of
from evomerge.space.origin import Origin
from evomerge.space.specs import GenomeSpec, MethodNames, Model, Natural, NotEmpty, Text
from evomerge.space.strict import Conflict, Strict

DType = Literal["float32", "bfloat16", "float16"]


class Stage(Strict):
    """What a merge is made of and what in it may vary.

    Args:
        models: the fine-tuned models, in order, which may be the results of earlier stages; labels
            are ``references.labels`` of them.
        merge_method: one of the methods that a space can name, or several to choose from.
        base_model: what task vectors are taken from and added to. ``linear`` blends only
            ``models``; a base model that is not among them is there to be compared with.
        genome: what varies.
        dtype: the type of the merged model; None is the base checkpoint's.
        mask_seed: of the random masks.
        variant: ``mergekit``, or ``paper`` for the methods that have such a variant.
        mask_by: what DARE's masks go by: ``random``, or ``magnitude``.
        mask_of: what they are put on: ``task_vectors``, or the models' ``weights``.
        tokenizer_source: ``union``, ``base`` or a model.
        name: what later stages call its result; of the last one, what the study is called.
    """

    models: Annotated[tuple[Model, ...], NotEmpty]
    merge_method: MethodNames
    base_model: Model | None = None
    genome: GenomeSpec = GenomeSpec()
    dtype: DType | None = None
    mask_seed: Natural = 0
    variant: Literal["mergekit", "paper"] = "mergekit"
    mask_by: Literal["random", "magnitude"] = "random"
    mask_of: Literal["task_vectors", "weights"] = "task_vectors"
    tokenizer_source: Text | None = None
    name: Annotated[StrictStr, Field(pattern=r"^[^/\\.][^/\\]*$")] = "search"

    _origin: Origin | None = PrivateAttr(default=None)
    _notes: tuple[Fault, ...] = PrivateAttr(default=())

    @classmethod
    def conflicts(cls, fields: Mapping[str, Any]) -> Iterator[Conflict]:
        return stage_conflicts(fields)

    def __eq__(self, other: object) -> bool:
        # Where the lines of the file are is no part of what a space means.
        return type(other) is type(self) and dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def remember(self, origin: Origin, notes: Iterable[Conflict] = ()) -> None:
        """Keep where the keys stand, for messages; no part of what the space means.

        Args:
            origin: the document.
            notes: what in it has no effect. Paths are the document's.
        """
        self._origin = origin
        self._notes = tuple(origin.document.fault(path, text) for path, text in notes)

    @property
    def notes(self) -> tuple[Fault, ...]:
        """What in the document has no effect."""
        return self._notes

    def fault(self, path: tuple[str | int, ...], problem: str) -> Fault:
        """A fault at one of the keys, with its line if it was read from a file."""
        if self._origin is not None:
            return self._origin.fault(path, problem)
        return Fault(f"{self.name}: {key_name(path)}", problem)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods to choose from; one where it is not searched."""
        return names_of(self.merge_method)

    @property
    def labels(self) -> dict[ModelReference, str]:
        """The fine-tuned models' short names."""
        return labels(self.models)

    def reads(self, method: str) -> tuple[str, ...]:
        """The genome's keys that change the result of one of the methods."""
        return METHODS[method].reads_in(self.variant)

    def whole(self, parameter: str) -> bool:
        """Whether a model has one value of a parameter in all its tensors."""
        return any(METHODS[name].whole_in(self.variant) == parameter for name in self.methods)
