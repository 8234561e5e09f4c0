"""Extract the features of a catalog on a cluster.

ray job submit --working-dir . -- python jobs/extract_features.py configs/extract.yaml [key=value]
"""

from mer_batch.__main__ import main

if __name__ == "__main__":
    main("extract")
