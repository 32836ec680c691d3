"""A published episode list evaluates on a set that carries its file names."""

from fss.data.episode_lists import read_list
from fss.evaluate.measure import measure, predictor_for
from fss.evaluate.scoring import Scoring
from shards.sources.voc import CLASSES as VOC_CLASSES
from tests.support.episode_toy import Colour
from tests.support.manifests import pack_listed
from tests.support.places import shared


def test_a_published_list_is_evaluated(context, tmp_path):
    published = shared("golden/episodes/pascal_fold0_1shot.tsv.gz")
    classes = VOC_CLASSES
    shards, short = pack_listed(published, tmp_path / "packed", classes, rows=20)
    episodes = read_list(short, shards.manifest, shots=1)
    scoring = Scoring(size=33)
    results = measure(predictor_for(Colour(), scoring, context), shards, episodes, scoring, context)
    listed = [line.split("\t") for line in short.read_text().splitlines()]
    assert [(str(r.class_id - 1), r.query, *r.supports) for r in results] == [tuple(row) for row in listed]
    assert all(union > 0 for r in results for _, union in r.counts)
