"""The one error of hand-built models: a request that no construction can meet."""


class ConstructionError(ValueError):
    """A parameter is outside the theorem's domain, or outside what the number type can represent.

    The message is one line: what was asked, what is expected, and where it helps what would do.
    """


def require(ok: bool, what: str, expected: str, got: object) -> None:
    """Raise ConstructionError('what: expected ..., got ...') unless ok."""
    if not ok:
        raise ConstructionError(f"{what}: expected {expected}, got {got}")
