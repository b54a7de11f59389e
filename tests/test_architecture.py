"""Arrows run one way: notebooks -> lab -> ops, nn, models -> runtime -> emulator. Read from the sources by ast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "styleforge_lib"

# Who stands on whom: a part may import parts of its own floor or below. The longest prefix counts.
FLOORS = {
    "styleforge_lib.runtime.emulator": 0,
    "styleforge_lib.paths": 0,
    "styleforge_lib.pictures": 0,
    "styleforge_lib.runtime": 1,
    "styleforge_lib.ops": 2,
    "styleforge_lib.models": 2,
    "styleforge_lib.nn": 3,  # the drop-ins stand on ops
    "styleforge_lib.acceleration": 4,  # ... and are put in here
    "styleforge_lib.painter": 5,
    "styleforge_lib.lab": 6,
    "styleforge_lib.cli": 6,
    "styleforge_lib.__main__": 7,
    "styleforge_lib": 7,  # the public names
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def floor(module):
    names = module.split(".")
    return next(FLOORS[n] for i in range(len(names), 0, -1) if (n := ".".join(names[:i])) in FLOORS)


def imports(module, *, top_level_only=False):
    """Return (line, absolute name) of what a module imports; ``from package import module`` names the module."""
    path = SOURCES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text("utf-8"))
    nodes = top_level(tree) if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                yield node.lineno, whole if whole in SOURCES else origin


def top_level(tree):
    """Yield the statements that run when a module is imported: all but functions, and what is for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield node
        yield from top_level(node)


def test_every_part_has_a_floor():
    """A new part of the package says where it stands."""
    parts = {".".join(module.split(".")[:2]) for module in SOURCES}
    assert parts <= set(FLOORS)


@pytest.mark.parametrize("module", SOURCES)
def test_arrows_run_one_way(module):
    upward = [
        f"{SOURCES[module].name}:{line} imports {name}"
        for line, name in imports(module)
        if name.startswith("styleforge_lib") and floor(name) > floor(module)
    ]
    assert upward == []


def test_only_notebooks_stand_on_the_lab():
    """But for the package, which hands `%load_ext styleforge_lib` on."""
    users = {m for m in SOURCES if floor(m) != floor("styleforge_lib.lab") or m == "styleforge_lib.cli"}
    found = {m for m in users for _, name in imports(m) if name.startswith("styleforge_lib.lab")}
    assert found == {"styleforge_lib"}
    assert not [name for _, name in imports("styleforge_lib", top_level_only=True) if name.startswith("styleforge_lib")]


def test_the_emulator_stands_on_numpy_alone():
    emulator = [module for module in SOURCES if module.startswith("styleforge_lib.runtime.emulator")]
    assert len(emulator) > 5
    names = {name for module in emulator for _, name in imports(module)}
    others = {name for name in names if not name.startswith("styleforge_lib.runtime.emulator")}
    assert {name.split(".")[0] for name in others} - sys.stdlib_module_names == {"numpy"}


def test_the_library_does_not_know_its_tools_and_tests():
    roots = {name.split(".")[0] for module in SOURCES for _, name in imports(module)}
    assert not roots & {path.stem for path in (ROOT / "tools").glob("*.py")}
    assert not roots & {"tests", "tools", "pytest", "hypothesis", "nbformat", "nbclient", "playwright"}


def test_the_library_needs_what_it_says():
    """Every package that is imported when the library is, is a dependency; CuPy and Triton are asked for where used."""
    packages = {"numpy", "torch", "safetensors", "PIL", "matplotlib", "ipywidgets", "anywidget", "tqdm"}
    with_ipywidgets = {"IPython", "traitlets"}
    roots = {name.split(".")[0] for module in SOURCES for _, name in imports(module, top_level_only=True)}
    assert roots - sys.stdlib_module_names - packages - with_ipywidgets == {"styleforge_lib"}
    everywhere = {name.split(".")[0] for module in SOURCES for _, name in imports(module)}
    assert everywhere - roots <= {"cupy", "cupyx", "triton", "skimage", "cuda"} | sys.stdlib_module_names


# ---- what is imported when -----------------------------------------------------------------------------------------


def loaded_by(statement):
    """Return the roots of the modules that a fresh Python has after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import styleforge_lib", {"torch", "numpy", "cupy", "IPython", "PIL", "matplotlib"}),
        ("import styleforge_lib.runtime", {"torch", "cupy", "IPython", "matplotlib"}),
        ("import styleforge_lib.runtime.emulator", {"torch", "cupy", "IPython", "PIL", "matplotlib"}),
        ("import styleforge_lib.runtime.compiler", {"torch", "cupy", "IPython", "PIL", "matplotlib"}),
        ("from styleforge_lib import cli", {"torch", "cupy", "IPython", "matplotlib"}),
        ("from styleforge_lib import TransformerNet, stylize, load_style", {"cupy", "IPython", "matplotlib"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_is_imported_before_it_is_needed(statement, absent):
    loaded = loaded_by(statement)
    assert "styleforge_lib" in loaded
    assert not loaded & absent


def test_public_names_are_there_and_no_others():
    import styleforge_lib

    for name in styleforge_lib.__all__:
        assert getattr(styleforge_lib, name) is not None
    assert set(styleforge_lib.__all__) <= set(dir(styleforge_lib))
    with pytest.raises(AttributeError, match="no attribute 'paint_it_black'"):
        styleforge_lib.paint_it_black  # noqa: B018
