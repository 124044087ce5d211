"""The page of Mesa's split: its numbers are those of the algorithm by hand, and no slider ends in a traceback."""

import math

import pytest
from streamlit.testing.v1 import AppTest


def page():
    from app.options import parse_options
    from app.views.sees import render

    render(parse_options(["--runs", "/nowhere"]))


def opened(window=512, **values):
    """The page with its sliders moved: the window first, for the others begin anew with it."""
    app = AppTest.from_function(page, default_timeout=60).run()
    app.select_slider(key="mesa_M").set_value(window).run()
    for name, value in values.items():
        app.slider(key=f"mesa_{name} {window}").set_value(value)
    app.run()
    assert not app.exception
    return app


def numbers(app):
    """The table's, by their headings."""
    for markdown in app.markdown:
        if not markdown.value.startswith("| Middle chunks"):
            continue
        heading, _, values = (
            [cell.strip() for cell in row.strip("| ").split("|")] for row in markdown.value.split("\n")
        )
        return dict(zip(heading, values, strict=True))
    return {}


def picture(app):
    """Whether one is drawn."""
    return bool(app.get("image") or app.get("imgs"))  # its name changed between versions of Streamlit


def test_the_numbers_are_the_algorithms():
    app = opened()
    # F = 100/4, L = N = 512/4, E = 50/4; n = floor((2048 - 128 - 25)/(512 - 25)) = 3, m = 434 > 50: four chunks of 1895
    # // 4.
    last = 2048 - 25 - 4 * 473
    pairs = 25 * 26 / 2 + 4 * (473 * 25 + 473 * 474 / 2) + sum(range(2048 - last + 1, 2049))
    assert numbers(app) == {
        "Middle chunks": "4",
        "C, tokens of each": "473",
        "Last chunk": str(last),
        "Causal pairs visited": f"{pairs / (2048 * 2049 / 2):.1%}",
        "E, keys a step": "12",
        "Farthest distance": f"{128 + math.ceil((2047 - 128) / 12)} < M",
    }
    assert picture(app) and not app.error


def test_E_grows_with_the_prompt_and_the_page_says_so():
    app = opened(T=16384)
    # The least E with 128 + ceil((16383 - 128)/E) <= 511.
    E = math.ceil((16383 - 128) / (511 - 128))
    assert numbers(app)["E, keys a step"] == str(E)
    assert any(f"grew from 12 to {E}" in caption.value for caption in app.caption)
    assert not any("grew" in caption.value for caption in opened(T=2048).caption)


def test_a_new_window_has_its_own_defaults():
    app = opened(2048)
    assert [app.slider(key=f"mesa_{name} 2048").value for name in "TFLNE"] == [8192, 100, 512, 512, 0]
    assert numbers(app)["C, tokens of each"] == "1895"  # as in the table of the Mesa page


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"F": 0}, "F: expected 1 to 511"),
        ({"F": 512}, "F: expected 1 to 511"),
        ({"L": 0}, "L: expected an integer >= 1"),
        ({"N": 512}, "N: expected at most 510"),
        ({"E": 1}, "expected E >= 6"),
    ],
)
def test_values_outside_the_domain_are_a_message_and_the_sliders_stay(values, said):
    app = opened(**values)
    assert said in app.error[0].value and len(app.error) == 1
    assert not picture(app) and not numbers(app)
    (name,) = values
    app.slider(key=f"mesa_{name} 512").set_value(100).run()
    assert not app.error and picture(app)


def test_a_prompt_inside_the_window_is_not_split():
    app = opened(T=512)
    assert "nothing is split" in app.info[0].value and not picture(app)


def test_more_chunks_than_can_be_seen_are_numbers_without_a_picture():
    app = opened(F=511)
    assert int(numbers(app)["Middle chunks"]) > 1000
    assert "at most 400" in app.info[0].value and not picture(app)


@pytest.mark.parametrize("window", [16, 32768])
@pytest.mark.parametrize("times", [1, 32])
def test_the_ends_of_the_sliders(window, times):
    app = opened(window, T=times * window)
    assert not app.error
    assert picture(app) == (times > 1)
