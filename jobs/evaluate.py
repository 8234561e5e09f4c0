"""Measure recipes on labelled clips, beside baselines.

ray job submit --working-dir . -- python jobs/evaluate.py configs/train.yaml [key=value ...]
"""

from mer_batch.__main__ import main

if __name__ == "__main__":
    main("evaluate")
