"""Every command, option, path and link of the pages exists; mistyped and renamed ones are found."""

import ast
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from fss.compat import OPTIONS
from fss.config import BaseJob, EvalJob, MetaTrainJob, PretrainJob
from fss.methods import METHODS
from fss.methods.qgnet.config import QGNetConfig
from fss.methods.qgnet.method import QGNet
from fss.nn.exports import save_export
from tests.support.doc_checker import MADE, OURS, Checker
from tests.support.doc_pages import PAGES, SHELL, Page
from tests.support.places import ROOT

SHOWN = ("text", "diff", "yaml")
JOBS = (PretrainJob, BaseJob, MetaTrainJob, EvalJob)


@pytest.fixture
def checker(tmp_path, monkeypatch) -> Checker:
    return Checker(tmp_path, monkeypatch)


FOLLOWED = "docs/own_method.md"  # test_own_method.py runs its commands
COMMANDS = [code for page in PAGES if page.name != FOLLOWED for code in page.commands]
INLINE = [code for page in PAGES for code in page.inline]
PROGRAMS = re.compile(r"(accelerate launch (\S+ )*\S+\.py|python (-m \S+|[^-\s]\S*)|sbatch) \S|(make|pip install) \S")


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_commands_are_understood(checker, command):
    checker.line(command.text)


@pytest.mark.parametrize("command", [code for code in INLINE if PROGRAMS.match(code.text)], ids=str)
def test_commands_inside_of_sentences_are_understood(checker, command):
    checker.line(command.text)


@pytest.mark.parametrize(
    "wrong",
    [
        "python launch/meta_train.py --method.sise 97",
        "python launch/meta_train.py --validate.split all",
        "python launch/nothing.py",
        "python launch/pack.py coco --image DIR --annotations FILE --out DIR",
        "python bench/step.py --no-such-option",
        "python -m shards.check",
        "accelerate launch --num_proceses 8 launch/meta_train.py",
        "accelerate launch --num_processes 8 launch/meta_train.py --run.world_size 4",
        "accelerate launch launch/meta_train.py --config configs/meta/qgnet_cocoa.yaml",
        "accelerate launch launch/evaluate.py --weights runs/msanet/best.safetensors --method.prior_weights FILE",
        "cd fss && make everything",
        "METHOD=mshnet sbatch slurm/coco_fold.sh --method.base_weights FILE",
        "sbatch slurm/coco_folds.sh",
        "pip install -e '.[everything]'",
        "slurm/pipeline.sh --dry-run | unheard_of",
    ],
)
def test_mistakes_are_found(checker, wrong):
    with pytest.raises(AssertionError):
        checker.line(wrong)


def options() -> set[str]:
    """Every option of a job, such as data.batch."""
    found = set()
    for job in JOBS:
        for group in fields(job):
            if group.name == "method":
                schemas = [METHODS[name].Config for name in job.methods]
            else:
                schemas = [type(group.default_factory())] if group.default_factory is not MISSING else []
            found |= {f"{group.name}.{field.name}" for schema in schemas for field in fields(schema)}
    return found


def test_options_in_sentences_exist():
    known = options()
    groups = "|".join({option.split(".")[0] for option in known})
    named = re.compile(rf"(?:--)?((?:{groups})\.(?!json|py|md|safetensors|tsv|[A-Z])\w+)")
    unknown = [
        f"{code}: {option[1]}"
        for code in INLINE
        if (option := named.match(code.text)) and option[1] not in known
        if not (code.page == "CHANGELOG.md" and option[1] in OPTIONS)  # names of earlier versions
    ]
    assert not unknown


def test_the_changelog_lists_every_renamed_option():
    rows = next(page for page in PAGES if page.name == "CHANGELOG.md").lines
    assert not [(old, new) for old, new in OPTIONS.items() if f"| `{old}` | `{new}` |" not in rows]


def test_files_in_sentences_exist():
    """Also those with a * in them; NAME stands for a file that a reader adds."""
    paths = [(code, word) for code in INLINE for word in code.text.split() if word.startswith(OURS)]
    gone = [
        f"{code}: {path}"
        for code, path in paths
        if not path.startswith(MADE) and "NAME" not in path and not any(ROOT.glob(path))
    ]
    assert not gone


def test_messages_of_the_troubleshooting_page_are_those_of_the_program():
    """`...` stands for any text."""
    program = "\n".join(
        text
        for room in ("fss", "shards", "launch")
        for path in (ROOT / room).rglob("*.py")
        for text in texts(ast.parse(path.read_text()))
    )
    program += "\n".join(path.read_text() for path in (ROOT / "slurm").glob("*.sh"))
    quoted = [line.split("|")[1].strip() for line in Page("docs/troubleshooting.md").lines if line.startswith("| `")]
    messages = [cell[1:-1] for cell in quoted if not cell.endswith("no error")]
    assert len(messages) > 30
    lost = [text for text in messages if not re.search(".*".join(map(re.escape, text.split("..."))), program)]
    assert not lost


def texts(tree: ast.Module) -> Iterator[str]:
    """Every string of a source, with a space for each value that an f-string inserts."""
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=values):
                parts = [part.value if isinstance(part, ast.Constant) else " " for part in values]
                yield "".join(map(str, parts)).replace("\n", " ")
            case ast.Constant(value=str(text)):
                yield text.replace("\n", " ")


def test_links_lead_somewhere():
    gone = [
        f"{code}: {code.text}"
        for page in PAGES
        for code in page.links
        if not (ROOT / code.page).parent.joinpath(code.text).exists()
    ]
    assert not gone


def test_pictures_are_small_and_shown():
    shown = {(ROOT / code.page).parent.joinpath(code.text).resolve() for page in PAGES for code in page.links}
    pictures = {path for path in (ROOT / "docs/pictures").iterdir() if path.suffix in (".png", ".jpg")}
    assert pictures and pictures <= shown
    assert max(path.stat().st_size for path in pictures) < 150_000


def test_every_page_is_listed_in_the_readme():
    readme = {code.text for code in next(page for page in PAGES if page.name == "README.md").links}
    assert {page.name for page in PAGES} - {"README.md"} <= readme


def test_no_block_is_of_an_unknown_kind():
    """Indented is shell; what is neither a command nor Python is fenced as text, a diff or YAML."""
    kinds = {SHELL, "python", *SHOWN}
    assert not [f"{code}: {code.language!r}" for page in PAGES for code in page.blocks if code.language not in kinds]


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Path:
    """A folder with the weights and the small pictures that the snippets of the pages name."""
    torch.manual_seed(0)
    method = QGNet(QGNetConfig(size=33, backbone="resnet18", prior_map="off", dim=8))
    weights = tmp_path / "runs" / "demo" / "qgnet" / "best.safetensors"
    weights.parent.mkdir(parents=True)
    save_export(weights, *method.export())
    for name in ("cat.jpg", "query.jpg"):
        Image.new("RGB", (64, 48), "grey").save(tmp_path / name)
    mask = Image.new("L", (64, 48))
    mask.paste(255, (8, 8, 40, 40))
    mask.save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


PYTHON = [code for page in PAGES for code in page.blocks if code.language == "python"]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("snippet", PYTHON, ids=str)
def test_python_runs(snippet):
    exec(compile(snippet.text, str(snippet), "exec"), {"__name__": "snippet"})
