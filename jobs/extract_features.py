"""Extract the features of a catalog on a cluster.

ray job submit --working-dir . -- python jobs/extract_features.py configs/extract.yaml [key=value]
"""

import sys

from mer_batch.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command(["extract", *sys.argv[1:]]))
