"""How many OOM kills the kernel has counted in our cgroup, in all the ways in which hosts and containers show it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastq.cgroup import oom_kills

EVENTS = "low 0\nhigh 0\nmax 17\noom 5\noom_kill {}\noom_group_kill 1\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"

ELSEWHERE = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
V2 = "30 22 0:26 {} {} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MEMORY = "35 31 0:32 {} {} rw,relatime shared:9 - cgroup cgroup rw,memory\n"
V1_CPU = "32 31 0:29 {} {} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"


def host(root: Path, cgroup: str, mounts: str, **files: str) -> Path:
    """Return the root of a host: what /proc says of us, and the files of its cgroups."""
    for name, text in {"proc/self/cgroup": cgroup, "proc/self/mountinfo": ELSEWHERE + mounts, **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_cgroup_v2_is_read(tmp_path: Path) -> None:
    """A service of systemd: `oom` and `oom_group_kill` are other counters."""
    made = host(
        tmp_path,
        "0::/system.slice/shop.service\n",
        V2.format("/", "/sys/fs/cgroup"),
        **{"sys/fs/cgroup/system.slice/shop.service/memory.events": EVENTS.format(3)},
    )
    assert oom_kills(made) == 3


def test_cgroup_v1_is_read(tmp_path: Path) -> None:
    """Each controller has a hierarchy of its own; `oom_kill_disable` is another line."""
    made = host(
        tmp_path,
        "5:cpu,cpuacct:/other\n4:memory:/shop\n1:name=systemd:/shop\n",
        V1_CPU.format("/", "/sys/fs/cgroup/cpu") + V1_MEMORY.format("/", "/sys/fs/cgroup/memory"),
        **{"sys/fs/cgroup/memory/shop/memory.oom_control": CONTROL.format(4)},
    )
    assert oom_kills(made) == 4


def test_of_both_versions_the_one_with_the_memory_is_read(tmp_path: Path) -> None:
    """A hybrid host: v2 is mounted as well, without any controller."""
    made = host(
        tmp_path,
        "4:memory:/shop\n0::/shop\n",
        V2.format("/", "/sys/fs/cgroup/unified") + V1_MEMORY.format("/", "/sys/fs/cgroup/memory"),
        **{
            "sys/fs/cgroup/unified/shop/memory.events": EVENTS.format(9),
            "sys/fs/cgroup/memory/shop/memory.oom_control": CONTROL.format(1),
        },
    )
    assert oom_kills(made) == 1


def test_a_container_that_sees_only_its_own_cgroup_reads_that(tmp_path: Path) -> None:
    """With a namespace of its own: it stands at the top."""
    made = host(
        tmp_path, "0::/\n", V2.format("/", "/sys/fs/cgroup"), **{"sys/fs/cgroup/memory.events": EVENTS.format(2)}
    )
    assert oom_kills(made) == 2


def test_a_container_that_sees_the_hosts_names_reads_its_own_cgroup(tmp_path: Path) -> None:
    """Without such a namespace: what is mounted begins at its own cgroup, or above it."""
    made = host(
        tmp_path,
        "4:memory:/docker/abc/inner\n",
        V1_MEMORY.format("/docker/abc", "/sys/fs/cgroup/memory"),
        **{"sys/fs/cgroup/memory/inner/memory.oom_control": CONTROL.format(6)},
    )
    assert oom_kills(made) == 6


def test_a_mount_that_does_not_show_our_cgroup_is_passed_over(tmp_path: Path) -> None:
    """Another container's, or one that begins in a folder whose name only starts like ours."""
    mounts = "".join(
        V2.format(mounted, point) for mounted, point in (("/docker/x", "/x"), ("/sh", "/y"), ("/shop", "/z"))
    )
    made = host(
        tmp_path,
        "0::/shop\n",
        mounts,
        **{f"{point}/memory.events": EVENTS.format(n) for n, point in enumerate("xyz")},
        **{"y/op/memory.events": EVENTS.format(8)},
    )
    assert oom_kills(made) == 2


def test_a_mount_without_the_file_is_passed_over(tmp_path: Path) -> None:
    """The same hierarchy may be mounted twice, and something else lie over the first."""
    made = host(
        tmp_path,
        "0::/shop\n",
        V2.format("/", "/hidden") + V2.format("/", "/shown"),
        **{"shown/shop/memory.events": EVENTS.format(5)},
    )
    assert oom_kills(made) == 5


def test_odd_names_are_read(tmp_path: Path) -> None:
    """Blanks are octal in mountinfo and themselves elsewhere, and a cgroup may have a colon in its name."""
    made = host(
        tmp_path,
        "0::/a b:c\n",
        V2.format("/", "/my\\040cgroups\\134x"),
        **{"my cgroups\\x/a b:c/memory.events": EVENTS.format(7)},
    )
    assert oom_kills(made) == 7


def test_a_cgroup_above_ours_is_not_read(tmp_path: Path) -> None:
    """There the kills of others are counted too."""
    made = host(
        tmp_path,
        "0::/system.slice/shop.service\n",
        V2.format("/", "/sys/fs/cgroup"),
        **{"sys/fs/cgroup/system.slice/memory.events": EVENTS.format(3)},
    )
    assert oom_kills(made) is None


def test_a_process_outside_of_what_it_sees_reads_nothing(tmp_path: Path) -> None:
    """It was moved out of the namespace that its mounts belong to: no path leads to its cgroup."""
    made = host(tmp_path, "0::/../other\n", V2.format("/", "/cg/in"), **{"cg/other/memory.events": EVENTS.format(3)})
    assert oom_kills(made) is None


@pytest.mark.parametrize(
    "text",
    ["", "low 0\nhigh 0\n", "oom_kill_disable 0\nunder_oom 0\n", "oom_kill \n", "oom_group_kill 1\n", "oom_kill x\n"],
)
def test_a_kernel_without_the_counter_says_nothing(tmp_path: Path, text: str) -> None:
    """Before 4.13 there was none; 0 would be a claim."""
    made = host(tmp_path, "0::/\n", V2.format("/", "/cg"), **{"cg/memory.events": text})
    assert oom_kills(made) is None


@pytest.mark.parametrize("cgroup", ["", "5:cpu:/shop\n", "0::/gone (deleted)\n"])
def test_without_a_cgroup_there_is_no_counter(tmp_path: Path, cgroup: str) -> None:
    """No memory controller, or a cgroup that has been removed."""
    made = host(tmp_path, cgroup, V2.format("/", "/cg"), **{"cg/shop/memory.events": EVENTS.format(1)})
    assert oom_kills(made) is None


def test_without_proc_there_is_no_counter(tmp_path: Path) -> None:
    """Some sandboxes hide it."""
    assert oom_kills(tmp_path) is None


def test_here_it_is_a_count_or_unknown() -> None:
    """Whatever this machine is, and without leaving anything open."""
    before = os.listdir("/proc/self/fd")
    count = oom_kills()
    assert count is None or count >= 0
    assert os.listdir("/proc/self/fd") == before
