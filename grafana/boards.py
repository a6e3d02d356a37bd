"""What the dashboards ask: a row for each question, in the order in which somebody asks them.

Figures of the whole database come from one master at a time and are read by max; those of masters are summed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MINE = 'job=~"$job", instance=~"$instance"'
"""Which masters a panel looks at."""
ALL = 'job=~"$job"'
"""For figures of the whole database: whichever master tells them."""
KIND = f'{MINE}, kind=~"$kind"'
RATE = "$__rate_interval"


@dataclass(frozen=True)
class Panel:
    """One panel: a question, its queries (legend: expression), and what to do when it looks bad."""

    title: str
    text: str
    unit: str
    queries: dict[str, str]
    width: int = 8
    shape: str = "lines"
    """lines, stack, stat or heat."""
    height: int = 8


@dataclass(frozen=True)
class Row:
    """A question that a row of panels answers."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    text: str
    rows: Sequence[Row]
    variables: Sequence[str] = ()


def quantiles(metric: str, by: str, where: str, *shares: float) -> dict[str, str]:
    """Return queries of quantiles of a histogram."""
    labels = ", ".join(filter(None, (by, "le")))
    legend = f" {{{{{by}}}}}" if by else ""
    return {
        f"p{share * 100:g}{legend}": f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[{RATE}])))"
        for share in shares
    }


def heat(metric: str, where: str) -> dict[str, str]:
    """Return the query of a heatmap of a histogram."""
    return {"{{le}}": f"sum by (le) (increase({metric}_bucket{{{where}}}[{RATE}]))"}


def total(metric: str, by: str, where: str, function: str = "rate") -> str:
    """Return a counter's rate, summed by labels."""
    return f"sum by ({by}) ({function}({metric}{{{where}}}[{RATE}]))"


ENDED = 'outcome=~"DONE|FAILED|PANIC|CANCELLED|RETRY"'
TRIED = 'outcome=~"DONE|FAILED|PANIC|RETRY"'

