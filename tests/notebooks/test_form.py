"""Every notebook: the parts that a lesson has, the outputs that its readers see, and no figure typed by hand."""

import ast
import re
import sys
from pathlib import Path

import pytest
from solved import FOLDER, NOTEBOOKS, exercises, read, tagged

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import canonical_notebooks

LARGEST = 2_000_000  # bytes; GitHub shows larger ones badly or not at all

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


# ---- form ----------------------------------------------------------------------------------------------------------


def test_canonical(path):
    assert path.read_text("utf-8") == canonical_notebooks.canonical(path), "run make format"


def test_small(path):
    assert path.stat().st_size < LARGEST


def test_the_same_set_up_cell_comes_first(path):
    first, *others = code_cells(path)
    assert first.source == canonical_notebooks.SETUP
    assert not any(tagged(cell, "setup") for cell in others)


def test_title_goals_minutes_needs(path):
    opening = read(path).cells[0].source
    number = path.name[:2]
    assert re.match(rf"# {number} · \S", opening)
    assert f"/notebooks/{path.name})" in opening, "the badge opens this notebook"
    goals = re.search(r"\*\*You will\*\*\n((?:- .+\n)+)", opening)
    assert goals, "goals, as a list"
    assert all(re.match(r"- [a-z]", goal) for goal in goals[1].splitlines()), "each goal begins with its verb"
    assert re.search(r"\*\*Takes\*\* (about )?\d+ minutes", opening)
    assert "**Needs** " in opening


def test_exercise_clinic_stretch_and_what_was_left_out(path):
    text = prose(path)
    assert exercises(read(path))
    assert "**Exercise 1" in text
    assert "<summary>Hint" in text
    assert re.search(r"^## .*[Cc]linic", text, re.M)
    assert "**Stretch.**" in text
    assert "**Left out.**" in text


def test_it_ends_with_where_we_are_and_what_comes_next(path):
    assert sum("transformer_net_now(" in cell.source for cell in code_cells(path)[-3:]) == 1
    following = [other.name for other in FOLDER.glob(f"{int(path.name[:2]) + 1:02}_*.ipynb")]
    assert re.findall(r"\*\*Next:\*\* \[.+\]\((.+)\)$", read(path).cells[-1].source) == following


def test_links_between_notebooks_lead_somewhere(path):
    """The notebook is there, and where the link's words are its title, they are right."""
    for words, target in re.findall(r"\[([^\]]+)\]\((\w+\.ipynb)\)", prose(path)):
        assert (FOLDER / target).exists(), target
        title = read(FOLDER / target).cells[0].source.splitlines()[0].removeprefix("# ")
        assert " · " not in words or words == title


# ---- stored outputs ------------------------------------------------------------------------------------------------


def shows_something(cell):
    """Say whether a cell, as it was run, leaves something to see: it ends in an expression, or it compiles a kernel.

    The tag "quiet" is for cells that end in a call for its effect, such as a launch.
    """
    if tagged(cell, "setup") or tagged(cell, "quiet"):
        return False
    if cell.source.startswith("%%"):
        return True
    lines = [line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    body = ast.parse("\n".join(lines)).body
    return bool(body) and isinstance(body[-1], ast.Expr)


def test_executed(path):
    missing = [cell.id for cell in code_cells(path) if shows_something(cell) and not cell.outputs]
    assert missing == [], "run make notebooks"


def test_no_errors_and_no_warnings_are_stored(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", f"{cell.id}: {output.text}"


def test_the_line_that_ends_every_notebook(path):
    (cell,) = [cell for cell in code_cells(path)[-3:] if "transformer_net_now(" in cell.source]
    (output,) = cell.outputs
    assert re.match(r"TransformerNet now: [\d.]+ ms, \d+ dB  \(.+\)\n$", output.text)


# ---- no figure typed by hand ---------------------------------------------------------------------------------------

# A measured figure belongs into a "prose" cell, which reads it from the records. What may stand in Markdown is
# arithmetic, a definition, or a guess that is named as one; each is listed here with its reason.
UNITS = r"(?:ms|µs|us|ns|[GTM]B/s|[GT]FLOP/s|dB|fps|%|(?:times|x) (?:faster|slower))"
FIGURE = re.compile(rf"\d[\d.,]*(?:\s|×|\u00a0)?\*{{0,2}}{UNITS}(?!\w)")
TYPED = {
    "00_paint_and_profile": {
        "convolution 80 %, norm 10 %": "the guess that people make, quoted so that the profile can refute it",
        "From 45 dB on": "a convention about pictures, not a measurement",
        "each 6 dB halve": "arithmetic: 20 log10(2) = 6.02",
    },
    "02_measure_honestly": {
        "a hiccup of 3 ms, in one": "how the toy GPU of exercise 1 is made (ToyGPU)",
        "One launch in twenty is 3 ms late": "the same, in the hint",
        "the 20 % and 80 % quantiles": "which quantiles the bench reports",
    },
}


def test_no_figure_is_typed_by_hand(path):
    text = re.sub(r"^```.*?^```$", "", prose(path), flags=re.M | re.S)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("|"))  # tables of definitions
    for phrase in TYPED.get(path.stem, {}):
        assert phrase in text, f"no longer there, so no longer excused: {phrase!r}"
        text = text.replace(phrase, "")
    assert [text[max(0, m.start() - 40) : m.end() + 10] for m in FIGURE.finditer(text)] == []
