"""fss.nn.knn against votes counted by hand."""

import math

import torch
import torch.nn.functional as F

from fss.nn.knn import knn_predict


def by_hand(train, labels, features, k, temperature, classes):
    """The definition, one row and one neighbour at a time."""
    predictions = []
    for feature in features.tolist():
        cosine = []
        for row in train.tolist():
            dot = sum(a * b for a, b in zip(feature, row, strict=True))
            cosine.append(dot / math.dist(feature, [0] * len(feature)) / math.dist(row, [0] * len(row)))
        nearest = sorted(range(len(cosine)), key=lambda i: -cosine[i])[:k]
        votes = [0.0] * classes
        for i in nearest:
            votes[int(labels[i])] += math.exp(cosine[i] / temperature)
        predictions.append(votes.index(max(votes)))
    return predictions


def test_equals_the_definition_and_does_not_depend_on_the_chunk():
    torch.manual_seed(0)
    train, features = torch.randn(60, 8), 3 * torch.randn(33, 8)
    labels = torch.randint(0, 5, (60,))
    expected = by_hand(train, labels, features, 20, 0.07, 5)
    for chunk in (1, 7, 1000):
        assert knn_predict(train, labels, features, classes=5, chunk=chunk).tolist() == expected


def test_one_close_neighbour_outvotes_many_far_ones():
    train = F.normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8]]), dim=1)
    labels = torch.tensor([0, 1, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    assert knn_predict(train, labels, query, k=4, temperature=0.07, classes=2).item() == 0
    assert knn_predict(train, labels, query, k=4, temperature=10.0, classes=2).item() == 1  # nearly one vote each


def test_fewer_training_rows_than_k_and_a_tiny_temperature():
    train = torch.eye(3)
    predictions = knn_predict(train, torch.tensor([2, 0, 1]), 5 * train, k=20, temperature=1e-3, classes=3)
    assert predictions.tolist() == [2, 0, 1]


def test_no_rows():
    assert knn_predict(torch.eye(2), torch.tensor([0, 1]), torch.zeros(0, 2), classes=2).shape == (0,)
