"""The record of a run: its directory, its identity, its log, and the trackers (wandb, TensorBoard) that show the log.

run_dir, identity, lineage   the directory of a run and its files; everything that decides the result; input weights
log, tracker, meter          one log a run, which writes metrics.jsonl and the console and passes values to trackers
wandb_tracker, tensorboard_tracker, dashboard   one file for each service
catalogue                    the one catalogue of logged values and of the charts made of them

May import fss.errors, fss.compat, fss.provenance, fss.nn.exports and shards.format. wandb, TensorBoard and rich are
imported only when a log is opened.
"""