OVERVIEW = Board(
    "fastq-overview", "fastq overview", "Do users wait, what fails, and is there enough of everything?",
    [
        Row("Do users wait?", [
            Panel("Oldest ready job", "For how long the first job of the queue that waits longest has been ready. Above a minute: see whether children are all busy (add some), or none works (see the masters).", "s",
                  {"oldest": f"max(fastq_queue_oldest_seconds{{{ALL}}})"}, 4, "stat"),
            Panel("Ready", "Jobs that could run now. It may be large as long as the oldest is young.", "short",
                  {"ready": f"sum(max by (queue) (fastq_queue_jobs{{{ALL}}}))"}, 4, "stat"),
            Panel("Masters", "Masters that live, by their heartbeats. Fewer than you have started: look at their logs.", "short",
                  {"masters": f"max(fastq_masters{{{ALL}}})"}, 4, "stat"),
            Panel("Age of the oldest ready job, by queue", "What users feel. One queue alone: its kinds are slow or not known to any master. All: too few children, or Postgres is slow.", "s",
                  {"{{queue}}": f"max by (queue) (fastq_queue_oldest_seconds{{{ALL}}})"}, 12),
        ]),
        Row("Does the backlog grow, and when is it gone?", [
            Panel("Ready jobs, by queue", "Estimated beyond ten thousand. A line that only rises is a queue whose producers outrun you.", "short",
                  {"{{queue}}": f"max by (queue) (fastq_queue_jobs{{{ALL}}})"}),
            Panel("In and out", "Jobs enqueued, and jobs that ended for good. Apart for long: the backlog grows, or producers have stopped.", "ops",
                  {"in": f"max(rate(fastq_enqueued_jobs_total{{{ALL}}}[{RATE}]))",
                   "out": f'sum(rate(fastq_runs_total{{{MINE}, outcome=~"DONE|FAILED|PANIC|CANCELLED"}}[{RATE}]))'}),
            Panel("Waiting, by phase", "Not ready yet: scheduled for later, retrying after a failure, blocked by others, held by a person. Many retrying: something that all of them need is down.", "short",
                  {"{{phase}}": f"max by (phase) (fastq_waiting_jobs{{{ALL}}})"}, 8, "stack"),
            Panel("Time until the backlog is gone", "At the present pace of in and out; as long as it grows, at the pace of out alone.", "s",
                  {"left": f"sum(max by (queue) (fastq_queue_jobs{{{ALL}}})) / clamp_min(sum(rate(fastq_runs_total{{{MINE}, {ENDED}}}[{RATE}])) - max(rate(fastq_enqueued_jobs_total{{{ALL}}}[{RATE}])), 0.001)"}, 24, height=6),
        ]),
        Row("What fails?", [
            Panel("Runs, by outcome", "All ends of runs. RETRY is a failure that has another try; RELEASED was given back unharmed.", "ops",
                  {"{{outcome}}": total("fastq_runs_total", "outcome", MINE)}, 8, "stack"),
            Panel("Share of failures, by kind", "FAILED and RETRY of all runs. One kind: read its errors (fastq show, or fastq.attempt). All at once: what they share is down.", "percentunit",
                  {"{{kind}}": f'sum by (kind) (rate(fastq_runs_total{{{MINE}, outcome=~"FAILED|RETRY"}}[{RATE}])) / clamp_min(sum by (kind) (rate(fastq_runs_total{{{MINE}, {TRIED}}}[{RATE}])), 0.001)'}),
            Panel("Panics, by kind and cause", "Runs that took their process with them. A signal of a native library: its crash site stands in the evidence. OOM or MEMORY: give the kind fewer neighbours or a limit.", "short",
                  {"{{kind}} {{cause}}": f"sum by (kind, cause) (increase(fastq_panics_total{{{MINE}}}[{RATE}]))"}, 8, "stack"),
        ]),
        Row("How slow is it?", [
            Panel("Run time", "How long runs take, all kinds. Two bands are two sorts of work; a band that climbs is one that slows down.", "s",
                  heat("fastq_run_seconds", MINE), 8, "heat"),
            Panel("Wait before the run", "From ready to started; a delay that was asked for does not count. Bright at the top: too few children.", "s",
                  heat("fastq_wait_seconds", MINE), 8, "heat"),
            Panel("Run time p99, by kind", "The slowest in a hundred. Open the kind's own dashboard for what changed.", "s",
                  quantiles("fastq_run_seconds", "kind", MINE, 0.99)),
        ]),
        Row("Is there enough of everything?", [
            Panel("Busy share of the children", "1 is full. Full and jobs wait: more children, or more masters. Full and nobody waits: well used.", "percentunit",
                  {"{{instance}}": f"sum by (instance) (rate(fastq_child_busy_seconds_total{{{MINE}}}[{RATE}])) / sum by (instance) (fastq_children_target{{{MINE}}})"}),
            Panel("Children, by state", "Many starting for long: they cannot boot, see the log. Leaving ones are being replaced.", "short",
                  {"{{state}}": f"sum by (state) (fastq_children{{{MINE}}})"}, 8, "stack"),
            Panel("Deaths of children, by reason", "recycle, reload, stop, shrink and fresh are in order. signal and exit are panics; boot means that children cannot start.", "short",
                  {"{{reason}}": total("fastq_child_exits_total", "reason", MINE, "increase")}, 8, "stack"),
        ]),
        Row("Is Postgres the limit, and is this to be trusted?", [
            Panel("Statements p99", "Claims and outcomes above a quarter of a second: look for dead rows and old snapshots beside this.", "s",
                  quantiles("fastq_statement_seconds", "statement", f'{MINE}, statement=~"claim|end_runs|heartbeat"', 0.99)),
            Panel("Dead rows and the oldest snapshot", "Dead rows that only rise, with a snapshot that ages: somebody's transaction is open; /status.json names it.", "short",
                  {"dead in {{table}}": f"max by (table) (fastq_table_dead_rows{{{ALL}}})",
                   "snapshot (s)": f"max(fastq_snapshot_seconds{{{ALL}}})"}),
            Panel("Age of the last sample", "Depth and age above are of then. Beyond half a minute: no master samples, see the runbook.", "s",
                  {"age": f"time() - max(fastq_sample_timestamp_seconds{{{ALL}}})"}),
        ]),
    ],
)  # fmt: skip

