"""Measure recipes on labelled clips, beside baselines.

ray job submit --working-dir . -- python jobs/evaluate.py configs/train.yaml [key=value ...]
"""

import sys

from mer_batch.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command(["evaluate", *sys.argv[1:]]))
