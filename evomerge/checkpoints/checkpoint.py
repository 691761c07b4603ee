"""A model as it is stored: names, shapes and types at once, tensors when they are asked for."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from evomerge.checkpoints.aligning import align
from evomerge.checkpoints.configuration import counted_layers, read_config, text_section
from evomerge.checkpoints.fingerprints import sha256_of
from evomerge.checkpoints.folders import locate, parsed
from evomerge.checkpoints.joined import Loaded
from evomerge.checkpoints.living import (
    empty_model,
    has_tied_head,
    load_config,
    load_model,
    load_model_from,
    load_tokenizer,
)
from evomerge.checkpoints.placing import Placements, Shapes, check_loaded, placements
from evomerge.checkpoints.stored import StoredTensors
from evomerge.checkpoints.structure import (
    Structure,
    find_structure,
    structure_by_names,
    told_by_names,
)
from evomerge.checkpoints.tokens import TokenTable
from evomerge.checkpoints.tying import input_embedding, token_tensors
from evomerge.checkpoints.vocabulary import Vocabulary, read_vocabulary, vocabulary_file
from evomerge.checkpoints.weights import (
    Entry,
    commonest_float,
    find_weights,
)
from evomerge.errors import CheckpointError, Fault
from evomerge.references import ModelReference


class Checkpoint:
    """A stored model. Made by :meth:`open`.

    Attributes:
        reference: how it was named.
        folder: where its weights and configuration lie (a local folder or a hub snapshot).
        trust_remote_code: whether its own Python code may run.
        config: ``config.json``; with an adapter that brings embeddings, ``vocab_size`` is theirs.
    """

    def __init__(
        self,
        reference: ModelReference,
        folder: Path,
        adapter_folder: Path | None,
        *,
        trust_remote_code: bool,
    ) -> None:
        self.reference = reference
        self.folder = folder
        self.trust_remote_code = trust_remote_code
        self.config = read_config(folder, reference)
        self._fingerprint: str | None = None
        weights = find_weights(folder)
        self._stored = StoredTensors(weights, self._has_tied_head, adapter_folder, self._loaded)
        if adapter_folder is not None and "vocab_size" in self.config:
            self.config["vocab_size"] = self.vocab_size

    @classmethod
    def open(
        cls, reference: ModelReference | str, *, trust_remote_code: bool = False
    ) -> Checkpoint:
        """Find a model and read the headers of its files.

        Args:
            reference: ``path[@revision][+lora[@revision]]``: folders, or names on the hub, which
                is asked only where there is no such folder (and never with ``HF_HUB_OFFLINE``).
            trust_remote_code: whether the model's own Python code may run when it is loaded.

        Raises:
            CheckpointError: it cannot be found or read, is quantised, or its adapter is not
                supported or does not fit.
        """
        model = parsed(reference)
        folder = locate(model.path, model.revision, trust_remote_code=trust_remote_code)
        adapter = locate(model.lora, model.lora_revision) if model.lora else None
        return cls(model, folder, adapter, trust_remote_code=trust_remote_code)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.reference)!r})"

    @property
    def names(self) -> tuple[str, ...]:
        """What is stored, numbers in natural order (layer 2 before layer 10).

        Left out are a tied tensor's second copy (an output head equal to the embeddings) and
        buffers that every model makes anew (rotary frequencies, causal masks).
        """
        return tuple(self._stored.entries)

    def __contains__(self, name: object) -> bool:
        """Whether a tensor is stored, or is another name of one that is."""
        return isinstance(name, str) and self._stored.stored_name(name) is not None

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape; a tied tensor may be asked for by either of its names."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's stored type."""
        return self._entry(name).dtype

    def tensor(self, name: str, *, check: bool = False, mapped: bool = False) -> torch.Tensor:
        """A tensor, on the CPU, in its stored type and in memory of its own.

        Args:
            name: one of ``names``, or a tied tensor's other name.
            check: refuse NaN and infinity.
            mapped: where it is stored as it is, give it as a map of its file, which costs no
                memory and no copy. It is not to be written to, and shows what happens to the file.

        Raises:
            CheckpointError: there is no such tensor, or it holds NaN or infinity.
        """
        stored = self._require(name)
        tensor = self._stored.read(stored, keep=not mapped)
        if check:
            self._stored.check_finite(stored, tensor, f"{self.reference}: {stored}")
        return tensor

    def share(self) -> None:
        """Have ``mapped`` tensors cost one copy for all processes of a machine, computed ones too.

        What an adapter or ``aligned`` changes is computed by the first process, into a scratch file
        among the temporary files that the last one removes.

        Raises:
            CheckpointError: there is no room for it.
        """
        self._stored.share()

    def aligned(self, first: Checkpoint) -> Checkpoint:
        """This model, its tensors by the names that another model of its kind stores them under.

        Tensors with no counterpart in ``first`` keep their own names.
        """
        shapes = self._stored.shapes
        if shapes == first._stored.shapes:
            return self
        wanted, model = first._place(first._stored.shapes), first._empty
        if wanted is None or model is None:
            return self
        other = copy(self)
        other.__dict__ = {k: v for k, v in vars(self).items() if k != "structure"}
        other._stored = align(self._stored, placements(model, shapes), wanted, model)
        return other

    @property
    def torch_dtype(self) -> torch.dtype:
        """The floating type of most stored elements, whatever the configuration says."""
        return commonest_float(self._stored.entries.values())

    @cached_property
    def structure(self) -> Structure:
        """Which tensors belong to which layer."""
        told = told_by_names(self.names, counted_layers(self.config, self.names))
        if told is not None:
            return told
        placed = self._place(self._stored.shapes)
        found = find_structure(self._empty, placed) if self._empty and placed else None
        return found or structure_by_names(self.names, counted_layers(self.config, self.names))

    @property
    def num_layers(self) -> int:
        """The number of layers, of the text's stack where there are several."""
        return self.structure.num_layers

    @cached_property
    def embedding(self) -> str | None:
        """The tensor with a row per token; None where that cannot be told from the names."""
        return input_embedding(self._stored.entries)

    @property
    def vocab_size(self) -> int:
        """The height of the input embedding (which may exceed the tokenizer's vocabulary)."""
        if self.embedding is not None:
            return self.shape(self.embedding)[0]
        return int(text_section(self.config).get("vocab_size", 0))

    @cached_property
    def token_tensors(self) -> tuple[str, ...]:
        """The tensors with a row (or an entry) per token: embeddings, output head, its bias."""
        return token_tensors(self._stored.entries)

    @property
    def nbytes(self) -> int:
        """Size of the stored tensors in bytes."""
        return sum(entry.nbytes for entry in self._stored.entries.values())

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The files that the tensors come from, an adapter's and its configuration included."""
        adapter = self._stored.adapter
        return (*self._stored.weights.files, *(adapter.files if adapter else ()))

    def fingerprint(self) -> str:
        """SHA-256 of the bytes of ``weight_files``, one after the other; computed once.

        For a model in one file it is that file's own (``sha256sum model.safetensors``).
        """
        if self._fingerprint is None:
            self._fingerprint = sha256_of(self.weight_files)
        return self._fingerprint

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies: with the adapter if that brings one."""
        adapter = self._stored.adapter
        if adapter is not None and vocabulary_file(adapter.folder) is not None:
            return adapter.folder
        return self.folder

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """Tokens and their numbers; None where the tokenizer's files do not tell in plain text."""
        return read_vocabulary(self.tokenizer_folder)

    @cached_property
    def token_table(self) -> TokenTable | None:
        """Tokens and their numbers as transformers has them; None where there is no tokenizer.

        Raises:
            CheckpointError: the tokenizer cannot be loaded.
        """
        if vocabulary_file(self.tokenizer_folder) is None:
            return None
        return TokenTable.of(self.tokenizer())

    def tokenizer(self) -> Any:
        """transformers' tokenizer.

        Raises:
            CheckpointError: there is none, or it cannot be loaded.
        """
        return load_tokenizer(self.tokenizer_folder, str(self.reference), self.trust_remote_code)

    def model_config(self) -> Any:
        """transformers' configuration object.

        Raises:
            CheckpointError: transformers does not know such a model, or it needs code of its own.
        """
        config = load_config(self.folder, str(self.reference), self.trust_remote_code)
        if self.reference.lora is not None and "vocab_size" in self.config:
            config.vocab_size = self.config["vocab_size"]
        return config

    def load_model(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> torch.nn.Module:
        """The model, alive, with these weights (the adapter's change included).

        It is in evaluation mode, needs no gradients, and owns its memory: each parameter is
        allocated once and may be written to in place.

        Args:
            dtype: of the parameters; None is ``torch_dtype``.
            device: where they lie.

        Raises:
            CheckpointError: transformers cannot build it, or weights are missing.
        """
        place, wanted = str(self.reference), dtype or self.torch_dtype
        how = (self.folder, self.model_config(), place, self.trust_remote_code, wanted)
        if self._stored.adapter is None:
            model = load_model(*how)
        else:
            state = {name: self._stored.read(name, keep=False) for name in self.names}
            model = load_model_from(state, *how)
        check_loaded(model, self._stored, place)
        return model.to(device)

    @cached_property
    def _empty(self) -> torch.nn.Module | None:
        """The model without values; None where it cannot be built."""
        place, trusted = str(self.reference), self.trust_remote_code
        try:
            return empty_model(load_config(self.folder, place, trusted), place, trusted)
        except CheckpointError:
            return None

    def _place(self, shapes: Shapes) -> Placements | None:
        return None if self._empty is None else placements(self._empty, shapes)

    def _loaded(self, shapes: Shapes) -> Loaded | None:
        placed, model = self._place(shapes), self._empty
        return None if placed is None or model is None else Loaded.of(model, placed)

    def _has_tied_head(self) -> bool:
        return has_tied_head(self.config, self.folder, str(self.reference), self.trust_remote_code)

    def _require(self, name: str) -> str:
        stored = self._stored.stored_name(name)
        if stored is None:
            raise CheckpointError([Fault(str(self.reference), f"has no tensor {name}")])
        return stored

    def _entry(self, name: str) -> Entry:
        return self._stored.entries[self._require(name)]
