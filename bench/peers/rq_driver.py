"""RQ on Redis: a process forked for each job, which is how it isolates them; results and failures are not kept."""

import os

from handler import TEXT, began, main, numbers, said, trickle
from redis import Redis
from rq import Queue, Worker

connection = Redis.from_url(os.environ["REDIS_URL"])
queue = Queue(connection=connection)


def noop(n: int, text: str) -> None:
    began(n)


def enqueue(n: int) -> None:
    queue.enqueue("rq_driver.noop", n, TEXT, result_ttl=0)


def feed() -> None:
    while jobs := numbers():
        queue.enqueue_many([Queue.prepare_data("rq_driver.noop", (n, TEXT), result_ttl=0) for n in jobs])
        said(len(jobs))


def work() -> None:
    Worker([queue], connection=connection).work(logging_level="ERROR")


if __name__ == "__main__":
    main(setup=lambda: None, feed=feed, trickle=lambda: trickle(enqueue), work=work)
