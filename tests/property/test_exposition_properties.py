"""A histogram puts every value into the first bucket that holds it, however many come at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse

from fastq.exposition import Family, Histogram, write

BOUNDS = (0.1, 0.5, 1.0, 2.5)
VALUES = st.lists(st.sampled_from((0.0, 0.05, 0.1, 0.3, 0.5, 1.0, 2.0, 2.5, 2.6, 1e9)), max_size=30)


@given(st.lists(VALUES, max_size=4))
def test_every_value_counts_in_each_bucket_that_holds_it(batches: list[list[float]]) -> None:
    """A value on a bound belongs below it; the last bucket holds all."""
    histogram = Histogram("h", (), (), BOUNDS)
    for values in batches:
        histogram.take(values)
    values = [value for batch in batches for value in batch]
    told = dict(line.rsplit(" ", 1) for line in histogram.text().splitlines())
    for bound in BOUNDS:
        assert int(told[f'h_bucket{{le="{bound}"}}']) == sum(value <= bound for value in values)
    assert int(told['h_bucket{le="+Inf"}']) == int(told["h_count"]) == len(values)
    assert float(told["h_sum"]) == sum(sum(batch) for batch in batches)


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_label_and_number_survives(label: str, value: float) -> None:
    """Names of kinds are the user's; Prometheus's own parser reads back what was meant."""
    label = label.replace("\r", "").encode(errors="replace").decode()
    family = Family("g", "gauge", "A number.", ("kind",))
    family.at(label).value = value
    ((sample,),) = [family.samples for family in parse(write([family], openmetrics=False).decode())]
    assert (sample.labels["kind"], sample.value) == (label, value)
