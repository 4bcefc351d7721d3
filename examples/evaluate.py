"""Evaluate a detector and print AP and AR: the command `hf-detr evaluate` as a script.

python examples/evaluate.py --model FOLDER --coco annotations.json --images FOLDER
torchrun --nproc-per-node 4 examples/evaluate.py --model FOLDER --coco FILE --images FOLDER
"""

import sys

from hf_detr_command_line import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
