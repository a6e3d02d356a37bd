"""The registry: what can be registered, which jobs a handler makes, and how an app is found by name."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastq.app import CODE_VARIABLE, App, Handler, load_app
from fastq.errors import AppImportError, InvalidJob, UnknownKind
from fastq.job import Kind, NewJob


def thumb(path: str, size: int = 64, *, crop: bool = False) -> str:
    """Make a thumbnail."""
    return f"{path} {size} {crop}"


async def fetch(url: str) -> str:
    """Fetch."""
    return url


def registered(function: Callable[..., Any] = thumb, /, **options: Any) -> Handler[..., Any]:
    """Return the handler that a function becomes."""
    handler: Handler[..., Any] = App().job(**options)(function)
    return handler


# What can be registered.


def test_a_handler_is_named_after_its_function() -> None:
    """Unless told otherwise."""
    assert registered().kind.name == "thumb"


def test_a_handler_may_have_another_name() -> None:
    """The kind is what stands in the database."""
    assert registered(kind="images.thumb").kind.name == "images.thumb"


def test_a_decorator_needs_no_brackets() -> None:
    """`@app.job` and `@app.job()` do the same."""
    app = App()
    assert (app.job(thumb).kind, app.job()(fetch).kind) == (Kind(name="thumb"), Kind(name="fetch"))


def test_a_handler_can_still_be_called() -> None:
    """Here and now, as if it were not one."""
    assert registered()("a.png", crop=True) == "a.png 64 True"


def test_a_handler_looks_like_its_function() -> None:
    """For help() and for people."""
    handler = registered()
    assert (handler.__name__, handler.__doc__, repr(handler)) == ("thumb", "Make a thumbnail.", "<fastq handler thumb>")


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 5.0}, {"timeout_grace": 0}, {"max_memory": 512}, {"max_cpu": 1.5}, {"max_attempts": 0},
        {"strict": True}, {"panic_retries": 2}, {},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_a_kind_reach_the_manifest(options: dict[str, Any]) -> None:
    """The master learns them from there."""
    assert registered(**options).kind == Kind(name="thumb", **options)


def test_an_apps_defaults_hold_for_its_handlers() -> None:
    """Those of a kind and those of its jobs."""
    handler = App(timeout=9, max_memory=512, queue="slow").job(thumb)
    assert (handler.kind.timeout, handler.kind.max_memory, handler.job("a").queue) == (9, 512, "slow")


def test_a_handlers_options_win_over_the_apps() -> None:
    """The nearer one."""
    handler = App(timeout=9, queue="slow").job(timeout=1, queue="quick")(thumb)
    assert (handler.kind.timeout, handler.job("a").queue) == (1, "quick")


@pytest.mark.parametrize(
    "register", [lambda: App(retries=3), lambda: registered(retries=3), lambda: registered().options(retries=3)]
)
def test_an_option_that_is_none_is_refused(register: Callable[[], object]) -> None:
    """The message lists those there are."""
    with pytest.raises(InvalidJob, match=r"option 'retries'; there are: .*max_attempts.*queue"):
        register()


def test_the_options_that_are_listed_are_allowed_there() -> None:
    """`options()` makes another job, not another kind: the list must not hold what has just been refused."""
    with pytest.raises(InvalidJob, match="option 'strict'") as refused:
        registered().options(strict=True)
    assert "strict" not in str(refused.value).partition("there are:")[2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", 0),
        ("timeout", "5"),
        ("timeout_grace", -1),
        ("max_memory", 0),
        ("max_cpu", "1"),
        ("max_attempts", -1),
        ("panic_retries", 0.5),
        ("kind", "a\nb"),
        ("kind", 5),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(name: str, value: Any) -> None:
    """When the app is imported, not when the first job runs."""
    with pytest.raises(InvalidJob, match="must be"):
        registered(**{name: value})


def test_a_kind_has_one_handler() -> None:
    """The message names the one that was first."""
    app = App()
    app.job(thumb)
    with pytest.raises(InvalidJob, match="kind 'thumb' has a handler already: <function thumb"):
        app.job(kind="thumb")(fetch)


def test_a_refused_handler_is_not_registered() -> None:
    """Nothing of it stays."""
    app = App()
    with pytest.raises(InvalidJob):
        app.job(timeout=-1)(thumb)
    assert app.handlers == {}


def test_a_handler_without_a_name_needs_a_kind() -> None:
    """As a partial function has none."""
    app = App()
    with pytest.raises(InvalidJob, match=r"has no name: .*@app\.job\(kind=\.\.\.\)"):
        app.job(functools.partial(int, base=2))
    assert list(app.handlers) == []


@pytest.mark.parametrize("function", [lambda x, /: x, lambda *args: args, len], ids=["positional only", "*args", "len"])
def test_a_function_whose_arguments_have_no_names_is_refused(function: Callable[..., Any]) -> None:
    """A payload is an object: arguments travel by name."""
    with pytest.raises(InvalidJob, match="arguments travel by name"):
        registered(function, kind="k")


def test_a_function_may_run_jobs_of_two_kinds() -> None:
    """Each handler keeps its own kind: both are in the manifest."""
    app = App()
    app.job(kind="new")(app.job(kind="old")(thumb))
    assert [handler.kind.name for handler in app.handlers.values()] == ["old", "new"]


def test_an_attribute_of_a_function_does_not_become_one_of_its_handler() -> None:
    """Other decorators leave theirs; `kind` and `function` are ours."""

    def marked() -> None:
        pass

    marked.kind = "slow"  # type: ignore[attr-defined]
    assert registered(marked).kind == Kind(name="marked")


def test_a_known_kind_is_found() -> None:
    """By name."""
    app = App()
    assert app.job(thumb) is app.find("thumb")


@pytest.mark.parametrize(("expected", "names"), [("none", []), ("a, b", ["b", "a"])])
def test_an_unknown_kind_is_told_with_those_there_are(expected: str, names: list[str]) -> None:
    """Most of these are misspelt."""
    app = App()
    for name in names:
        app.job(kind=name)(thumb)
    with pytest.raises(UnknownKind, match=f"no handler for kind 'thmub'; this app has: {expected}$"):
        app.find("thmub")


# What children call when they start and leave.


def connect() -> None:
    """Do what a child does first."""


def disconnect() -> None:
    """Do what a child does last."""


def test_an_app_has_no_hooks_of_its_own() -> None:
    """Nothing is called that nobody asked for."""
    assert (App().start_hooks, App().stop_hooks) == ((), ())


def test_hooks_of_a_start_run_as_registered() -> None:
    """A later one may need what an earlier one has made."""
    app = App()
    app.on_child_start(connect)
    app.on_child_start(disconnect)
    assert (app.start_hooks, app.stop_hooks) == ((connect, disconnect), ())


def test_hooks_of_a_stop_run_the_other_way_round() -> None:
    """What was made first is the last to go."""
    app = App()
    app.on_child_stop(disconnect)
    app.on_child_stop(connect)
    assert (app.start_hooks, app.stop_hooks) == ((), (connect, disconnect))


def test_a_hook_stays_the_function_that_it_is() -> None:
    """It can be called, and registered for the other end as well."""
    app = App()
    assert app.on_child_stop(app.on_child_start(connect)) is connect


def test_apps_do_not_share_hooks() -> None:
    """Each has its own."""
    App().on_child_start(connect)
    assert App().start_hooks == ()


def repr_without_address(value: Any) -> str:
    """Name an argument the same in every process."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))


