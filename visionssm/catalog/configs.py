"""Where the configs are: `configs/` of a clone, `visionssm/.mim/configs/` of a wheel, which is where `mim` looks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def configs_root() -> Path:
    """The folder with `mmdet/`, `mmseg/` and `train/`.

    Raises:
        FileNotFoundError: If the package was installed without it.
    """
    for root in (_PACKAGE / '.mim' / 'configs', _PACKAGE.parent / 'configs'):
        if (root / 'train').is_dir():
            return root
    raise FileNotFoundError(f'no configs beside {_PACKAGE}; install the wheel, or work in a clone')


def list_configs(pattern: str = '') -> list[Path]:
    """Configs of models: detection, segmentation and training.

    Args:
        pattern: Wildcards for the name or the path from `configs_root()`; plain text is looked for anywhere in it.

    Raises:
        ValueError: If none matches; the message has the closest names.
    """
    root = configs_root()
    found = {path.relative_to(root).as_posix(): path for suffix in ('py', 'yaml') for path in root.rglob(f'*.{suffix}')}
    configs = {name: path for name, path in sorted(found.items()) if '_base_/' not in name}
    wanted = pattern if any(sign in pattern for sign in '*?[') else f'*{pattern}*'
    matches = [path for name, path in configs.items() if fnmatch(name, wanted) or fnmatch(path.stem, wanted)]
    if not matches:
        stems = [path.stem for path in configs.values()]
        raise ValueError(f'no config matches {pattern!r}{_closest(pattern, stems)}')
    return matches


def find_config(name: str | Path) -> Path:
    """The config with that path or name.

    Args:
        name: A file, or the name of a config that comes with the package, with or without its suffix.

    Raises:
        ValueError: If it is neither; the message has the closest names.
    """
    if Path(name).is_file():
        return Path(name)
    stem = str(name).removesuffix('.py').removesuffix('.yaml')
    configs = {path.stem: path for path in list_configs()}
    if stem in configs:
        return configs[stem]
    raise ValueError(f'{name} is neither a file nor one of our configs{_closest(stem, configs)}')


def _closest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, 3, 0.4)
    return f'; closest are {", ".join(close)}' if close else ''
