"""Targets, classification, matching, loss terms and the criterion."""
