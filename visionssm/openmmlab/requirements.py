"""What must be installed, and in which versions: one line each, before anything fails at greater length."""

import importlib.util
from importlib.metadata import PackageNotFoundError, version

_INSTALL = 'pip install "visionssm[openmmlab]"'


def check_requirements() -> None:
    """Check what is installed.

    Raises:
        ImportError: If mmengine or mmcv is missing, or versions are incompatible; the message has the fix.
    """
    for module in ('mmengine', 'mmcv'):
        if importlib.util.find_spec(module) is None:
            raise ImportError(f'visionssm.openmmlab needs {module}: {_INSTALL}')
    try:
        import cv2  # noqa: F401  mmengine needs it
    except ImportError as error:
        raise ImportError(
            f'opencv cannot be imported ({error}): apt install libgl1 libglib2.0-0, or pip uninstall opencv-python and '
            'pip install opencv-python-headless'
        ) from None
    if _version('mmengine') is not None and importlib.util.find_spec('pkg_resources') is None:
        raise ImportError("mmengine 0.10 needs pkg_resources, which setuptools 81 removed: pip install 'setuptools<81'")
    mmcv = next(filter(None, map(_version, ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'))), None)
    for package in ('mmdet', 'mmsegmentation'):
        found = _version(package)
        if found is not None and mmcv is not None and not (2, 0) <= _numbers(mmcv) < (2, 2):
            raise ImportError(f'{package} {found} takes mmcv from 2.0 to 2.1, not {mmcv}: pip install mmcv-lite==2.1.0')


def find_forks() -> None:
    """Let bases such as `mmseg::...` be found where a maintained fork (`onedl-mmsegmentation`) is installed instead."""
    from mmengine.config.utils import MODULE2PACKAGE

    for module, package in MODULE2PACKAGE.items():
        if _version(package) is None and _version(f'onedl-{package}') is not None:
            MODULE2PACKAGE[module] = f'onedl-{package}'


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, int]:
    major, minor = text.split('.')[:2]
    return int(major), int(minor)
