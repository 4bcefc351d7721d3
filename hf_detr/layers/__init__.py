"""Backbone, feature pyramid, position encodings, attention, encoder layers and the mask head."""
