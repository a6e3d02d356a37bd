"""Ways to run the whole suite: through a pooler, or as members of the least-privilege roles; and what is left out there."""

from __future__ import annotations

import os

import pytest

POOLED = bool(os.environ.get("FASTQ_TEST_POOLER"))
"""Whether masters reach their database through a PgBouncer that hands out sessions by transaction."""

AS_ROLES = bool(os.environ.get("FASTQ_TEST_ROLES"))
"""Whether masters and clients are members of `fastq.roles`, and no more, instead of superusers."""

needs_notify = pytest.mark.skipif(POOLED, reason="behind a pooler nobody is woken: masters look every --poll seconds")
"""For tests of what a NOTIFY does."""

own_connections = pytest.mark.skipif(POOLED, reason="behind a pooler the server's sessions are not the master's")
"""For tests that break, count or watch the master's own sessions, or what one of them must keep."""

without_roles = pytest.mark.skipif(AS_ROLES, reason="with the roles, who is a member of none may do less")
"""For tests of what is open to users who are members of no role."""
