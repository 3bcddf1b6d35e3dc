"""The directions of LocalMamba, by the names that upstream gives them."""

_WALKS = {
    'h': {'name': 'raster'},
    'v': {'name': 'column'},
    'w2': {'name': 'local', 'window': 2, 'pad': 'zero'},
    'w7': {'name': 'local', 'window': 7, 'pad': 'zero'},
}


def _direction(name: str) -> dict:
    walk = _WALKS[name.removesuffix('_flip')]
    return {**walk, 'backwards': True} if name.endswith('_flip') else walk


def layers_of_directions(*layers: str) -> list[dict]:
    """Scan orders of layers.

    Args:
        *layers: For each the names of its directions: h walks rows, v columns, w2 and w7 windows of as many tokens a
            side, which zero tokens fill up at the border; `_flip` walks backwards.

    Returns:
        A spec per layer.
    """
    return [{'name': 'list', 'of': [_direction(name) for name in layer.split()]} for layer in layers]
