"""The places of masters: each has a way of its own to the database, and perhaps a network namespace of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from helpers.masters import Master as Process
from helpers.masters import Masters, leftovers
from helpers.until import until
from prometheus_client.parser import text_string_to_metric_families

from chaos.history import Master
from chaos.proxy import Proxies, Proxy
from chaos.servers import has

APP = Path(__file__).with_name("app.py")

TROUBLE = re.compile(r"unexpected in |Traceback \(most recent call last\)|assert", re.IGNORECASE)

PROBE = 50
"""The index of a namespace that is made to see whether there can be one."""


def boottime() -> float:
    """Return the seconds since this machine has started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def can_cut_networks() -> bool:
    """Whether network namespaces with packet filters can be had here."""
    if os.geteuid() != 0 or not has("nft") or not has("ip"):
        return False
    try:
        with contextlib.closing(Namespace(PROBE)) as probe:
            probe.cut()
    except subprocess.CalledProcessError:  # root of a container may not, or its kernel cannot
        return False
    return True


class Namespace:
    """A network namespace with one cable to ours, and a filter that can drop all that comes or goes."""

    def __init__(self, index: int) -> None:
        self.name = f"fqc{os.getpid()}-{index}"
        # One of 16,384 networks of four addresses: two runs at a time must not share one.
        place, first = divmod(os.getpid() % (256 * 64), 64)
        net, first = f"10.{200 + index}.{place}", 4 * first
        self.outside, self.inside = f"{net}.{first + 1}", f"{net}.{first + 2}"
        far, near = f"fqo{os.getpid()}-{index}"[-15:], f"fqi{os.getpid()}-{index}"[-15:]
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._lay(far, near)
            undo.pop_all()

    def _lay(self, far: str, near: str) -> None:
        for command in (
            f"netns add {self.name}",
            f"link add {near} type veth peer name {far} netns {self.name}",
            f"addr add {self.outside}/30 dev {near}",
            f"link set {near} up",
            f"-n {self.name} addr add {self.inside}/30 dev {far}",
            f"-n {self.name} link set {far} up",
            f"-n {self.name} link set lo up",
        ):
            subprocess.run(["ip", *command.split()], check=True)

    def cut(self) -> None:
        """Drop every packet, in both directions."""
        rules = "".join(
            f"add chain inet cut {hook} {{ type filter hook {hook} priority 0; policy accept; }}\n"
            f'add rule inet cut {hook} {way} != "lo" drop\n'
            for hook, way in (("input", "iifname"), ("output", "oifname"))
        )
        self._nft(f"add table inet cut\n{rules}")

    def heal(self) -> None:
        """Drop nothing any more."""
        self._nft("delete table inet cut\n")

    def _nft(self, rules: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.name, "nft", "-f", "-"], input=rules, text=True, check=True)

    def close(self) -> None:
        """Remove it, and its cable with it."""
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, check=False)


@dataclass
class Slot:
    """One place: at most one master at a time."""

    index: int
    masters: Masters
    proxy: Proxy
    args: tuple[str, ...]
    procs: int
    namespace: Namespace | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held by who does something to the whole master."""
    told: list[Master] = field(default_factory=list)
    """The masters that have been here."""

    @property
    def process(self) -> Process:
        """The present one."""
        return self.masters.started[-1]

    @property
    def master(self) -> Master:
        """What is written down of it."""
        return self.told[-1]

    def start(self) -> None:
        """Start a master; it need not come up soon, as the database may be away."""
        metrics = "0.0.0.0:0" if self.namespace else "127.0.0.1:0"
        self.masters.start(
            *self.args, "--metrics", metrics, "--breaker", "off", app=str(APP), procs=self.procs, ready=False,
            environ={"CHAOS_FOLDER": str(self.masters.folder.parent), "PYTHONPATH": str(APP.parents[1])},
        )  # fmt: skip
        self.told.append(Master(self.index, self.process.pid, boottime()))

    def serves(self) -> bool:
        """Whether it has begun to serve."""
        return bool(self.workers())

    def workers(self) -> list[str]:
        """Return the ids of its lives."""
        return re.findall(r"serving .* as ([0-9a-f-]{36})$", self.process.text(), re.MULTILINE)

    def has_ended(self) -> bool:
        """Whether it has exited."""
        return self.process.process.poll() is not None

    def note_end(self, seconds: float = 60.0) -> None:
        """Wait for its end and write it down."""
        try:
            self.master.status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.master.trouble.append(f"it had not ended after {seconds:g} s")
            self.process.process.kill()
            self.master.status = self.process.wait(10)
        self.master.ended = boottime()
        left = leftovers(self.masters.name)
        self.master.orphans = len(left)
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.note_log()

    def note_log(self) -> None:
        """Write down what its log tells."""
        text = self.process.text()
        self.master.workers = self.workers()
        self.master.in_order = " stopped: " in text.rpartition(" serving ")[2]
        self.master.trouble += [line for line in text.splitlines() if TROUBLE.search(line)][:5]

    def note_metrics(self) -> None:
        """Write down what it counts."""
        url = until(lambda: re.search(r"metrics on (http\S+)", self.process.text()), "the metrics' address")[1]
        url = url.replace("0.0.0.0", self.namespace.inside) if self.namespace else url
        with urllib.request.urlopen(url, timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        self.master.metrics = {
            (sample.labels["kind"], sample.labels["outcome"]): sample.value
            for family in families for sample in family.samples if sample.name == "fastq_runs_total"
        }  # fmt: skip

    def close(self) -> None:
        """End whatever runs here."""
        if self.masters.started:
            with contextlib.suppress(ProcessLookupError):
                self.process.signal(signal.SIGCONT)
            self.masters.kill_all()
            leftovers(self.masters.name)
        if self.namespace:
            self.namespace.close()


def make(
    number: int,
    folder: Path,
    proxies: Proxies,
    *,
    args: tuple[str, ...],
    procs: int,
    program: tuple[str, ...] | None,
    networks: bool,
) -> list[Slot]:
    """Return places for so many masters."""
    slots = []
    for index in range(number):
        namespace = Namespace(index) if networks else None
        host = namespace.outside if namespace else "127.0.0.1"
        proxy = proxies.open(host)
        dsn = f"host={host} port={proxy.port} user=postgres dbname=fastq sslmode=disable gssencmode=disable"
        (own := folder / f"slot-{index}").mkdir()
        inside = ("ip", "netns", "exec", namespace.name) if namespace else ()
        masters = Masters(dsn, own, program=(*inside, *(program or (sys.executable, "-m", "fastq"))))
        slots.append(Slot(index, masters, proxy, args, procs, namespace))
    return slots
