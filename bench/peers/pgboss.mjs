// pg-boss: jobs are fetched and completed a batch at a time, which is the fastest that its work() offers.
// A queue of its own partition spares the indexes of policies that are not used. Polling every 0.5 s is its least;
// burstWhenBatchFull fetches at once again while batches come back full, NOTIFY wakes an idle worker.
import { main, began, fed, TEXT, trickle, load } from "./handler.mjs"

const { PgBoss } = await load("pg-boss")
const QUEUE = "noop"

async function withBoss(body) {
  const boss = new PgBoss({ connectionString: process.env.DATABASE_URL, supervise: false, schedule: false, max: 10, useListenNotify: true })
  boss.on("error", (error) => console.error(error))
  await boss.start()
  await body(boss)
  return boss
}

const stopped = async (body) => (await withBoss(body)).stop({ graceful: false })

main({
  setup: () => stopped((boss) => boss.createQueue(QUEUE, { partition: true, notify: true })),
  feed: () =>
    stopped((boss) =>
      fed(async (count) => {
        const all = Array.from({ length: count }, (_, n) => ({ data: { n, text: TEXT } }))
        for (let at = 0; at < count; at += 10000) await boss.insert(QUEUE, all.slice(at, at + 10000))
      }),
    ),
  trickle: () => stopped((boss) => trickle((n) => boss.send(QUEUE, { n, text: TEXT }))),
  work: () =>
    withBoss((boss) =>
      boss.work(QUEUE, { batchSize: 1000, pollingIntervalSeconds: 0.5, burstWhenBatchFull: true, localConcurrency: 2 }, async (jobs) => {
        for (const job of jobs) began(job.data.n)
      }),
    ),
})
