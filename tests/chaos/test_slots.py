"""Networks are cut where that can be done, and nothing is left behind where it cannot."""

from __future__ import annotations

import os
import subprocess

import pytest

from chaos import slots


def test_networks_that_cannot_be_cut_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel may have namespaces and no packet filter."""

    def fail(_: slots.Namespace) -> None:
        raise subprocess.CalledProcessError(1, "nft")

    monkeypatch.setattr(slots.Namespace, "cut", fail)
    assert not slots.can_cut_networks()
    if slots.has("ip"):
        left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
        assert f"fqc{os.getpid()}-" not in left
