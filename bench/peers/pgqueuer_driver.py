"""pgqueuer with asyncpg and uvloop, the fastest of its drivers, its tables durable.

Its benchmark uses batches of 10; those of 1000 have four times their throughput here.
"""

import asyncio
import json

import asyncpg
import uvloop
from handler import TEXT, began, main, numbers, said, trickle_async
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

BATCH = 1000


async def setup() -> None:
    await Queries(AsyncpgDriver(await asyncpg.connect())).install()


async def feed() -> None:
    queries = Queries(AsyncpgDriver(await asyncpg.connect()))
    while jobs := await asyncio.to_thread(numbers):
        for first in range(0, len(jobs), 10_000):
            page = jobs[first : first + 10_000]
            payloads: list[bytes | None] = [payload(n) for n in page]
            await queries.enqueue(["noop"] * len(page), payloads, [0] * len(page))
        said(len(jobs))


def payload(n: int) -> bytes:
    return json.dumps({"n": n, "text": TEXT}).encode()


async def drip() -> None:
    queries = Queries(AsyncpgDriver(await asyncpg.connect()))
    await trickle_async(lambda n: queries.enqueue("noop", payload(n)))


async def work() -> None:
    queuer = PgQueuer(AsyncpgDriver(await asyncpg.connect()))

    @queuer.entrypoint("noop")
    async def noop(job) -> None:
        began(json.loads(job.payload)["n"])

    await queuer.run(batch_size=BATCH)


main(
    **{
        name: lambda do=do: uvloop.run(do())
        for name, do in {"setup": setup, "feed": feed, "trickle": drip, "work": work}.items()
    }
)
