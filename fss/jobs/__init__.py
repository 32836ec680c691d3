"""From a configuration to a finished run: training, evaluation, and studies of single methods.

A job sets the ranks up, checks that they fit each other, and calls the packages below; it may import all of them.
"""
