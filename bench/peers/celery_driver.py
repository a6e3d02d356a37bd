"""Celery on Redis, prefork, as fast as it goes.

No results, no events, no gossip, mingle or heartbeats, no rate limits, many messages fetched ahead. A message is
acknowledged after its run: before, it would be lost in a crash, and be 7 % cheaper. More ahead gains nothing.
"""

import os
import sys

from celery import Celery
from handler import TEXT, began, main, numbers, said, trickle

app = Celery("bench", broker=os.environ["REDIS_URL"])
app.conf.update(
    task_ignore_result=True,
    task_store_errors_even_if_ignored=False,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_send_sent_event=False,
    worker_send_task_events=False,
    worker_disable_rate_limits=True,
    worker_enable_remote_control=False,
    worker_prefetch_multiplier=64,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="noop")
def noop(n: int, text: str) -> None:
    began(n)


def feed() -> None:
    with app.producer_pool.acquire(block=True) as producer:
        while jobs := numbers():
            for n in jobs:
                noop.apply_async((n, TEXT), producer=producer)
            said(len(jobs))


def drip() -> None:
    trickle(lambda n: noop.delay(n, TEXT))


def work() -> None:
    quiet = ["--loglevel=ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    sys.exit(app.worker_main(["worker", "--pool=prefork", f"--concurrency={os.environ['BENCH_PROCS']}", *quiet]))


if __name__ == "__main__":
    main(setup=lambda: None, feed=feed, trickle=drip, work=work)
