"""procrastinate: ten jobs at once in one event loop (fifty are no faster); what succeeds is deleted."""

import asyncio

from handler import TEXT, began, main, numbers, said, trickle_async
from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(min_size=4, max_size=20))


@app.task(name="noop")
async def noop(n: int, text: str) -> None:
    began(n)


async def setup() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


async def feed() -> None:
    async with app.open_async():
        while jobs := await asyncio.to_thread(numbers):
            await noop.batch_defer_async(*({"n": n, "text": TEXT} for n in jobs))
            said(len(jobs))


async def drip() -> None:
    async with app.open_async():
        await trickle_async(lambda n: noop.defer_async(n=n, text=TEXT))


async def work() -> None:
    async with app.open_async():
        await app.run_worker_async(
            concurrency=10,
            delete_jobs="successful",
            install_signal_handlers=False,
        )


main(
    **{
        name: lambda do=do: asyncio.run(do())
        for name, do in {"setup": setup, "feed": feed, "trickle": drip, "work": work}.items()
    }
)
