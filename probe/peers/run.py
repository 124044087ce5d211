"""One of our schemes beside its authors' own code, on the same weights and tokens: are the logits the same?

The authors' code stays in the user's own checkout, and runs in an environment of the user's with the transformers
release that it needs, in a process of its own: nothing of it is here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from probe.errors import FieldError
from probe.foreign import Release, check_checkout, started, transformers_of
from probe.models.random import Shape
from probe.peers.cases import PEERS, Case, Peer, cases, peer_named
from probe.peers.compare import SAME, SHARPEN, Comparison, comparisons
from probe.provenance import Provenance
from probe.results import Records, Result

DRIVER = Path(__file__).with_name("driver.py")
LAYERS, WIDTH, HEADS, VOCAB = 3, 64, 4, 96
"""Of the random model."""


@dataclass(frozen=True)
class PeerSettings:
    """What is compared.

    Attributes:
        peer: of `PEERS`.
        checkout: the user's, of the authors' repository.
        python: the interpreter that their code runs in.
        window: trained window M; None is the peer's own.
        length: tokens T; None is five windows.
        threads: of the CPU, on each side.
        seed: of weights and tokens.

    Raises:
        ProbeError: a peer that there is not, no checkout of its repository, or a size that shows nothing.
    """

    peer: str
    checkout: Path
    python: str
    window: int | None = None
    length: int | None = None
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        peer = peer_named(self.peer)
        self.cases()
        if self.threads < 1:
            raise FieldError("threads", "at least 1", self.threads)
        check_checkout(self.checkout, peer.file, peer.repository)

    def cases(self) -> list[Case]:
        """The comparisons."""
        return cases(self.peer, self.window, self.length)

    @property
    def shape(self) -> Shape:
        """Of the random model."""
        window = PEERS[self.peer].window if self.window is None else self.window
        return Shape(layers=LAYERS, width=WIDTH, heads=HEADS, vocab=VOCAB, window=window)


@dataclass
class PeerComparison:
    """The comparison under way: `rows` grows case by case."""

    settings: PeerSettings
    peer: Peer
    release: Release
    rows: list[Comparison] = field(default_factory=list)

    @classmethod
    def load(cls, settings: PeerSettings) -> PeerComparison:
        """Look at the authors' side.

        Raises:
            ProbeError: an interpreter that cannot run it.
        """
        peer = PEERS[settings.peer]
        transformers = transformers_of(settings.python, peer.releases)
        release = Release.of(settings.checkout, peer.file, peer.repository, peer.licence, transformers)
        torch.set_num_threads(settings.threads)
        return cls(settings, peer, release)

    def run(self) -> Iterator[str]:
        """Fill `rows`; yields what each one was.

        Raises:
            ProbeError: the authors' process ended.
        """
        chosen = self.settings
        told = {"peer": chosen.peer, "checkout": str(chosen.checkout.resolve()), "threads": chosen.threads}
        with tempfile.TemporaryDirectory() as folder, started(chosen.python, DRIVER, told) as process:
            self.release = replace(self.release, torch=process.hello.get("torch"))
            for row in comparisons(self.peer, chosen.shape, chosen.cases(), process, Path(folder), chosen.seed):
                self.rows.append(row)
                yield f"{row.name}, {row.kv_heads} key heads: {row.verdict}"

    def result(self, complete: bool) -> Result[Comparison]:
        """The rows so far, with what they were made with."""
        chosen, shape = self.settings, self.settings.shape
        settings = {
            "peer": chosen.peer, "layers": shape.layers, "width": shape.width, "heads": shape.heads,
            "vocab": shape.vocab, "window": shape.window, "length": chosen.length, "sharpen": SHARPEN, "same": SAME,
            "dtype": "float32", "seed": chosen.seed,
        }  # fmt: skip
        made_with = Provenance.now(theirs=asdict(self.release))
        return Result("peers", settings, made_with, Records(self.rows), complete)
