"""Train a model on labelled clips.

ray job submit --working-dir . -- python jobs/train.py configs/train.yaml [key=value ...]
"""

from mer_batch.__main__ import main

if __name__ == "__main__":
    main("train")
