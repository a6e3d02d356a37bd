"""The registry: an `App`, its handlers, and how an app is found by name.

Nothing here touches a database: the template and the children import this module, and they have none.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from fastq.errors import AppImportError, InvalidJob, UnknownKind
from fastq.job import Kind, NewJob, check

if TYPE_CHECKING:
    from collections.abc import Mapping

P = ParamSpec("P")
R = TypeVar("R")

Hook = Callable[[], object]
H = TypeVar("H", bound=Hook)

CODE_REF = "-c"
"""An app that was given as `python -c`; its text stands in the environment."""
CODE_VARIABLE = "FASTQ_APP_CODE"
PATH_VARIABLE = "FASTQ_APP_PATH"
"""Where else modules are looked for, before all others; taken out of the environment when it is read."""


class Handler(Generic[P, R]):
    """A function that runs jobs of one kind. Calling it calls the function, here and now.

    `job(...)` makes a job of it, `options(...)` a copy of it whose jobs get other options.
    """

    def __init__(
        self,
        function: Callable[P, R],
        kind: Kind,
        options: Mapping[str, Any],
        delay: Callable[[int, BaseException], float] | None = None,
    ) -> None:
        self.function = function
        self.kind = kind
        self.delay = delay
        """The retry function, if that is what was given for `retry`."""
        self._options = dict(options)
        self._signature = _signature(function)
        for parameter in self._signature.parameters.values():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
                raise InvalidJob(f"handler {kind.name}: arguments travel by name, {parameter} cannot")
        functools.update_wrapper(self, function, updated=())  # an attribute of its own must not become one of ours

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<fastq handler {self.kind.name}>"

    def options(self, **options: Any) -> Handler[P, R]:
        """Return a copy whose jobs get these options: queue, priority, delay, ... (see `NewJob`)."""
        _check_options(options)
        return Handler(self.function, self.kind, {**self._options, **_explicit(options)}, self.delay)

    def job(self, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """Return a job that calls the handler with these arguments; InvalidJob when they do not fit it."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidJob(f"{self.kind.name}{self._signature}: {error}") from None
        payload = dict(bound.arguments)
        for parameter in self._signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                payload.update(payload.pop(parameter.name, {}))
        return NewJob(kind=self.kind.name, payload=payload, **self._options)


class App:
    """Your application: the handlers it has, and what holds for all of them.

    `queue` and `priority` are where jobs go, and `timeout`, `timeout_grace`, `max_memory`, `max_cpu`, `max_attempts`
    (None: no limit), `retry`, `strict` and `panic_retries` how they are run (see `fastq.job.Kind` and `Retry`). What a
    handler's own options say goes before what the app's say, and what a job's say before both (as in River).
    """

    def __init__(self, **defaults: Any) -> None:
        self._defaults = _split(defaults)
        self.handlers: dict[str, Handler[..., Any]] = {}
        self.start_hooks: tuple[Hook, ...] = ()
        """What each child calls before its first job, in this order: as registered."""
        self.stop_hooks: tuple[Hook, ...] = ()
        """What a child calls when it leaves, in this order: the last registered first."""

    @overload
    def job(self, function: Callable[P, R], /) -> Handler[P, R]: ...
    @overload
    def job(self, /, *, kind: str | None = None, **options: Any) -> Callable[[Callable[P, R]], Handler[P, R]]: ...
    def job(self, function: Any = None, /, **options: Any) -> Any:
        """Register a function, or a coroutine function, as the handler of a kind.

        The kind's name is the function's unless `kind` says otherwise. Options as for `App`. Raises InvalidJob for an
        option that is not one, and when the kind is taken.
        """
        kind = options.pop("kind", None)

        def register(function: Callable[..., Any]) -> Handler[..., Any]:
            name = kind or getattr(function, "__name__", None)
            if name is None:
                raise InvalidJob(f"{function!r} has no name: say which kind it is the handler of, @app.job(kind=...)")
            if name in self.handlers:
                raise InvalidJob(f"kind {name!r} has a handler already: {self.handlers[name].function}")
            of_kind, of_job = _split(options)
            for_kind = {**self._defaults[0], **of_kind}
            retry = for_kind.pop("retry", None)
            described = Kind(name=name, delays=_delays(retry), **for_kind)
            check(described)
            handler = Handler(function, described, {**self._defaults[1], **of_job}, retry if callable(retry) else None)
            self.handlers[name] = handler
            return handler

        return register if function is None else register(function)

    def on_child_start(self, hook: H, /) -> H:
        """Register a function that each child calls after its fork and before its first job; the first one first.

        The place to open connections and to seed generators: what is made at import is shared by all children. It is a
        plain function without arguments; InvalidJob if it is not.
        """
        _check_hook(hook)
        self.start_hooks = (*self.start_hooks, hook)
        return hook

    def on_child_stop(self, hook: H, /) -> H:
        """Register a function that a child calls when it leaves in order; the last one first.

        Not when it crashes, is killed or ends by itself: what must not be lost is kept in a job's result, or elsewhere.
        It is a plain function without arguments; InvalidJob if it is not.
        """
        _check_hook(hook)
        self.stop_hooks = (hook, *self.stop_hooks)
        return hook

    def find(self, kind: str) -> Handler[..., Any]:
        """Return the handler of a kind; UnknownKind when there is none."""
        try:
            return self.handlers[kind]
        except KeyError:
            known = ", ".join(sorted(self.handlers)) or "none"
            raise UnknownKind(f"no handler for kind {kind!r}; this app has: {known}") from None


