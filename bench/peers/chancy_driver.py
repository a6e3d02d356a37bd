"""chancy in its fastest mode, coroutines in one event loop: 1000 at once, looking for more whenever some have ended."""

import asyncio
import logging
import os

from chancy import Chancy, Queue, Worker, job
from handler import TEXT, began, main, numbers, said, trickle_async


@job()
async def noop(*, n: int, text: str) -> None:
    began(n)


def opened() -> Chancy:
    return Chancy(os.environ["DATABASE_URL"], max_connection_pool_size=10)


async def setup() -> None:
    async with opened() as chancy:
        await chancy.migrate()
        await chancy.declare(
            Queue(
                "default",
                concurrency=1000,
                executor=Chancy.Executor.Async,
                polling_interval=1,
                eager_polling=True,
            ),
            upsert=True,
        )


async def feed() -> None:
    async with opened() as chancy:
        while jobs := await asyncio.to_thread(numbers):
            async for _ in chancy.push_many((noop.job.with_kwargs(n=n, text=TEXT) for n in jobs), batch_size=5000):
                pass
            said(len(jobs))


async def drip() -> None:
    async with opened() as chancy:
        await trickle_async(lambda n: chancy.push(noop.job.with_kwargs(n=n, text=TEXT)))


async def work() -> None:
    logging.disable(logging.INFO)  # it says each job
    async with opened() as chancy, Worker(chancy) as worker:
        await worker.wait_for_shutdown()


main(
    **{
        name: lambda do=do: asyncio.run(do())
        for name, do in {"setup": setup, "feed": feed, "trickle": drip, "work": work}.items()
    }
)
