"""What a run says of itself: `run.json` as one typed object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from probe.provenance import Provenance
from probe.recording.place import Place
from probe.schemes import ORIGIN

FORMAT = 2
"""Of run folders; those of format 1 are read too."""


@dataclass(frozen=True)
class SchemeRecord:
    """A scheme as it ran.

    Attributes:
        parameters: those of its text.
        weave: the weave's, as they came out for this length.
        borders: first positions of its chunks; empty where nothing is in chunks.
        seconds: of its pass.
    """

    parameters: Mapping[str, float | str] = field(default_factory=dict)
    weave: Mapping[str, float] = field(default_factory=dict)
    borders: tuple[int, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class InputRecord:
    """What was read.

    Attributes:
        spec: the input's text, such as "word:hello".
        length: tokens.
        samples: sequences that the values are means of.
        sha256: of the token ids; empty where it was not recorded.
        notes: what else there is to know of it: where its first token came from, the repeated unit.
        unigram: nats per token of a guess by how often each token comes in it (the entropy of that distribution); None
            for a repeated unit, which such a guess knows by heart, and in older runs.
    """

    spec: str
    length: int
    samples: int = 1
    sha256: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    unigram: float | None = None


@dataclass(frozen=True)
class DetectionRecord:
    """What a run was judged with: as chosen (None follows the window), and what that came out as."""

    burn_in: int | None
    run_length: int | None
    margin: float
    burn_in_used: int
    run_length_used: int


@dataclass(frozen=True)
class RunInfo:
    """Everything that a run was made with, and what was kept of it.

    Attributes:
        model: as it was named.
        family: its row in the table of families.
        parameters: of the model.
        window: trained window M, tokens.
        vocabulary: tokens of its vocabulary; None in runs of an older format.
        dtype: of its weights.
        device: where it ran.
        layers: recorded layers, 1 is the first.
        dims: recorded dimensions, 0 is the first.
        sites: recorded sites.
        schemes: all that ran, by their text.
        shown: those that were asked for.
        input: what was read.
        detector: what judged it.
        detection: with which settings.
        backend: of the attention.
        chunk_batch: chunks in one call.
        seed: of what was drawn.
        provenance: versions, commit, time, machine.
        local_layers: layers that are local by design and were left as trained.
    """

    model: str
    family: str
    parameters: int
    window: int
    vocabulary: int | None
    dtype: str
    device: str
    layers: tuple[int, ...]
    dims: tuple[int, ...]
    sites: tuple[str, ...]
    schemes: Mapping[str, SchemeRecord]
    shown: tuple[str, ...]
    input: InputRecord
    detector: str
    detection: DetectionRecord
    backend: str
    chunk_batch: int | str
    seed: int
    provenance: Provenance
    local_layers: tuple[int, ...] = ()

    def places(self) -> list[Place]:
        """Every recorded place, under `origin`, in the run's order."""
        return [Place(ORIGIN, site, layer, dim) for site in self.sites for layer in self.layers for dim in self.dims]

    def settings(self) -> dict[str, Any]:
        """What was chosen and what it was chosen for, less the provenance; as JSON has it."""
        found = asdict(self)
        del found["provenance"]
        return found

    def to_json(self) -> dict[str, Any]:
        """`run.json`: the format, then every field."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunInfo:
        """What `to_json` gave, or the `run.json` of a run of format 1.

        Raises:
            KeyError, TypeError, ValueError: it is neither.
        """
        found = dict(value)
        if found.pop("format") == 1:
            found = _from_format_1(found)
        for name in ("layers", "dims", "sites", "shown", "local_layers"):
            found[name] = tuple(found.get(name, ()))
        found["schemes"] = {spec: _scheme(one) for spec, one in found["schemes"].items()}
        found["input"] = InputRecord(**found["input"])
        found["detection"] = DetectionRecord(**found["detection"])
        found["provenance"] = Provenance.from_json(found["provenance"])
        return cls(**found)


def _scheme(value: Mapping[str, Any]) -> SchemeRecord:
    return SchemeRecord(**(dict(value) | {"borders": tuple(value.get("borders") or ())}))


def _from_format_1(found: dict[str, Any]) -> dict[str, Any]:
    """The fields of today from those of format 1, which had the provenance among the settings, and no vocabulary."""
    moved = ("versions", "git_commit", "git_dirty", "platform", "created", "threads")
    used = found["detection"]
    provenance = {name: found.pop(name, None) for name in moved}
    found.pop("rows", None)
    return found | {
        "vocabulary": None,
        "provenance": provenance | {"git_dirty": bool(provenance["git_dirty"])},
        "detection": {
            "burn_in": used["burn_in"],
            "run_length": used["run"],
            "margin": used["margin"],
            "burn_in_used": used["burn_in_used"],
            "run_length_used": used["run_used"],
        },
    }
