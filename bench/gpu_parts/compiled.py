"""The optimizer step with run.compile, for the methods that support it."""

from functools import partial

import torch

from gpu_parts.cases import Case, cases
from gpu_parts.part import Part, Row, Settings, Values, number
from gpu_parts.stepping import Step, host_waits, job_context, peak_gib, seconds_each, seconds_of

COLUMNS = ("first step s", "ms/step", "images or episodes/s", "host waits/step", "peak GiB")
PRECISIONS = ("tf32", "bf16")


def measure(case: Case, precision: str, compiled: bool, settings: Settings) -> Values:
    """The cells of one row."""
    torch.compiler.reset()  # else the networks of the rows before count towards the limit of recompilations
    batch = case.batches[-1]
    stance = torch.compiler.set_stance("force_eager" if settings.small else "default")  # compiling takes minutes
    with job_context(settings.device, precision) as context, stance:
        step = Step(case, batch, context, compiled=compiled)
        first = seconds_of(step, step.device)
        step()
        if step.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(step.device)
        seconds = seconds_each(step, step.device, budget=0 if settings.small else 1.5)
        memory = peak_gib(step.device)
        waits = host_waits(step, step.device)
    found = (number(first), number(1e3 * seconds), number(batch / seconds), number(waits), number(memory))
    return dict(zip(COLUMNS, found, strict=True))


def rows(settings: Settings) -> list[Row]:
    """Each pair of off and on together; when small, one pair."""
    supporting = [case for case in cases(settings.small) if case.compiles]
    pairs = [(case, precision) for precision in PRECISIONS for case in supporting]
    return [
        Row((case.name, str(case.batches[-1]), precision, shown), partial(measure, case, precision, compiled, settings))
        for case, precision in (pairs[:1] if settings.small else pairs)
        for shown, compiled in (("off", False), ("on", True))
    ]


PART = Part(
    title="torch.compile",
    note="The same step with run.compile off and on. The first step compiles; when small, nothing is compiled.",
    labels=("method", "batch", "precision", "run.compile"),
    columns=COLUMNS,
    rows=rows,
)
