"""What a scheme is made of: weave functions, visibilities, frequencies and scales, to combine in a `weavescope.Scheme`.

>>> from weavescope import Scheme, parts
>>> mine = Scheme("mine", window=512, weave=parts.Leaky(64, 8.0), visibility=parts.Lambda(4, 400), scale=parts.LogN())
>>> mine.weave_at(2048)(1000, 0)
181.0
"""

from constructions.weave import (
    Anchored,
    CacheIndex,
    Chunked,
    Clamp,
    DualChunk,
    Folded,
    Grouped,
    Leaky,
    Linear,
    Part,
    Stair,
    Switched,
    Weave,
)
from probe.schemes.frequencies import NTK, DynamicNTK, Frequencies, Interpolation, Unrotated, YaRN
from probe.schemes.scheme import Extent, LogN, MScale, Product, Scale
from probe.schemes.visibility import Blocks, Bottom, Lambda, Visibility

__all__ = [
    "NTK",
    "Anchored",
    "Blocks",
    "Bottom",
    "CacheIndex",
    "Chunked",
    "Clamp",
    "DualChunk",
    "DynamicNTK",
    "Extent",
    "Folded",
    "Frequencies",
    "Grouped",
    "Interpolation",
    "Lambda",
    "Leaky",
    "Linear",
    "LogN",
    "MScale",
    "Part",
    "Product",
    "Scale",
    "Stair",
    "Switched",
    "Unrotated",
    "Visibility",
    "Weave",
    "YaRN",
]
