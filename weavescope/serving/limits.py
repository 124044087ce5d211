"""What requests may ask for, whichever engine answers them."""

from __future__ import annotations

from dataclasses import dataclass

from probe.errors import FieldError


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        prompt: tokens of the longest prompt.
        new: tokens to write at most.
        waiting: requests at a time, the one that is answered among them.
    """

    prompt: int
    new: int = 1024
    waiting: int = 64

    def __post_init__(self) -> None:
        """Refuse limits under which nothing could be answered.

        Raises:
            FieldError: one is below 1.
        """
        for name in ("prompt", "new", "waiting"):
            if getattr(self, name) < 1:
                raise FieldError(f"max_{name}", "at least 1", getattr(self, name))
