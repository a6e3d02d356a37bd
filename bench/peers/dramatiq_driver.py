"""Dramatiq on Redis: as many processes as cores with 8 threads each, no middleware that a no-op does not need."""

import os
import sys
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AgeLimit, Retries, TimeLimit
from handler import TEXT, began, main, numbers, said, trickle

dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"], middleware=[AgeLimit(), TimeLimit(), Retries()]))


@dramatiq.actor
def noop(n: int, text: str) -> None:
    began(n)


def feed() -> None:
    while jobs := numbers():
        for n in jobs:
            noop.send(n, TEXT)
        said(len(jobs))


def drip() -> None:
    trickle(lambda n: noop.send(n, TEXT))


def work() -> None:
    os.chdir(Path(__file__).parent)
    program = (
        "-m",
        "dramatiq",
        "dramatiq_driver",
        "--processes",
        os.environ["BENCH_PROCS"],
        "--threads",
        "8",
        "--skip-logging",
    )
    os.execv(sys.executable, (sys.executable, *program))


if __name__ == "__main__":
    main(setup=lambda: None, feed=feed, trickle=drip, work=work)
