"""fastq, enqueued as its documentation says. Its work is done by fastq-master itself."""

from handler import TEXT, main, numbers, said, trickle

import fastq
from bench.jobs import noop
from fastq import schema
from fastq.database import Database


def setup() -> None:
    with Database(None) as database, database.connect() as connection:
        schema.migrate(connection)


def feed() -> None:
    with fastq.Client() as client:
        while jobs := numbers():
            client.enqueue_many(noop.job(n, TEXT) for n in jobs)
            said(len(jobs))


def drip() -> None:
    with fastq.Client() as client:
        trickle(lambda n: client.enqueue(noop, n, TEXT))


main(setup=setup, feed=feed, trickle=drip)
