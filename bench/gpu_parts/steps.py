"""The optimizer step of every method in three precisions and at two batch sizes."""

from functools import partial

from gpu_parts.cases import Case, cases
from gpu_parts.part import Part, Row, Settings, Values
from gpu_parts.stepping import COLUMNS, Step, cost, job_context

PRECISIONS = ("tf32", "bf16", "float32")


def measure(case: Case, batch: int, precision: str, settings: Settings) -> Values:
    """The cells of one row."""
    with job_context(settings.device, precision) as context:
        return cost(Step(case, batch, context), batch, precision, budget=0 if settings.small else 1.5)


def rows(settings: Settings) -> list[Row]:
    """Small batches of all methods first; the default precision of a training first."""
    planned = [
        [(case, batch, precision) for batch in case.batches]
        for precision in PRECISIONS
        for case in cases(settings.small)
    ]
    return [
        Row((case.name, str(batch), precision), partial(measure, case, batch, precision, settings))
        for of_a_size in zip(*planned, strict=True)
        for case, batch, precision in of_a_size
    ]


PART = Part(
    title="Optimizer steps",
    note="Forward, backward, optimizer and momentum updates of one rank on one batch of noise; one shot. The training "
    "loop's check of the loss and the log are left out. GPU busy: share of the step in which a kernel or copy runs. "
    "TFLOP/s: matrix products and convolutions, frozen networks included. MFU: their share of the card's dense peak in "
    "this precision. Peak: memory of tensors.",
    labels=("method", "batch", "precision"),
    columns=COLUMNS,
    rows=rows,
)
