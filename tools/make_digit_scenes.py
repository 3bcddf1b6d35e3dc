"""Write the digit scenes: a small real data set for detection and segmentation. `--help` has the rest."""

import argparse

from visionssm.data.scenes import make_scenes


def main() -> None:
    """Parse the arguments and write."""
    parser = argparse.ArgumentParser(description=make_scenes.__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('output', help='folder, empty or new')
    parser.add_argument('--train', type=int, default=1000, help='scenes to train on (default 1000)')
    parser.add_argument('--val', type=int, default=100, help='scenes to validate on (default 100)')
    parser.add_argument('--size', type=int, default=96, help='side in pixels (default 96)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    try:
        make_scenes(args.output, args.train, args.val, args.size, args.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