KIND_OPTIONS = frozenset(
    {"timeout", "timeout_grace", "max_memory", "max_cpu", "max_attempts", "strict", "panic_retries", "retry"}
)
JOB_OPTIONS = frozenset(
    {
        "queue",
        "priority",
        "run_at",
        "delay",
        "deadline",
        "timeout",
        "max_attempts",
        "tags",
        "meta",
        "unique",
        "unique_for",
    }
)

Retry = float | Sequence[float] | Callable[[int, BaseException], float] | None
"""When to run a job again that failed: None, attempt**4 seconds later (as in River); a number, so many seconds later; a
list, by attempt; a function of the attempt's number and the exception."""


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell the options of a kind from those of its jobs."""
    options = _explicit(options)
    of_kind = {name: value for name, value in options.items() if name in KIND_OPTIONS}
    of_job = {name: value for name, value in options.items() if name not in KIND_OPTIONS}
    _check_options(of_job, for_kind=True)
    return of_kind, of_job


def _delays(retry: Any) -> tuple[float, ...] | None:
    """Return the delays that a `retry` option names, None if it names none. Raises InvalidJob."""
    if retry is None or callable(retry):
        return None
    try:
        return tuple(map(float, [retry] if isinstance(retry, int | float) else retry))
    except (TypeError, ValueError):
        raise InvalidJob(f"retry is {retry!r}, must be None, seconds, a list of seconds or a function") from None


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return what a function takes, its annotations unread: they may name what is there for type checkers alone."""
    if sys.version_info >= (3, 14):
        import annotationlib  # noqa: PLC0415 - new in 3.14

        return inspect.signature(function, annotation_format=annotationlib.Format.STRING)
    return inspect.signature(function)


def _check_hook(hook: Any) -> None:
    """Raise InvalidJob unless calling it, without arguments, does what its author wrote."""
    if not callable(hook):
        raise InvalidJob(f"hook {hook!r} cannot be called: hooks are plain functions")
    for is_kind, what in (
        (inspect.iscoroutinefunction, "a coroutine function"),
        (inspect.isgeneratorfunction, "a generator function"),
        (inspect.isasyncgenfunction, "a generator function"),
    ):
        if is_kind(hook):
            raise InvalidJob(f"hook {hook!r} is {what}: hooks are plain functions")
    try:
        _signature(hook).bind()
    except TypeError as error:
        raise InvalidJob(f"hook {hook!r} is called without arguments: {error}") from None
    except ValueError:  # written in C, and says nothing of its arguments
        return


def _explicit(options: Mapping[str, Any]) -> dict[str, Any]:
    """Say 0 for `max_attempts=None`: no limit, on purpose."""
    return {name: 0 if name == "max_attempts" and value is None else value for name, value in options.items()}


def _check_options(options: Mapping[str, Any], *, for_kind: bool = False) -> None:
    for name in options:
        if name not in JOB_OPTIONS:
            also = ", and of a handler or an app: " + ", ".join(sorted(KIND_OPTIONS - JOB_OPTIONS)) if for_kind else ""
            raise InvalidJob(f"option {name!r}; there are: {', '.join(sorted(JOB_OPTIONS))}{also}")


_MACHINERY = ("<frozen", str(Path(__file__).parent), str(Path(importlib.__file__).parent))
"""Where the frames are that say nothing to the user."""


def load_app(ref: str) -> App:
    """Return the App that `ref` names: `module`, `module:name`, `file.py` or `file.py:name`.

    Raises AppImportError, with the traceback if the app's own code failed.
    """
    target, _, name = (CODE_REF, "", "") if ref == CODE_REF else ref.partition(":")
    places = os.environ.pop(PATH_VARIABLE, "").split(os.pathsep)
    sys.path[:0] = [place for place in places if place and place not in sys.path]
    try:
        module = _load_module(target)
    except AppImportError:
        raise
    except BaseException as error:
        own = traceback.TracebackException.from_exception(error)
        own.stack = traceback.StackSummary.from_list(
            [frame for frame in own.stack if not frame.filename.startswith(_MACHINERY)]
        )
        said = "".join(own.format()) if own.stack or isinstance(error, SyntaxError) else ""
        raise AppImportError(f"app {ref!r} cannot be imported: {type(error).__name__}: {error}", said) from error
    apps = {key: value for key, value in vars(module).items() if isinstance(value, App)}
    if name:
        if name not in apps:
            raise AppImportError(
                f"app {ref!r}: {target} has no App named {name!r}; it has: {', '.join(apps) or 'none'}"
            )
        return apps[name]
    if len(set(map(id, apps.values()))) != 1:
        found = f"{len(apps)} ({', '.join(apps)}); say which, as in {target}:{next(iter(apps))}" if apps else "none"
        raise AppImportError(f"app {ref!r}: one App is expected in {target}, found {found}")
    return next(iter(apps.values()))


def _load_module(target: str) -> ModuleType:
    if target == CODE_REF:
        module = ModuleType("fastq_main")
        sys.modules[module.__name__] = module
        exec(compile(os.environ[CODE_VARIABLE], "<string>", "exec"), vars(module))  # noqa: S102 - the user's own text
        return module
    if not target.endswith(".py"):
        if importlib.util.find_spec(target.partition(".")[0]) is None:
            raise AppImportError(
                f"app: there is no module {target!r} (looked in {', '.join(p or '.' for p in sys.path[:3])}, ...)"
            )
        return importlib.import_module(target)
    path = Path(target).resolve()
    if not path.is_file():
        raise AppImportError(f"app: there is no file {target}")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.find_spec(path.stem)
    if spec is not None and spec.origin == str(path):
        return importlib.import_module(path.stem)
    return _load_file(path)  # another module has its name


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fastq_app_{path.stem}", path)
    assert spec is not None, "a file that ends in .py has a loader"
    assert spec.loader is not None, "a file that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