class Pool:
    """Something with methods."""

    def open(self, size: int = 4) -> None:
        """Open it."""

    async def aopen(self) -> None:
        """Open it in a loop."""

    def __call__(self) -> None:
        """Open it."""


@pytest.mark.parametrize(
    "hook",
    [Pool().open, Pool(), lambda: None, functools.partial(Pool.open, Pool()), lambda *args: None, dict],
    ids=repr_without_address,
)
def test_what_can_be_called_without_arguments_may_be_a_hook(hook: Callable[..., Any]) -> None:
    """Methods, objects, built-ins, and functions all of whose arguments have defaults."""
    app = App()
    app.on_child_start(hook)
    assert app.start_hooks == (hook,)


def generate() -> Iterator[None]:
    """Look like a fixture."""
    yield


async def generate_later() -> Any:
    """Look like one in a loop."""
    yield


@pytest.mark.parametrize("register", ["on_child_start", "on_child_stop"])
@pytest.mark.parametrize(
    ("expected", "hook"),
    [
        ("cannot be called: hooks are plain functions", None),
        ("cannot be called: hooks are plain functions", "connect"),
        ("is a coroutine function: hooks are plain functions", fetch),
        ("is a coroutine function: hooks are plain functions", Pool().aopen),
        ("is a coroutine function: hooks are plain functions", functools.partial(fetch, "u")),
        ("is a generator function: hooks are plain functions", generate),
        ("is a generator function: hooks are plain functions", generate_later),
        ("is called without arguments: missing a required argument: 'path'", thumb),
        ("is called without arguments: missing a required argument: 'url'", Handler(fetch, Kind(name="fetch"), {})),
    ],
    ids=repr_without_address,
)
def test_what_would_do_nothing_as_a_hook_is_refused(register: str, expected: str, hook: Any) -> None:
    """When the app is imported, not in each of its children; and nothing of it stays."""
    app = App()
    with pytest.raises(InvalidJob, match=f"^hook .*{expected}"):
        getattr(app, register)(hook)
    assert (app.start_hooks, app.stop_hooks) == ((), ())


