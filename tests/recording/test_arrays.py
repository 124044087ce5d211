"""Arrays on disk are ordinary safetensors files, and are read by mapping."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from probe.recording.arrays import mapped_arrays, write_arrays

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=7)
ARRAYS = st.sampled_from([np.float32, np.float64]).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))


@given(
    arrays=st.dictionaries(
        st.text(min_size=1, max_size=9).filter(lambda name: name != "__metadata__"), ARRAYS, max_size=5
    )
)
def test_the_library_reads_what_is_written_and_the_other_way_round(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    write_arrays(tmp_path / "mine", arrays, {"scheme": "origin"})
    theirs = load_file(tmp_path / "mine")
    assert theirs.keys() == arrays.keys()
    assert all(np.array_equal(theirs[key], arrays[key], equal_nan=True) for key in arrays)
    with safe_open(tmp_path / "mine", "np") as file:
        assert file.metadata() == {"scheme": "origin"}
    save_file(arrays, tmp_path / "theirs", metadata={"a": "b"})
    for path, said in (("mine", {"scheme": "origin"}), ("theirs", {"a": "b"})):
        found, metadata = mapped_arrays(tmp_path / path)
        assert metadata == said and found.keys() == arrays.keys()
        assert all(np.array_equal(found[key], arrays[key], equal_nan=True) for key in arrays)
        assert all(found[key].dtype == arrays[key].dtype and found[key].shape == arrays[key].shape for key in arrays)


def test_neither_way_holds_all_in_memory(tmp_path: Path) -> None:
    large = np.ones((100_000, 64), np.float32)  # 26 MB
    write_arrays(tmp_path / "large", {str(n): large for n in range(4)})
    tracemalloc.start()
    found, _ = mapped_arrays(tmp_path / "large")
    write_arrays(tmp_path / "copy", found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "large").read_bytes()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:5], lambda data: b"", lambda data: b"x" * 80]
)
def test_a_damaged_file_is_not_mapped(damage, tmp_path: Path) -> None:
    write_arrays(tmp_path / "a", {"x": np.ones((5, 3), np.float32)})
    (tmp_path / "b").write_bytes(damage((tmp_path / "a").read_bytes()))
    with pytest.raises((OSError, SafetensorError)):
        mapped_arrays(tmp_path / "b")
