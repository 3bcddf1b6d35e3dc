"""Train a model: `visionssm train`, as a file for torchrun.

On one device, and on eight:

python tools/train.py --config configs/train/vmamba_tiny_s1l8.yaml --data IMAGENET
torchrun --nproc-per-node 8 tools/train.py --config configs/train/vmamba_tiny_s1l8.yaml --data IMAGENET

`--list-keys` shows what a recipe can set.
"""

import sys

from visionssm.cli import main

if __name__ == '__main__':
    sys.exit(main(['train', *sys.argv[1:]]))
