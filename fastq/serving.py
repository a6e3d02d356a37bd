"""A master beside a script: for trying things out, for examples and for tests of your own handlers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastq.app import CODE_REF, CODE_VARIABLE, PATH_VARIABLE
from fastq.client import Client
from fastq.database import Database
from fastq.errors import ConfigError, FastqError

if TYPE_CHECKING:
    from fastq.app import App


class serving:  # noqa: N801 - reads as a phrase: with serving(app)
    """Run a master for an app beside this process: `with fastq.serving(app, procs=4) as client: ...`.

    The schema is applied if it is missing. Leaving drains the master. The app's module is imported again by the
    children's template, so a script keeps what it does under `if __name__ == "__main__":`. Raises FastqError when
    the master does not come up; it has said why on stderr.
    """

    def __init__(self, app: App, *, procs: int = 4, database: str | None = None, args: tuple[str, ...] = ()) -> None:
        """Serve `app` with so many children; `args` are further options of fastq-master."""
        self._ref, self._environ = _reference(app)
        self._args = ("--procs", str(procs), "--metrics", "off", "--init", *args)
        self._database = Database(database)
        self._exits = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Client:
        self._exits.enter_context(self._database)
        ready, written = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastq", "master", f"--app={self._ref}", "--ready-fd", str(written), *self._args],
            env={**os.environ, **self._environ, "FASTQ_DSN": self._database.dsn()},
            pass_fds=(written,),
        )
        os.close(written)
        self._exits.callback(self._stop)
        try:
            if not os.read(ready, 1):
                raise FastqError(f"the master did not come up: exit status {self._process.wait()}")
            return self._exits.enter_context(Client(self._database.dsn()))
        except BaseException:
            self._exits.close()
            raise
        finally:
            os.close(ready)

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _stop(self) -> None:
        assert self._process is not None, "stopped before it was started"
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


def _reference(app: App) -> tuple[str, dict[str, str]]:
    """Return how another process finds this app, and what it needs for that: the path on which we have found it, too.

    The module to import is the one that has all of its handlers and hooks, or else the first that has the app: the
    script, which has imported the others.
    """
    path = {PATH_VARIABLE: os.pathsep.join(place for place in sys.path if isinstance(place, str))}
    found: dict[str, str] = {}
    for module, its in list(sys.modules.items()):
        for name, value in list(getattr(its, "__dict__", {}).items()):
            if value is app:
                found.setdefault(module, name)
    functions = [handler.function for handler in app.handlers.values()] + [*app.start_hooks, *app.stop_hooks]
    own = {getattr(function, "__module__", None) for function in functions}
    module = next((module for module in found if own == {module}), next(iter(found), "__main__"))
    name = f":{found[module]}" if module in found else ""
    main: Any = sys.modules["__main__"]
    if module != "__main__":
        return module + name, path
    if getattr(main, "__spec__", None) is not None:  # python -m
        return str(main.__spec__.name) + name, path
    if getattr(main, "__file__", None) is not None:
        return str(Path(main.__file__).resolve()) + name, path
    if "-c" in sys.orig_argv:
        return CODE_REF, {CODE_VARIABLE: sys.orig_argv[sys.orig_argv.index("-c") + 1], **path}
    raise ConfigError("serving: the app stands in no file that another process could import")
