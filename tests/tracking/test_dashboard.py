"""The dashboard as code: it builds without network, shows every chart, and is what the document lists."""

import builtins
import json
import socket

import pytest
import wandb_workspaces.workspaces as ws
from wandb import errors

from fss.tracking.catalogue import PAGES
from fss.tracking.dashboard import markdown, workspaces
from launch.dashboard import main
from tests.support.launching import called, refusal
from tests.support.places import ROOT

DOCUMENT = ROOT / "docs" / "dashboards.md"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def specification(view: ws.Workspace) -> dict:
    """What would be sent."""
    return json.loads(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))["section"]


@pytest.mark.usefixtures("no_network")
def test_every_chart_is_a_panel(capsys):
    for job, view in workspaces("me", "fss").items():
        section = specification(view)
        sections = section["panelBankConfig"]["sections"]
        assert [one["name"] for one in sections] == list(PAGES[job])
        for one in sections:
            for panel, chart in zip(one["panels"], PAGES[job][one["name"]], strict=True):
                words = json.dumps(panel)
                for key, pattern in zip(chart.keys, chart.patterns, strict=True):
                    assert json.dumps(key)[1:-1] in words or json.dumps(f"^{pattern}$")[1:-1] in words
                for key in chart.earlier_keys:
                    assert key in words or key.replace("*", ".*") in words, "runs of earlier versions appear, too"
                assert chart.drawn == "table" or chart.title in words
        assert "config.job" in json.dumps(section["runSets"]) or '"job' in json.dumps(section["runSets"])
        assert json.dumps(job) in json.dumps(section["runSets"]), "only runs of the job"


@pytest.mark.usefixtures("no_network")
def test_the_document_lists_every_chart(capsys):
    code, out, _ = called(main, capsys, "--print")
    assert code == 0 and out.strip() == markdown().strip()
    assert markdown().strip() in DOCUMENT.read_text(), "paste what `python launch/dashboard.py --print` prints"


def test_published_views_are_named_with_their_addresses(capsys, monkeypatch):
    saved = []

    def save(view):
        saved.append(view)
        view._internal_name = f"nw-{len(saved)}-v"
        return view

    monkeypatch.setattr(ws.Workspace, "save", save)
    monkeypatch.setattr(
        ws.Workspace, "url", property(lambda view: f"https://wandb.example/{view.entity}/{view.project}")
    )
    code, out, err = called(main, capsys, "--entity", "me", "--project", "trial")
    assert code == 0, err
    assert [line.split(": ")[0] for line in out.splitlines()] == list(PAGES)
    assert "https://wandb.example/me/trial" in out and [view.name for view in saved] == [f"fss {job}" for job in PAGES]


def test_the_reason_why_nothing_is_published_is_reported(capsys, monkeypatch):
    def refuse(view):
        raise errors.UsageError("No API key configured")

    monkeypatch.setattr(ws.Workspace, "save", refuse)
    assert "No API key configured): log in with `wandb login`" in refusal(main, capsys, "--entity", "me")
    load = builtins.__import__

    def without(name, *words, **more):
        if name.startswith("wandb_workspaces"):
            raise ImportError(name)
        return load(name, *words, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "wandb-workspaces is not installed: pip install" in refusal(main, capsys, "--entity", "me")
