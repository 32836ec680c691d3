"""Names of earlier versions are gone, in prose too: one word for one thing.

A name that users still type or that old files contain stays in `fss/compat.py`, which translates it.
"""

import re
import subprocess
from pathlib import Path

from fss.compat import OPTIONS
from tests.support.places import ROOT

OLD = {  # as whole words; old -> the word of today, and in prose
    "Peers": "Collectives",
    "Alone": "SingleProcess",
    "Ranks": "ProcessGroupCollectives; in prose 'All ranks'",
    "World": "DistributedContext",
    "roll": "heartbeat board",
    "Roll": "HeartbeatBoard",
    "watch": "watchdog; in prose 'monitor'",
    "Watch": "Watchdog",
    "deal": "partition; in prose 'distribute', 'split'",
    "learnt": "seen_classes; in prose 'learned'",
    "teach": "set_classes",
    "learns": "requires_training; in prose 'is trained'",
    "consumes": "batch_spec; in prose 'takes'",
    "briefing": "startup_messages",
    "cautions": "caveats",
    "remarks": "flags",
    "chance": "chance_level; in prose 'guessing', 'random', 'probability'",
    "variant": "ablation; in prose 'form', 'version'",
    "spent": "compute_hours, training_hours; in prose 'used'",
    "hold": "lock; in prose 'contain', 'keep'",
    "feed": "dataset; in prose 'pass', 'supply'",
    "Kept": "FeatureCache",
    "_Walk": "_EpisodeRunner",
    "alive": "report_progress; in prose 'running'",
    "agree": "any_rank; in prose 'be equal', 'match'",
    "at_the_end": "on_abort",
    "lay_gradients": "match_weight_strides",
    "go": "run, execute; in prose 'continue', 'resume'",
    "told": "what it contains; in prose 'passed'",
    "said": "what it contains; in prose 'reported', 'stated'",
    "notes": "what it contains: messages, lines, header",
    "probable": "has_probabilities",
    "Standardise": "Normalize",
    "small_mask": "downsample_mask",
    "object_columns": "support_vectors",
    "unit_rows": "flatten_normalize",
    "encodes_queries": "needs_query_encoding",
    "Ledger": "SentLog",
    "Viewer": "Tracker",
}
OLD |= OPTIONS  # such as run.world
WORD = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, OLD))})(?!\w)")
FOREIGN = re.compile(r'variant="primary"|\.roll\(')  # of gradio and of torch
EXEMPT = ("fss/compat.py", "tests/test_names.py", "tests/compat/", "CHANGELOG.md", "docs/log.md")  # both names, history
KINDS = {".py", ".md", ".yaml", ".sh", ".toml"}


def test_old_names_are_gone():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [Path(name) for name in tracked.split("\0") if name and not name.startswith(EXEMPT)]
    uses = [
        f"{path}:{number}: {word} -> {OLD[word]}"
        for path in paths
        if (path.suffix in KINDS or path.name == "Makefile") and (ROOT / path).is_file()
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        for word in WORD.findall(FOREIGN.sub("", line))
    ]
    assert not uses, f"{len(uses)} uses of old names:\n" + "\n".join(uses)
