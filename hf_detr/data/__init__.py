"""Readers of annotation formats, the data set, augmentation, batches and checks of data."""
