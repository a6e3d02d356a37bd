// What every handler does first, and what every driver in JavaScript has to do: see handler.py.
import fs from "node:fs"
import { createRequire } from "node:module"
import readline from "node:readline"
import { setTimeout as sleep } from "node:timers/promises"

export const TEXT = "x".repeat(80)

let begun = false

export function began(n) {
  if (process.env.BENCH_STARTS) {
    const now = process.hrtime.bigint()
    fs.appendFileSync(process.env.BENCH_STARTS, `${n} ${now}\n`)
  }
  if (!begun) {
    begun = true
    if (process.env.BENCH_FIRST) fs.closeSync(fs.openSync(process.env.BENCH_FIRST, "a"))
  }
}

// Imports a package from the peers' own folder, not from beside this file.
export async function load(name) {
  return createRequire(`${process.env.BENCH_MODULES}/x.js`)(name)
}

export async function fed(enqueue) {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    await enqueue(Number(line))
    process.stdout.write(`${line}\n`)
  }
}

export async function trickle(enqueue) {
  const [count, pause] = process.argv.slice(3).map(Number)
  for (let n = 0; n < count; n++) {
    await enqueue(n)
    process.stdout.write(`${n} ${process.hrtime.bigint()}\n`)
    await sleep(pause * 1000)
  }
}

export async function main(commands) {
  await commands[process.argv[2]]()
}
