"""The list of licences in the docs is that of what is pinned, and nothing there asks more than is said.

`python tests/test_licences.py` writes the list anew, from what is installed.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
NAMES = {
    "MIT License": "MIT", "The MIT License (MIT)": "MIT", "BSD License": "BSD", "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0", "Apache License 2.0": "Apache-2.0", "Apache 2.0 License": "Apache-2.0",
    "ISC License (ISCL)": "ISC", "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.1-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-or-later",
}  # fmt: skip
"""What classifiers and old fields say, as SPDX does."""
PERMISSIVE = {
    "MIT", "MIT-CMU", "BSD", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Apache-2.0", "ISC", "PSF-2.0", "Zlib", "BSL-1.0",
    "CC0-1.0", "AFL-2.1", "CNRI-Python", "Apache-2.0 WITH LLVM-exception", "Unlicense", "Python-2.0",
}  # fmt: skip
WEAK = {"MPL-2.0", "LGPL-2.1-or-later", "LGPL-3.0-or-later"}
"""They ask that changes to themselves stay open, and nothing of what uses them."""


def pinned() -> dict[str, str]:
    """Version by name, of everything that an install with all extras takes."""
    lines = (ROOT / "constraints.txt").read_text().split()
    return dict(line.split("==") for line in lines if "==" in line)


def licence(name: str) -> str | None:
    """What a package says of itself; None where it is not installed."""
    try:
        told = distribution(name).metadata
    except PackageNotFoundError:
        return None
    classes = [one.split("::")[-1].strip() for one in told.get_all("Classifier") or [] if one.startswith("License ::")]
    said = told.get("License-Expression") or next(iter(classes), None) or str(told.get("License")).splitlines()[0]
    return NAMES.get(said, said)


def listed() -> dict[str, str]:
    """The licences that the page has, by name."""
    return dict(re.findall(r"^\| `([^`]+)` \| \S+ \| ([^|]+?) \|$", PAGE.read_text(), flags=re.MULTILINE))


def parts(said: str) -> list[str]:
    return [one.strip(" ()") for one in re.split(r" AND | OR ", said)]


def test_every_pinned_package_is_listed_with_what_it_says() -> None:
    page = listed()
    assert set(page) == set(pinned())
    for name, said in page.items():
        found = licence(name)
        assert found is None or found == said, name


def test_nothing_asks_more_than_the_page_says() -> None:
    for name, said in listed().items():
        assert set(parts(said)) <= PERMISSIVE | WEAK, name
        if set(parts(said)) & WEAK:
            assert f"`{name}`" in PAGE.read_text().split("\n## ")[0], f"{name} is not named on top"


def test_a_strong_copyleft_would_be_seen() -> None:
    assert not set(parts("GPL-3.0-only")) <= PERMISSIVE | WEAK
    assert not set(parts("MIT AND AGPL-3.0-or-later")) <= PERMISSIVE | WEAK


def write() -> None:
    """The table anew; the words above it stay."""
    words = PAGE.read_text().split("| package |")[0]
    known = listed()
    rows = [f"| `{name}` | {version} | {licence(name) or known.get(name)} |" for name, version in pinned().items()]
    PAGE.write_text(words + "\n".join(["| package | version | licence |", "|---|---|---|", *rows]) + "\n")


if __name__ == "__main__":
    write()
