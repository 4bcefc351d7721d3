"""Prediction, pipelines, drawing, loading by name, and records of attention."""
