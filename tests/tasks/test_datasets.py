"""Texts of data files: three formats, and what is said of those that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from probe.commands.main import main
from probe.errors import ProbeError
from probe.models.load import LoadedModel, load_model
from probe.tasks.datasets import dataset_texts
from probe.tasks.encoding import encode
from probe.tasks.inputs import draw_input

TEXTS = [f"{'The grass is green. ' * n}And so on." for n in (9, 40, 60, 20)]


@pytest.fixture(scope="module")
def rope() -> LoadedModel:
    return load_model("rope")


def written(folder: Path, kind: str) -> Path:
    """The texts in a file or folder of a kind."""
    table, path = pa.table({"number": [1, 2, 3, 4], "text": TEXTS}), folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text, "number": 1}) + "\n" for text in TEXTS))
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "arrow":
        pyarrow.feather.write_feather(table, path, compression="uncompressed")
    else:
        datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "saved"])
def test_every_format_gives_its_texts_the_longest_first(tmp_path: Path, kind: str) -> None:
    assert dataset_texts(str(written(tmp_path, kind))) == sorted(TEXTS, key=len, reverse=True)


def test_a_folder_of_files_and_a_column_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"body": "second", "title": "t"}\n')
    (tmp_path / "a.jsonl").write_text('{"body": "firsts", "title": "t"}\n{"body": null, "title": "t"}\n')
    (tmp_path / "readme.md").write_text("no data")
    assert dataset_texts(f"{tmp_path}#body") == ["firsts", "second"]
    (tmp_path / "one.jsonl").write_text('{"n": 1, "body": "alone"}\n')
    assert dataset_texts(str(tmp_path / "one.jsonl")) == ["alone"]
    with pytest.raises(ProbeError, match="no column text of texts; has body, title: name one, as PATH#COLUMN"):
        dataset_texts(str(tmp_path))


def test_windows_end_at_the_same_tokens_at_every_length(rope: LoadedModel, tmp_path: Path) -> None:
    spec = f"dataset:{written(tmp_path, 'jsonl')}"
    short, long = (draw_input(rope, spec, length, 2, seed=3).ids for length in (32, 64))
    assert short.shape == (2, 32) and short[:, 1:].tolist() == long[:, -31:].tolist()
    whole = encode(rope.tokenizer_for("a test"), TEXTS[2])
    assert " ".join(map(str, long[0, 1:].tolist())) in " ".join(map(str, whole))
    with pytest.raises(ProbeError, match="samples: expected at most the 4 texts"):
        draw_input(rope, spec, 32, 5)
    with pytest.raises(ProbeError, match=r"tokens that document 2, by length, has, got 256"):
        draw_input(rope, spec, 256, 4)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.jsonl", None, "cannot read"),
        ("broken.parquet", "no parquet", "cannot read"),
        ("broken.arrow", "no arrow", "cannot read"),
        ("broken.jsonl", "{", "cannot read"),
        ("numbers.jsonl", '{"text": 1}\n', "no column text of texts; has none"),
        ("empty.jsonl", '{"text": ""}\n', "expected some texts, got none"),
        ("other.csv", "text\na\n", "expected *.jsonl, *.parquet, *.arrow, or a folder with some"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    assert main(["eval", "--task", "nll", "--input", f"dataset:{tmp_path / name}", "--lengths", "16"]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
