"""`python -m hf_detr` is the command `hf-detr`."""

import sys

from hf_detr_command_line import main

if __name__ == "__main__":
    sys.exit(main())
