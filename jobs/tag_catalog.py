"""Tag a catalog on a cluster.

ray job submit --working-dir . -- python jobs/tag_catalog.py configs/tag.yaml [key=value ...]
"""

import sys

from mer_batch.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command(["tag", *sys.argv[1:]]))
