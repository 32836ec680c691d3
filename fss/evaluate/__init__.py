"""From a method and episodes to integer counts and scores: predicted, partitioned over ranks, cached and recorded.

predictor                 the only way from images and masks to a prediction
measure, partition, prefetch, feature_cache, record   the evaluation of many episodes on many ranks
plan, scoring, loading    the episodes, the scoring and the method of an evaluation
metrics, summary          counts and the scores computed from them
examples, cost            single episodes for pictures, and their arithmetic

May import fss.methods, fss.data, fss.distributed and what these import. It draws nothing.
"""
