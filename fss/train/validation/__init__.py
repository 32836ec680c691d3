"""Measurements during training: one module for each kind of method."""
