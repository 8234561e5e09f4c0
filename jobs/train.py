"""Train a model on labelled clips.

ray job submit --working-dir . -- python jobs/train.py configs/train.yaml [key=value ...]
"""

import sys

from mer_batch.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command(["train", *sys.argv[1:]]))
