"""Checkpoints of the official code, published checkpoints, model cards and publishing."""
