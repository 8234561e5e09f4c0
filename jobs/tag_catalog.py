"""Tag a catalog on a cluster.

ray job submit --working-dir . -- python jobs/tag_catalog.py configs/tag.yaml [key=value ...]
"""

from mer_batch.__main__ import main

if __name__ == "__main__":
    main("tag")
