"""The benchmarks: `python -m bench NAME…` measures, prints a table, writes JSON and draws a chart. See README.md here."""
