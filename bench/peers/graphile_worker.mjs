// graphile-worker with its batching preset: what its documentation measures its best figure with
// (https://worker.graphile.org/docs/performance): a local queue of 500 with a refetch delay of 10 ms, jobs completed
// and failed in batches without delay, 24 jobs at once per process. Its author runs 4 processes on many cores;
// on 2 cores, which Postgres needs as well, BENCH copies of it are started (see systems.py).
import { main, began, fed, TEXT, trickle, load } from "./handler.mjs"

const { run, makeWorkerUtils, Logger } = await load("graphile-worker")
const connectionString = process.env.DATABASE_URL
const silent = new Logger(() => () => {})

async function withUtils(body) {
  const utils = await makeWorkerUtils({ connectionString, logger: silent })
  try {
    await body(utils)
  } finally {
    await utils.release()
  }
}

const idle = process.env.BENCH_IDLE === "1"

main({
  setup: () => withUtils((utils) => utils.migrate()),
  feed: () =>
    withUtils((utils) =>
      fed(async (count) => {
        const jobs = Array.from({ length: count }, (_, n) => ({ identifier: "noop", payload: { n, text: TEXT } }))
        await utils.addJobs(jobs)
      }),
    ),
  trickle: () => withUtils((utils) => trickle((n) => utils.addJob("noop", { n, text: TEXT }))),
  work: async () => {
    const runner = await run({
      logger: silent,
      taskList: { noop: async (payload) => began(payload.n) },
      preset: {
        worker: {
          connectionString,
          concurrentJobs: 24,
          maxPoolSize: 25,
          // With nothing to do a local queue only adds its delay: latency is measured without.
          ...(idle
            ? {}
            : {
                localQueue: { size: 500, refetchDelay: { durationMs: 10 } },
                completeJobBatchDelay: 0,
                failJobBatchDelay: 0,
              }),
        },
      },
    })
    await runner.promise
  },
})