# Which jobs a handler makes.


def keywords(a: int, **rest: Any) -> None:
    """Take anything by name."""


@pytest.mark.parametrize(
    ("expected", "function", "args", "kwargs"),
    [
        ({"path": "a", "size": 1}, thumb, ("a", 1), {}),
        ({"path": "a"}, thumb, (), {"path": "a"}),
        ({"path": "a", "crop": True}, thumb, ("a",), {"crop": True}),
        ({"a": 1, "b": 2, "rest": 3}, keywords, (1,), {"b": 2, "rest": 3}),
        ({"a": 1}, keywords, (1,), {}),
        ({"url": "u"}, fetch, ("u",), {}),
        ({"size": 1}, functools.partial(thumb, "a"), (), {"size": 1}),
        ({}, lambda: None, (), {}),
    ],
)
def test_arguments_travel_by_name(
    expected: dict[str, Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """As given; defaults stay at home, so that a new version's default holds for old jobs too."""
    assert registered(function, kind="k").job(*args, **kwargs) == NewJob(kind="k", payload=expected)


@pytest.mark.parametrize(
    ("expected", "args", "kwargs"),
    [
        ("missing a required argument: 'path'", (), {}),
        ("too many positional arguments", ("a", 1, True), {}),
        ("got an unexpected keyword argument 'colour'", ("a",), {"colour": 1}),
        ("multiple values for argument 'path'", ("a",), {"path": "b"}),
    ],
)
def test_arguments_that_do_not_fit_are_refused(expected: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Where the job is made, with the signature in the message."""
    with pytest.raises(InvalidJob, match=rf"^thumb\(path.*\).*: {expected}"):
        registered().job(*args, **kwargs)


def test_a_copy_with_options_makes_jobs_with_them() -> None:
    """The handler itself makes jobs as before."""
    handler = registered(queue="images")
    urgent = handler.options(priority=1, delay=5)
    assert (urgent.job("a"), handler.job("a")) == (
        NewJob(kind="thumb", payload={"path": "a"}, queue="images", priority=1, delay=5),
        NewJob(kind="thumb", payload={"path": "a"}, queue="images"),
    )


@pytest.mark.parametrize("name", ["timeout_grace", "max_memory", "max_cpu"])
def test_a_limit_of_a_kind_is_no_option_of_a_job(name: str) -> None:
    """They are said once, for all jobs of the kind."""
    with pytest.raises(InvalidJob, match=f"option '{name}'; there are: "):
        registered().options(**{name: 1})


def test_options_add_up() -> None:
    """The last word on each wins."""
    job = registered().options(priority=1, tags=("a",)).options(priority=3).job("a")
    assert (job.priority, job.tags) == (3, ("a",))


def test_a_limit_of_a_kind_is_not_written_into_its_jobs() -> None:
    """It may change with the next version; only what is said for one job stays with that job."""
    job = registered(timeout=5, max_attempts=3).job("a")
    assert (job.timeout, job.max_attempts) == (None, None)


# How an app is found.


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    """Forget what a test has imported."""
    path, before = sys.path[:], dict(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)


APP = "from fastq import App\napp = App()\n@app.job\ndef f(): pass\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Give a way to write a module where it is found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.path.insert(0, str(tmp_path))

    def write(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write


Write = Callable[[str, str], Path]


@pytest.mark.parametrize("ref", ["shop_jobs", "shop_jobs:app", "shop_jobs.py", "./shop_jobs.py", "shop_jobs.py:app"])
def test_an_app_is_found(write: Write, ref: str) -> None:
    """By module or by file, with or without its name."""
    write("shop_jobs.py", APP)
    assert list(load_app(ref).handlers) == ["f"]


def test_an_app_in_a_package_is_found(write: Write) -> None:
    """By its full name."""
    write("shop_pkg/__init__.py", "")
    write("shop_pkg/jobs.py", APP)
    assert list(load_app("shop_pkg.jobs").handlers) == ["f"]


def test_a_file_is_found_from_anywhere(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what stands beside it can be imported."""
    write("elsewhere/shop_helper.py", "")
    file = write("elsewhere/shop_main.py", f"import shop_helper\n{APP}")
    monkeypatch.chdir("/")
    assert list(load_app(str(file)).handlers) == ["f"]


def test_an_app_by_two_names_is_one() -> None:
    """Nobody has to say which."""
    sys.modules["shop_twice"] = module = type(sys)("shop_twice")
    module.__spec__ = __spec__
    vars(module).update(app=(app := App()), application=app)
    assert load_app("shop_twice") is app


def test_code_of_a_command_line_is_an_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -c`: the text stands in the environment."""
    monkeypatch.setenv(CODE_VARIABLE, APP)
    assert list(load_app("-c").handlers) == ["f"]


def refusal(ref: str) -> AppImportError:
    """Return the error that an app is refused with."""
    with pytest.raises(AppImportError) as refused:
        load_app(ref)
    return refused.value


def test_two_apps_are_one_too_many(write: Write) -> None:
    """The message says how to choose."""
    write("shop_two.py", "from fastq import App\na, b = App(), App()\n")
    assert str(refusal("shop_two")) == (
        "app 'shop_two': one App is expected in shop_two, found 2 (a, b); say which, as in shop_two:a"
    )


def test_a_module_without_an_app_is_refused(write: Write) -> None:
    """Found none."""
    write("shop_none.py", "x = 1\n")
    assert str(refusal("shop_none")) == "app 'shop_none': one App is expected in shop_none, found none"


def test_a_name_that_is_no_app_is_refused(write: Write) -> None:
    """The message lists those there are."""
    write("shop_name.py", APP)
    assert str(refusal("shop_name:ap")) == "app 'shop_name:ap': shop_name has no App named 'ap'; it has: app"


@pytest.mark.parametrize(
    ("expected", "ref"),
    [
        ("there is no module 'shop_nowhere' (looked in ", "shop_nowhere"),
        ("there is no module 'shop_nowhere.jobs' (looked in ", "shop_nowhere.jobs:app"),
        ("there is no file shop_nowhere.py", "shop_nowhere.py"),
        ("there is no file /nowhere/x.py", "/nowhere/x.py"),
        ("cannot be imported: ModuleNotFoundError: No module named 'shop_some.jobs'", "shop_some.jobs"),
        ("cannot be imported", ""),
        ("cannot be imported", ":app"),
        ("cannot be imported", ".jobs"),
    ],
)
def test_what_is_not_there_is_said_so(write: Write, expected: str, ref: str) -> None:
    """With where it was looked for, and without a traceback of ours."""
    write("shop_some/__init__.py", "")
    error = refusal(ref)
    assert expected in str(error)
    assert str(Path(sys.modules["fastq.app"].__file__ or "")) not in error.traceback


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("SyntaxError", "def f(:\n"),
        ("ModuleNotFoundError: No module named 'shop_missing'", "import shop_missing\n"),
        ("ZeroDivisionError: division by zero", "1 / 0\n"),
        ("SystemExit: 3", "raise SystemExit(3)\n"),
        ("KeyboardInterrupt", "raise KeyboardInterrupt\n"),
        ("InvalidJob: option 'x'", "from fastq import App\nApp(x=1)\n"),
        ("", "\0"),  # a SyntaxError, or before Python 3.11.4 a ValueError
        ("SyntaxError", "x = '\udcff'\n".encode(errors="surrogateescape").decode("latin1")),
    ],
)  # fmt: skip
def test_an_app_that_fails_at_import_is_told_with_its_error(write: Write, expected: str, text: str) -> None:
    """Whatever it raised, an exit included."""
    write("shop_fails.py", "").write_bytes(text.encode("latin1"))
    assert f"app 'shop_fails' cannot be imported: {expected}" in str(refusal("shop_fails"))


@pytest.mark.parametrize(
    ("expected", "text"),
    [("line 2", "\n1 / 0\n"), ("line 2", "\ndef f(:\n"), ("in inner", "def inner():\n    1 / 0\ninner()\n")],
)
def test_the_traceback_of_an_import_points_into_the_app(write: Write, expected: str, text: str) -> None:
    """To the line that failed, with no frames of ours or of importlib's."""
    write("shop_trace.py", text)
    trace = refusal("shop_trace").traceback
    assert (expected in trace, "shop_trace.py" in trace, "fastq/app.py" in trace, "<frozen" in trace) == (
        True,
        True,
        False,
        False,
    )


def test_a_file_is_loaded_although_a_module_of_its_name_is_loaded_already(write: Write) -> None:
    """`--app email.py` names that file, and not the standard library's email."""
    import email

    assert email.__file__
    file = write("own/email.py", APP)
    assert list(load_app(str(file)).handlers) == ["f"]
