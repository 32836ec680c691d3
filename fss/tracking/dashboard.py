"""wandb's views of a project, one a job, made of the catalogue. The only file that imports wandb_workspaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fss.errors import ConfigError
from fss.tracking.catalogue import PAGES, Chart
from fss.tracking.tracker import Kind

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


def markdown() -> str:
    """All charts as Markdown tables, one a job."""
    lines = []
    for job, sections in PAGES.items():
        lines += [f"### {job}", "", "| section | chart | drawn as | keys | what to look for |", "|---|---|---|---|---|"]
        for section, charts in sections.items():
            for chart in charts:
                keys = ", ".join(f"`{key}`" for key in chart.keys)
                lines.append(f"| {section} | {chart.title} | {chart.drawn} | {keys} | {chart.look} |")
        lines.append("")
    return "\n".join(lines)


def workspaces(entity: str, project: str) -> dict[Kind, Workspace]:
    """The view of every job over the runs of a project; `save()` publishes one. Needs no network.

    Raises ConfigError if wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise ConfigError('wandb-workspaces is not installed: pip install -e ".[dashboard]"') from None
    return {
        job: ws.Workspace(
            entity=entity,
            project=project,
            name=f"fss {job}",
            sections=[
                ws.Section(name=name, panels=[_panel(chart) for chart in charts], is_open=True)
                for name, charts in sections.items()
            ],
            runset_settings=ws.RunsetSettings(
                filters=ws.And(ws.Config("job") == job), groupby=[ws.Metric("Group"), ws.Metric("JobType")]
            ),
        )
        for job, sections in PAGES.items()
    }


def _panel(chart: Chart) -> Any:
    from wandb_workspaces.reports.v2 import interface as wr

    match chart.drawn:
        case "lines" if any("*" in key for key in chart.keys):
            return wr.LinePlot(
                title=chart.title, metric_regex="|".join(f"^{pattern}$" for pattern in chart.all_patterns)
            )
        case "lines" | "histogram":  # wandb draws a histogram over the steps as a heat map
            return wr.LinePlot(title=chart.title, y=[*chart.keys, *chart.earlier_keys])
        case "bars":
            return wr.BarPlot(title=chart.title, metrics=list(chart.keys))
        case "classes":
            return wr.CustomChart(
                query={"summaryTable": {"tableKey": chart.keys[0]}},
                chart_name="wandb/bar/v0",
                chart_fields={"label": "class", "value": "IoU"},
                chart_strings={"title": chart.title},
            )
        case "table":
            return wr.WeavePanelSummaryTable(table_name=chart.keys[0])
        case "pictures":
            return wr.MediaBrowser(title=chart.title, media_keys=list(chart.keys))


def publish(entity: str, project: str) -> dict[Kind, str]:
    """Save the views in wandb; returns their addresses. Earlier views stay beside them.

    Raises RunError if wandb cannot be reached or does not know the entity.
    """
    from fss.tracking.wandb_tracker import reaching_wandb

    views = workspaces(entity, project)
    with reaching_wandb():
        return {job: view.save().url for job, view in views.items()}
