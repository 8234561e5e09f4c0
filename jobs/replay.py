"""Try rejects of a catalog again on a cluster.

ray job submit --working-dir . -- python jobs/replay.py configs/tag.yaml reason=timeout
"""

from mer_batch.__main__ import main

if __name__ == "__main__":
    main("replay")
