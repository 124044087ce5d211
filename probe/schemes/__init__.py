"""Position schemes: four choices (frequencies, weave, visibility, scale), compiled to pieces of ordinary attention."""

from probe.schemes.options import OPTIONS, Option
from probe.schemes.parse import check_texts, parse_scheme, parse_schemes, resolve_schemes
from probe.schemes.presets import PRESETS, Preset, make_scheme
from probe.schemes.scheme import ORIGIN, Scheme
from probe.schemes.weaves import WEAVES

__all__ = [
    "OPTIONS",
    "ORIGIN",
    "PRESETS",
    "WEAVES",
    "Option",
    "Preset",
    "Scheme",
    "check_texts",
    "make_scheme",
    "parse_scheme",
    "parse_schemes",
    "resolve_schemes",
]
