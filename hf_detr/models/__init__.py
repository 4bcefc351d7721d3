"""The skeleton that all variants share, and a folder for each variant."""
