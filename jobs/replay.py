"""Try rejects of a catalog again on a cluster.

ray job submit --working-dir . -- python jobs/replay.py configs/tag.yaml reason=timeout
"""

import sys

from mer_batch.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command(["replay", *sys.argv[1:]]))
