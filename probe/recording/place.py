"""Where values were recorded: one type for what run folders, tables, figures and the dashboard all name."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, order=True)
class Place:
    """A site of a layer under a scheme, and one of its dimensions, or (None) all that were recorded.

    Attributes:
        scheme: the scheme's text.
        site: a recordable site, such as "resid".
        layer: 1 is the first.
        dim: 0 is the first.

    >>> Place("stair(N=64)", "resid", 2).key
    'stair(N=64)/resid.2'
    >>> Place.parse("stair(N=64)/resid.2") == Place("stair(N=64)", "resid", 2)
    True
    """

    scheme: str
    site: str
    layer: int
    dim: int | None = None

    @property
    def key(self) -> str:
        """The name of the recorded array [positions, dims] in a trace: "scheme/site.layer"."""
        return f"{self.scheme}/{self.site}.{self.layer}"

    @classmethod
    def parse(cls, key: str) -> Place:
        """The place, of all dimensions, whose key it is."""
        scheme, _, where = key.rpartition("/")
        site, _, layer = where.rpartition(".")
        return cls(scheme, site, int(layer))

    def under(self, scheme: str) -> Place:
        """The same place under another scheme."""
        return replace(self, scheme=scheme)

    def at(self, dim: int) -> Place:
        """One dimension of it."""
        return replace(self, dim=dim)

    @property
    def title(self) -> str:
        """For people, without the scheme."""
        dim = "" if self.dim is None else f", dim {self.dim}"
        return f"{self.site}, layer {self.layer}{dim}"