ONE_KIND = Board(
    "fastq-kind", "fastq kind", "One kind of job in depth.",
    [
        Row("Rates", [
            Panel("Runs, by outcome", "What its runs come to. RETRY that turns into FAILED: its retries do not help.", "ops",
                  {"{{outcome}}": total("fastq_runs_total", "outcome", KIND)}, 12, "stack"),
            Panel("Share that ends well", "DONE of all that ended. Below what you promise: the errors of its attempts say why.", "percentunit",
                  {"{{kind}}": f'sum by (kind) (rate(fastq_runs_total{{{KIND}, outcome="DONE"}}[{RATE}])) / clamp_min(sum by (kind) (rate(fastq_runs_total{{{KIND}, {TRIED}}}[{RATE}])), 0.001)'}, 12),
        ]),
        Row("How long it runs, and waits", [
            Panel("Run time", "The shape tells more than a quantile: bands are sorts of work, a cloud at the top is what hits time limits.", "s",
                  heat("fastq_run_seconds", KIND), 12, "heat"),
            Panel("Wait before the run", "Bright at the top while other kinds are fine: its queue has too low a priority, or the kind is paused.", "s",
                  heat("fastq_wait_seconds", KIND), 12, "heat"),
            Panel("Run time quantiles", "Half, nineteen of twenty, ninety-nine of a hundred runs are quicker.", "s",
                  quantiles("fastq_run_seconds", "kind", KIND, 0.5, 0.95, 0.99), 12),
            Panel("Wait quantiles", "The same for the time between ready and started.", "s",
                  quantiles("fastq_wait_seconds", "kind", KIND, 0.5, 0.95, 0.99), 12),
        ]),
        Row("What goes wrong", [
            Panel("Panics, by cause", "Which signal or verdict. SIGSEGV and SIGABRT come from native code, SIGKILL from outside or the kernel, OOM and MEMORY from appetite.", "short",
                  {"{{cause}}": f"sum by (cause) (increase(fastq_panics_total{{{KIND}}}[{RATE}]))"}, 8, "stack"),
            Panel("Retries", "Failures that have another try. A plateau: it fails each time, and waits longer each time.", "ops",
                  {"{{kind}}": f'sum by (kind) (rate(fastq_runs_total{{{KIND}, outcome="RETRY"}}[{RATE}]))'}),
            Panel("Pauses", "Times that a master stopped running the kind because its processes died. Its jobs wait meanwhile: mend it, and reload.", "short",
                  {"{{kind}}": f"sum by (kind) (increase(fastq_kind_pauses_total{{{KIND}}}[{RATE}]))"}),
        ]),
        Row("What it takes", [
            Panel("Oldest run", "A line that climbs at 45° is one run that does not end. Give the kind a timeout; USR1 shows where it stands.", "s",
                  {"{{kind}}": f"max by (kind) (fastq_oldest_run_seconds{{{KIND}}})"}),
            Panel("Children at work on it", "Seconds of runs per second: how many children it keeps busy on average.", "short",
                  {"{{kind}}": f"sum by (kind) (rate(fastq_run_seconds_sum{{{KIND}}}[{RATE}]))"}),
            Panel("Memory of children", "Resident, by slot, of whatever runs there. Steps that never come down: recycle children by memory, or give the kind a limit.", "bytes",
                  {"{{instance}} {{slot}}": f"fastq_child_resident_memory_bytes{{{MINE}}}"}),
        ]),
    ],
    ("kind",),
)  # fmt: skip

