"""`with fastq.serving(app)`: a master beside a script or a test, which finds the app where its caller has found it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

APP = """
import fastq

spare = fastq.App()
app = fastq.App()

@app.job
def add(a, b):
    return a + b
"""

SCRIPT = """
import sys
sys.path[:0] = {path!r}
{imports}
import fastq

if __name__ == "__main__":
    with fastq.serving({app}, procs=1) as client:
        print(client.wait(client.enqueue("add", a=2, b=3), 20).result)
"""


@pytest.mark.parametrize(
    ("imports", "app"),
    [
        ("import jobs", "jobs.app"),
        ("from jobs import app", "app"),
        ("import fellow", "fellow.app"),
        ("from core import app\nimport mails, sums", "app"),
        (APP, "app"),
    ],
    ids=["of a module", "by name", "by way of another", "of several modules", "of the script itself"],
)
def test_the_app_is_found_where_its_caller_has_found_it(dsn: str, tmp_path: Path, imports: str, app: str) -> None:
    """On the caller's own path, beside another app, and with all of its handlers."""
    for folder in ("library", "scripts", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "library" / "jobs.py").write_text(APP)
    (tmp_path / "library" / "fellow.py").write_text("from jobs import app")
    (tmp_path / "library" / "core.py").write_text("import fastq\napp = fastq.App()")
    (tmp_path / "library" / "mails.py").write_text("from core import app\n@app.job\ndef mail(to): pass")
    (tmp_path / "library" / "sums.py").write_text("from core import app\n@app.job\ndef add(a, b): return a + b")
    script = tmp_path / "scripts" / "run.py"
    script.write_text(SCRIPT.format(path=[str(tmp_path / "library")], imports=imports, app=app))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path / "elsewhere", env={**os.environ, "FASTQ_DSN": dsn},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("5\n", 0), done.stderr
