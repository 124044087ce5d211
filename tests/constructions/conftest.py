"""Array shapes of the toy transformer are checked at every call while testing."""

from jaxtyping import install_import_hook

install_import_hook(["constructions.transformer"], "typecheck.checked")