ONE_MASTER = Board(
    "fastq-master", "fastq master", "One master from inside: its loop, its children, its packets, its leases and its database.",
    [
        Row("The master", [
            Panel("State", "1 in the state it is in. starting for long: the app's import, or the database.", "short",
                  {"{{instance}} {{state}}": f"fastq_master_state{{{MINE}}} == 1"}, 6),
            Panel("Loop lag", "How late its loop comes round. Above 50 ms: it has too little CPU, give it some before you add children.", "s",
                  quantiles("fastq_loop_lag_seconds", "instance", MINE, 0.5, 0.99), 6),
            Panel("CPU", "Of the master and of all its children, in processors. A master near 1 is the limit of its host: start another.", "short",
                  {"master {{instance}}": f"sum by (instance) (rate(process_cpu_seconds_total{{{MINE}}}[{RATE}]))",
                   "children {{instance}}": f"sum by (instance) (rate(fastq_child_cpu_seconds_total{{{MINE}}}[{RATE}]))"}, 6),
            Panel("Memory of the master", "Resident. It holds a few thousand jobs at most; what rises for days is a leak: report it.", "bytes",
                  {"{{instance}}": f"process_resident_memory_bytes{{{MINE}}}"}, 6),
            Panel("Version, and time up", "Which fastq runs where, and since when. Short times again and again: it crashes, or is killed.", "s",
                  {"{{instance}} {{version}}": f"(time() - fastq_start_time_seconds{{{MINE}}}) * on (instance) group_left (version) fastq_build_info{{{MINE}}}"}, 24, height=6),
        ]),
        Row("Its children", [
            Panel("Children, by state", "Against how many there should be.", "short",
                  {"{{state}}": f"sum by (state) (fastq_children{{{MINE}}})", "target": f"sum(fastq_children_target{{{MINE}}})"}),
            Panel("Births and deaths", "Births without deaths are a start. Many of both: they crash or are recycled too often; a fork costs milliseconds.", "short",
                  {"born": f"sum(increase(fastq_child_starts_total{{{MINE}}}[{RATE}]))",
                   "{{reason}}": total("fastq_child_exits_total", "reason", MINE, "increase")}),
            Panel("Templates and reloads", "A lost template takes all children along: its memory, or a signal from outside. A failed reload left the old version running.", "short",
                  {"templates lost": f"sum(increase(fastq_template_losses_total{{{MINE}}}[{RATE}]))",
                   "reload {{result}}": total("fastq_reloads_total", "result", MINE, "increase")}),
        ]),
        Row("Its packets", [
            Panel("Held and unsent", "Jobs leased by this master, and those that wait here for a child. Much unsent for long: children are slower than it thought; it takes fewer soon.", "short",
                  {"leased": f"sum(fastq_jobs_leased{{{MINE}}})", "unsent": f"sum(fastq_jobs_unsent{{{MINE}}})"}, 6),
            Panel("Jobs a claim", "Hundreds under load; one when idle. Few under load: many small queues, or slow jobs.", "short",
                  quantiles("fastq_claim_jobs", "", MINE, 0.5, 0.95), 6),
            Panel("Outcomes a statement", "As above, on the way back.", "short",
                  quantiles("fastq_outcome_batch_jobs", "", MINE, 0.5, 0.95), 6),
            Panel("Recalled", "Jobs taken back from children that were slower than they had been. A few are in order.", "ops",
                  {"recalled": f"sum(rate(fastq_jobs_recalled_total{{{MINE}}}[{RATE}]))"}, 6),
        ]),
        Row("Its database", [
            Panel("Statements p99", "By statement. All slow: Postgres, or the way there. claim alone: dead rows, see tables.", "s",
                  quantiles("fastq_statement_seconds", "statement", MINE, 0.99)),
            Panel("Statements", "How many a second. Many due or cancels are somebody's; watched is the election of who samples.", "ops",
                  {"{{statement}}": f"sum by (statement) (rate(fastq_statement_seconds_count{{{MINE}}}[{RATE}]))"}),
            Panel("Losses, NOTIFYs, empty claims", "Losses are connections that failed. Empty claims and NOTIFYs come from an idle master; a busy one has neither.", "ops",
                  {"losses": f"sum(rate(fastq_database_losses_total{{{MINE}}}[{RATE}]))",
                   "notifications": f"sum(rate(fastq_notifications_total{{{MINE}}}[{RATE}]))",
                   "empty claims": f"sum(rate(fastq_empty_claims_total{{{MINE}}}[{RATE}]))"}),
            Panel("Tables", "With indexes. ready, waiting and lease should come back to little when the backlog is gone.", "bytes",
                  {"{{table}}": f"max by (table) (fastq_table_bytes{{{ALL}}})"}),
            Panel("The oldest snapshot, in transactions", "Everything deleted since stays where it is. Find its owner in /status.json.", "short",
                  {"transactions": f"max(fastq_snapshot_transactions{{{ALL}}})"}),
            Panel("What sampling takes", "Seconds that the master spends on the figures of the whole database each time; a twentieth of the time at most.", "s",
                  {"seconds": f"max(fastq_sample_seconds{{{ALL}}})"}),
        ]),
        Row("Its leases", [
            Panel("Time left", "Until the guard kills what runs. Near 0: heartbeats do not come through.", "s",
                  {"{{instance}}": f"fastq_lease_remaining_seconds{{{MINE}}}"}, 6),
            Panel("Running everywhere", "Jobs that masters hold, all together.", "short",
                  {"running": f"max(fastq_running_jobs{{{ALL}}})"}, 6),
            Panel("Taken back from the dead", "Jobs of masters that died without a word: run again, or PANIC (or CANCELLED) when they had lost too many.", "short",
                  {"jobs": f"sum(increase(fastq_jobs_rescued_total{{{MINE}}}[{RATE}]))",
                   "panics": f"sum(increase(fastq_rescue_panics_total{{{MINE}}}[{RATE}]))",
                   "cancels": f"sum(increase(fastq_rescue_cancels_total{{{MINE}}}[{RATE}]))"}, 6),
            Panel("Lost while it lived", "Fences are lives of this master that ended because others had its leases; refused outcomes ran elsewhere again. Look for long stalls of the host.", "short",
                  {"fences": f"sum(increase(fastq_fences_total{{{MINE}}}[{RATE}]))",
                   "refused": f"sum(increase(fastq_outcomes_refused_total{{{MINE}}}[{RATE}]))"}, 6),
        ]),
        Row("Its last sign", [
            Panel("Since the last run ended", "Long, with jobs ready: nothing comes through; see its children and the log.", "s",
                  {"{{instance}}": f"time() - fastq_last_finish_timestamp_seconds{{{MINE}}} > 0"}, 24, height=6),
        ]),
    ],
)  # fmt: skip

BOARDS = (OVERVIEW, ONE_KIND, ONE_MASTER)
