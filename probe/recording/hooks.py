"""Keep the chosen dimensions of the chosen layers, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from probe.errors import FieldError, ProbeError, literal
from probe.recording.sites import SITES, AttentionSite, Take
from probe.seam.chunked_prefill import marked
from probe.seam.construction import ProbedModel, ToyModel
from probe.seam.families import Family, family_of, unwrapped

Key = tuple[str, int]
"""(site, 1-based layer)."""


def _not_recorded(site: str, layer: int, recorded: Iterable[Key]) -> ProbeError:
    seen = ", ".join(f"{name}.{number}" for name, number in recorded) or "nothing"
    return ProbeError(f"{site}.{layer} was not recorded; recorded: {seen}")


@dataclass
class Recording:
    """What the hooks saw: for each (site, layer) the chosen dimensions, in order of position."""

    dims: list[int]
    _chunks: dict[Key, list[Tensor]] = field(default_factory=dict)

    def add(self, key: Key, values: Float[Tensor, "batch positions width"]) -> None:
        """Keep what one forward call gave; several calls follow one another in position."""
        index = torch.tensor(self.dims, device=values.device)
        self._chunks.setdefault(key, []).append(values.detach().index_select(-1, index).float().cpu())

    def mark(self) -> Callable[[], None]:
        """What drops all that is added from now on: of a call that failed in a deeper layer, and is tried again in
        parts.
        """
        counts = {key: len(chunks) for key, chunks in self._chunks.items()}

        def undo() -> None:
            for key, chunks in self._chunks.items():
                del chunks[counts.get(key, 0) :]

        return undo

    def values(self, site: str, layer: int) -> Float[Tensor, "batch positions dims"]:
        """Recorded values of one site, float32 on CPU.

        Raises:
            ProbeError: that site was not recorded; the message lists those that were.
        """
        if (site, layer) not in self._chunks:
            raise _not_recorded(site, layer, self._chunks)
        return torch.cat(self._chunks[site, layer], dim=1)


@dataclass
class SpilledRecording(Recording):
    """A recording of one sequence that is written to files as it comes, so that it need not fit into memory.

    Attributes:
        folder: where; a file for each (site, layer), of rows of float32.
    """

    folder: Path = Path()
    _files: dict[Key, IO[bytes]] = field(default_factory=dict)

    @override
    def add(self, key: Key, values: Float[Tensor, "batch positions width"]) -> None:
        """Write what one forward call gave.

        Raises:
            ProbeError: more than one sequence, whose positions would be mixed up.
        """
        if len(values) != 1:
            raise ProbeError(f"a recording on disk is of one sequence: expected a batch of 1, got {len(values)}")
        if key not in self._files:
            self._files[key] = self._path(key).open("w+b")
        index = torch.tensor(self.dims, device=values.device)
        rows = values[0].detach().index_select(-1, index).float().cpu().contiguous()
        self._files[key].write(rows.numpy().tobytes())

    def _path(self, key: Key) -> Path:
        return self.folder / f"{key[0]}.{key[1]}"

    @override
    def mark(self) -> Callable[[], None]:
        sizes = {key: file.tell() for key, file in self._files.items()}

        def undo() -> None:
            for key, file in self._files.items():
                file.seek(sizes.get(key, 0))
                file.truncate()

        return undo

    @override
    def values(self, site: str, layer: int) -> Float[Tensor, "batch positions dims"]:
        """Recorded values of one site, mapped from its file; they are readable as long as somebody holds them."""
        if (site, layer) not in self._files:
            raise _not_recorded(site, layer, self._files)
        if not self._files[site, layer].closed:
            self._files[site, layer].flush()
        mapped = np.memmap(self._path((site, layer)), np.float32, mode="c")
        return torch.from_numpy(mapped.reshape(1, -1, len(self.dims)))

    def close(self) -> None:
        """Nothing comes any more."""
        for file in self._files.values():
            file.close()


def check_sites(
    model: ProbedModel, family: Family, sites: Iterable[str], layers: Iterable[int], dims: Iterable[int]
) -> None:
    """Refuse what the model does not have.

    Raises:
        ProbeError: an unknown site, or a layer or dimension out of range; the message says the range.
    """
    count = len(family.layer_list(model))
    for layer in layers:
        if not 1 <= layer <= count:
            raise FieldError("layers", f"1 to {count} (layer 1 is the first)", layer)
    dims = list(dims)
    for site in (SITES[site] for site in sites):
        if isinstance(model, ToyModel) and isinstance(site, AttentionSite):
            raise FieldError(
                "sites", "a module's output", literal(site.name), "a construction's attention is not watched"
            )
        width = site.width(model.config)
        for dim in dims:
            if not 0 <= dim < width:
                raise FieldError("dims", f"0 to {width - 1}, the {site.counts} of site {literal(site.name)}", dim)


@contextmanager
def record(
    model: ProbedModel | nn.Module,
    sites: Iterable[str],
    layers: Iterable[int],
    dims: Iterable[int],
    spill: Path | None = None,
) -> Iterator[Recording]:
    """Record inside the context; the hooks are gone when it ends, also on an exception.

    Args:
        model: a causal LM of a supported family, or one with PEFT adapters on it.
        sites: names in `SITES`.
        layers: 1-based; layer n's "resid" is `hidden_states[n]` (before the final norm for the last one).
        dims: 0-based dimensions of the hidden state.
        spill: a folder to write what is recorded into, for a recording of one sequence that would not fit into memory.

    Raises:
        ProbeError: as `check_sites`.
    """
    sites, layers, dims = list(sites), list(layers), list(dims)
    model = unwrapped(model)
    family = family_of(model.config)
    check_sites(model, family, sites, layers, dims)
    recording = Recording(dims) if spill is None else SpilledRecording(dims, folder=spill)

    def taken(site: str) -> Take:
        return lambda layer, values: recording.add((site, layer), values)

    with ExitStack() as undo:
        if isinstance(recording, SpilledRecording):
            undo.callback(recording.close)
        for site in sites:
            undo.enter_context(SITES[site].recorded(model, family, layers, taken(site)))
        with marked(model, recording.mark):
            yield recording
