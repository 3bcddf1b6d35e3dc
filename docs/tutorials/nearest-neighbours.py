# %% [markdown]
# # Features and nearest neighbours
#
# What a model has learned can be used without its classifier: images whose features are close look alike to the model.
# That finds similar images, and sorts new ones by a few examples, without any training.
#
# Models and images are those of [Fine-tune on a folder of images](fine-tuning.py), which is to be run first: `base` has
# been trained on six kinds of clothes and shoes, `tuned` in addition on 20 images of each of the four kinds shown here.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from visionssm.apps.classify import load_classifier
from visionssm.apps.features import extract, image_files

RUNS = Path('runs/fine-tuning')
FOLDER = (
    RUNS / 'small/validation'
)  # or any folder of images, in subfolders by kind
MODELS = {
    name: f'local-dir:{RUNS / name}' for name in ('base', 'tuned')
}  # or 'vmamba_tiny_s1l8', and others

# %% [markdown]
# ## Features
#
# `extract` gives what the classifier sees, one vector per image. `visionssm features FOLDER --output FILE` writes the
# same to a file.

# %%
files = image_files([FOLDER])
labels = np.array([file.parent.name for file in files])
vectors = {
    name: np.concatenate(list(extract(load_classifier(model), files)))
    for name, model in MODELS.items()
}
vectors['pixels'] = np.stack(
    [np.asarray(Image.open(file), np.float32).ravel() for file in files]
)  # to compare with
for name, value in vectors.items():
    value /= np.linalg.norm(value, axis=1, keepdims=True)
    print(name, value.shape)

# %% [markdown]
# ## Neighbours
#
# With vectors of length one, cosine similarity is a product. No image is its own neighbour.


# %%
def neighbours(value, count):
    """Indices of the images that are closest to each, (n, count)."""
    similarity = value @ value.T
    np.fill_diagonal(similarity, -1)
    return np.argsort(-similarity, axis=1)[:, :count]


# %% alt="Two queries of each kind, each followed by its six nearest neighbours; frames say which are of the same kind"
kinds = sorted(set(labels))
queries = [
    int(index)
    for kind in kinds
    for index in np.flatnonzero(labels == kind)[[5, 50]]
]
nearest = neighbours(vectors['tuned'], 6)
figure, axes = plt.subplots(
    len(queries), 7, figsize=(7.5, 9), layout='constrained'
)
for row, query in zip(axes, queries, strict=True):
    for axis, index in zip(row, [query, *nearest[query]], strict=True):
        right = labels[index] == labels[query]
        axis.imshow(Image.open(files[index]), cmap='gray')
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel('' if right else labels[index], fontsize=12)
        for side in axis.spines.values():
            side.set(
                color='black'
                if index == query
                else '#0072b2'
                if right
                else '#d55e00',
                linewidth=3.5,
            )
    row[0].set_ylabel(labels[query], fontsize=12)
plt.show()

# %% [markdown]
# Each row is a query and its neighbours; those of another kind have an orange frame and their name below.
#
# ## How good are they?
#
# Two figures: how many of the five nearest are of the same kind; and how many images get the right name if each
# takes that of the closest average of five examples. The second is a classifier that needs no training.


# %%
def precision(value):
    """Share of the five nearest that are of the same kind."""
    return (labels[neighbours(value, 5)] == labels[:, None]).mean()


def five_shot(value):
    """Share of right names, by five examples of each kind."""
    examples = np.stack([np.flatnonzero(labels == kind)[:5] for kind in kinds])
    said = np.array(kinds)[(value @ value[examples].mean(1).T).argmax(1)]
    return np.delete(said == labels, examples).mean()


scores = {
    name: (100 * precision(value), 100 * five_shot(value))
    for name, value in vectors.items()
}
for name, (near, named) in scores.items():
    print(f'{name:6}  {near:.0f} % of neighbours, {named:.0f} % of names')
assert (
    scores['tuned'][0] > scores['base'][0]
    and scores['tuned'][1] > scores['base'][1]
)
assert scores['tuned'][1] > scores['pixels'][1] > 25  # by chance

# %% alt="Share of right neighbours and of right names, for base features, tuned features and pixels"
figure, axis = plt.subplots(figsize=(7.5, 2.8), layout='constrained')
for (name, values), colour, marker in zip(
    scores.items(), ('#56b4e9', '#0072b2', '#d55e00'), 'sov', strict=True
):
    axis.plot(values, [0, 1], marker, color=colour, ms=13, label=name)
axis.set_yticks([0, 1], ['neighbours', 'names'], fontsize=14)
axis.set_ylim(1.5, -0.5)
axis.set_xlim(50, 100)
axis.tick_params(axis='x', labelsize=12)
axis.set_xlabel('right, in %', fontsize=13)
axis.grid(alpha=0.3)
axis.legend(fontsize=13, loc='center right')
plt.show()

# %% [markdown]
# Fine-tuning on a few images has improved the features of other images of these kinds. Pixels find good neighbours
# here: all things are centred, of one size and on black. They are worse at names, where an average of examples must
# stand for the whole kind. Look at such a baseline before you trust features.
#
# With published weights nothing else on this page changes. [Features](../features.md) has maps of several
# resolutions, too.
