"""The subcommands of `hf-detr`, one module each."""
