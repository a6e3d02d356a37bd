"""fastq, enqueued as its documentation says. The schema is made beforehand, the work is done by fastq-master itself."""

from handler import TEXT, main, numbers, said, trickle

import fastq
from bench.jobs import noop


def feed() -> None:
    with fastq.Client() as client:
        while jobs := numbers():
            client.enqueue_many(noop.job(n, TEXT) for n in jobs)
            said(len(jobs))


def drip() -> None:
    with fastq.Client() as client:
        trickle(lambda n: client.enqueue(noop, n, TEXT))


main(feed=feed, trickle=drip)
