"""Merge the small parts of an output's tables on a cluster.

ray job submit --working-dir . -- python jobs/compact.py configs/tag.yaml
"""

from mer_batch.__main__ import main

if __name__ == "__main__":
    main("compact")
