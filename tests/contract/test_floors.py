"""The floors of the package: a module imports only from floors below its own, and the core is pure.

Read from the source by ast, so that an import inside a function counts as well; what stands under `if TYPE_CHECKING:`
does not. The limits that only show at run time (what a child has loaded) are tried in a fresh interpreter.
"""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastq

PACKAGE = Path(fastq.__file__).parent
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}

FLOORS: list[set[str]] = [
    {"__init__", "errors", "text"},
    {"config", "events", "job"},
    {"retry"},
    {"breaker", "children", "codec", "exposition", "inflight", "outcome", "wire"},
    {"batch", "unique"},
    {"report", "roles", "server"},
    {
        "app",
        "cgroup",
        "channel",
        "coroutines",
        "ending",
        "embedded",
        "evidence",
        "lifeline",
        "logs",
        "metrics",
        "notify",
        "schema",
        "status",
        "strays",
        "store",
        "web",
    },
    {"sampler"},
    {"autopsy", "catalogue", "completer", "database", "dispatcher", "keeper", "leaser", "link", "plans", "warden"},
    {"nursery", "runner", "start", "top"},
    {"records"},
    {"console"},
    {"child", "client", "life"},
    {"master", "serving", "template"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
"""From the ground up. The architecture guide counts some of these as one."""

PURE = {name for names in FLOORS[:5] for name in names}
IMPURE = {"os", "socket", "signal", "time", "subprocess", "psycopg", "random", "asyncio", "threading", "uuid", "select"}
"""Modules by which time, chance and the world come in."""

DRIVERS = {"psycopg", "prometheus_client"}


def imports(path: Path) -> set[str]:
    """Return the full names of all that a module imports when it runs."""
    return set(_imports(ast.parse(path.read_text()).body))


def _imports(nodes: list[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    for node in nodes:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                yield from _imports(node.orelse)
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                home = ".".join(filter(None, ("fastq" if node.level else "", node.module)))
                yield from (f"{home}.{alias.name}" for alias in node.names)
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"), args=[ast.Constant(value=name)]
            ):
                yield str(name)
            case _:
                yield from _imports(list(ast.iter_child_nodes(node)))


def own_imports(path: Path) -> set[str]:
    """Return the modules of fastq that a module imports; a public name counts as the module it comes from."""
    names = (name.split(".")[1:] or ["__init__"] for name in imports(path) if name.split(".")[0] == "fastq")
    return {fastq._HOME.get(parts[0], "__init__" if parts[0] == "__version__" else parts[0]) for parts in names}


def floor_of(module: str) -> int:
    """Return the floor on which a module stands."""
    return next((number for number, names in enumerate(FLOORS) if module in names), -1)


def test_every_module_has_a_floor() -> None:
    """A module without a place in FLOORS is one whose imports nobody has thought about."""
    placed = {name for names in FLOORS for name in names}
    assert set(MODULES) - placed == set()


def test_every_floor_names_modules_that_exist() -> None:
    """FLOORS tells of the package as it is."""
    placed = {name for names in FLOORS for name in names}
    assert placed - set(MODULES) == set()


def test_no_module_stands_on_two_floors() -> None:
    """Each module has one place."""
    assert len({name for names in FLOORS for name in names}) == sum(map(len, FLOORS))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_below(module: str) -> None:
    """Nothing is imported from the own floor or from above it, inside a function either."""
    not_below = {name for name in own_imports(MODULES[module]) if floor_of(name) >= floor_of(module)}
    assert not_below == set()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_modules_that_exist(module: str) -> None:
    """An import inside a function would fail on the day on which it is needed."""
    missing = {name for name in own_imports(MODULES[module]) if name not in MODULES}
    assert missing == set()


@pytest.mark.parametrize("module", sorted(PURE - {"__init__"}))
def test_the_core_is_pure(module: str) -> None:
    """Floors 0 to 2 have no clock, no chance and no world: those come in as arguments."""
    impure = {name for name in imports(MODULES[module]) if name.split(".")[0] in IMPURE}
    assert impure == set()


def loaded_by(code: str) -> set[str]:
    """Return the names of the modules that a fresh interpreter has loaded after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import fastq",
        "import fastq.child",
        "import fastq.template",
        "import fastq.demo",
        "import fastq; fastq.App, fastq.current_job, fastq.Snooze, fastq.RetryableError, fastq.Job, fastq.describe",
        "from fastq import App; app = App(); app.job(kind='k')(lambda: None)",
    ],
)
def test_what_a_child_loads_has_no_driver(code: str) -> None:
    """Neither psycopg nor prometheus_client is in a child: it has no database, and each would cost it memory."""
    assert {name.split(".")[0] for name in loaded_by(code)} & DRIVERS == set()


def test_importing_fastq_loads_nothing_of_it() -> None:
    """The public names are loaded when they are used."""
    assert {name for name in loaded_by("import fastq") if name.startswith("fastq.")} == set()


@pytest.mark.parametrize("name", fastq.__all__)
def test_every_public_name_resolves(name: str) -> None:
    """What `__all__` promises is there."""
    assert getattr(fastq, name) is not None


@pytest.mark.parametrize("name", [name for name in fastq.__all__ if name != "__version__"])
def test_every_public_name_is_documented(name: str) -> None:
    """Each has a docstring of its own, not one that it inherits."""
    value = getattr(fastq, name)
    assert vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__


@pytest.mark.parametrize("name", [name for name in fastq.__all__ if inspect.isclass(getattr(fastq, name))])
def test_every_public_method_is_documented(name: str) -> None:
    """A method without a docstring is one that a user has to guess."""
    methods = vars(getattr(fastq, name)).items()
    silent = [key for key, value in methods if not key.startswith("_") and callable(value) and not value.__doc__]
    assert silent == []


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    """The lazy package answers like any other module."""
    with pytest.raises(AttributeError, match="'fastq' has no attribute 'Wroker'"):
        _ = fastq.Wroker


def test_dir_lists_every_public_name() -> None:
    """Completion in a shell works although nothing is loaded yet."""
    assert set(fastq.__all__) <= set(dir(fastq))
