"""How well a candidate does on the data: trained, or by a simple classifier on its frozen features."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from visionssm.apps.features import pooled
from visionssm.train.loop import NonFiniteLossError
from visionssm.train.parallel import start_processes
from visionssm.train.recipe import Recipe
from visionssm.train.run import Trainer, train

# what the methods are, for the notes under a table
METHODS = {
    'train': 'trained',
    'linear': "multinomial logistic regression on standardised frozen features (scikit-learn's, C = 1)",
    'knn': 'the 20 nearest neighbours by cosine of frozen features, weighted by distance',
}
_NEIGHBOURS = 20

Say = Callable[[str], None]


def trained_accuracy(recipe: Recipe, folder: Path, device: str, say: Say) -> dict[str, Any]:
    """Train in `folder`, from where an earlier process stopped; the last epoch counts, not the best.

    A run whose loss is not finite has no accuracy: None, and the `error`.
    """
    try:
        last = train(recipe, folder, say, 'auto', device)[-1]
    except NonFiniteLossError as error:
        say(f'diverged: {error}')
        return {'accuracy': None, 'error': str(error)}
    return {'accuracy': last.accuracy, 'seconds': last.seconds}


def remove_checkpoints(folder: Path) -> None:
    """Free the space that only resuming a run needs."""
    shutil.rmtree(folder / 'checkpoints', ignore_errors=True)


def probed_accuracy(recipe: Recipe, method: str, device: str, say: Say) -> dict[str, Any]:
    """Accuracy of a classifier fitted to pooled features of the training images, which are not augmented.

    Args:
        recipe: Model, weights and data.
        method: 'linear' or 'knn'.
        device: Where to compute the features.
        say: Takes lines of text for the user.
    """
    with start_processes(device) as processes:
        trainer = Trainer(recipe, processes, say)
        trainer.model.eval()
        parts = []
        for training in (True, False):
            batches = [
                (pooled(trainer.model, x), labels.cpu().numpy()) for x, labels in trainer.data.eval_batches(training)
            ]
            parts.append([np.concatenate(column) for column in zip(*batches, strict=True)])
    (features, labels), (held_out, truth) = parts
    if not all(np.isfinite(x).all() for x in (features, held_out)):
        return {'accuracy': None, 'error': 'the features are not finite'}
    return {'accuracy': float(_classifier(method, len(labels)).fit(features, labels).score(held_out, truth))}


def _classifier(method: str, images: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if method == 'linear':
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return KNeighborsClassifier(min(_NEIGHBOURS, images), metric='cosine', weights='distance')
