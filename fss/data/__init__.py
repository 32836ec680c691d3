"""Training and evaluation data: folds, episodes, paired transforms, views, and the loader of batches.

This package may import fss.datasets, fss.errors and shards.
"""
