"""The statements: each is a file with a header, each is used, and the rows of a job are never updated."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastq
from fastq.store import statements

PACKAGE = Path(fastq.__file__).parent
FILES = {path.stem: path for path in sorted((PACKAGE / "sql").glob("*.sql"))}
MIGRATIONS = sorted((PACKAGE / "sql" / "migrations").glob("*.sql"))
SOURCES = sorted(PACKAGE.glob("*.py"))

FETCHERS = {"fetch", "_leave"}
"""Methods whose first argument is the name of a statement."""

UPDATED = {"worker", "lease"}
"""Tables whose rows may change; all others are written once."""

UPSERTED = {"unique_key", "cancel", "progress"}
"""Tables beside a job, whose rows ON CONFLICT may update."""

UPSERT = re.compile(r"INSERT INTO fastq\.(\w+)(?:(?!INSERT INTO).)*?DO UPDATE", re.DOTALL)
UPDATE = re.compile(r"(?<!FOR )(?<!FOR NO KEY )\b(?:UPDATE|update(?=\s+fastq))\s+(?:ONLY\s+)?(?:fastq\.)?(\w+)")
"""SQL keywords stand in capitals here; in small letters only what names a table of ours is SQL."""


def calls(node: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that name a statement."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in FETCHERS:
            yield call


def named(call: ast.Call) -> list[str]:
    """Return the statement that a call names; none if it passes on what it was given."""
    return [call.args[0].value] if call.args and isinstance(call.args[0], ast.Constant) else []


CALLS = [call for path in SOURCES for call in calls(ast.parse(path.read_text()))]
USED = {name for call in CALLS for name in named(call)}


def texts() -> list[tuple[str, str]]:
    """Return every piece of SQL: the files without their comments, and the strings that stand in the code."""
    files = [
        (path.name, re.sub(r"--.*|COMMENT ON[^;]*;", "", path.read_text())) for path in [*FILES.values(), *MIGRATIONS]
    ]
    strings = [
        (f"{path.name}:{node.lineno}", node.value)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return files + strings


@pytest.mark.parametrize("path", [*FILES.values(), *MIGRATIONS], ids=lambda path: path.name)
def test_a_file_opens_with_a_header(path: Path) -> None:
    """The first line says what the statement is for."""
    assert re.match(r"-- \w.{10,}", path.read_text())


@pytest.mark.parametrize("name", FILES)
def test_a_file_holds_one_statement(name: str) -> None:
    """A prepared statement is one statement."""
    assert ";" not in statements()[name]


def test_every_statement_is_used() -> None:
    """A file that nobody fetches is dead."""
    assert set(FILES) - USED == set()


def test_every_statement_that_is_used_exists() -> None:
    """A name that is fetched has its file."""
    assert USED - set(FILES) == set()


@pytest.mark.parametrize("name", FILES)
def test_every_call_gives_the_values_that_the_statement_takes(name: str) -> None:
    """Neither a missing value (the call would fail) nor one that nobody reads."""
    wanted = set(re.findall(r"%\((\w+)\)s", statements()[name]))
    given = [
        {keyword.arg for keyword in call.keywords}
        for call in CALLS
        if name in named(call) and call.func.attr == "fetch" and None not in {keyword.arg for keyword in call.keywords}
    ]
    assert [values for values in given if values != wanted] == []


@pytest.mark.parametrize(
    ("where", "text"), [pair for pair in texts() if "update" in pair[1].lower()], ids=lambda text: text.split()[0]
)
def test_a_job_is_written_once(where: str, text: str) -> None:
    """Only the rows of workers, and of leases that are broken up, may be updated; by ON CONFLICT some small ones too."""
    upserted = set(UPSERT.findall(text))
    assert upserted <= UPSERTED
    assert set(UPDATE.findall(text)) - UPDATED - ({"SET"} if upserted else set()) == set()
