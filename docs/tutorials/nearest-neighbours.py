# %% [markdown]
# # Features and nearest neighbours
#
# What a model has learned can be used without its classifier: images whose features are close look alike to the model.
# That finds similar images, and labels new kinds of them from a few examples, without any training.
#
# The model and the images are those of [Fine-tune on a folder of images](fine-tuning.py), which is to be run first. The
# model has been trained on six kinds of clothes and shoes; four others it has never seen.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from visionssm.apps.classify import load_classifier
from visionssm.apps.features import extract, image_files

RUNS = Path('runs/fine-tuning')
MODEL = f'local-dir:{RUNS / "base"}'  # or any other, such as 'vmamba_tiny_s1l8', with its published weights

# %% [markdown]
# ## Features
#
# `extract` gives what the classifier sees, one vector per image; `visionssm features FOLDER --output FILE` writes
# the same to a file. Any folders will do here; we take 100 images of each of the ten kinds.

# %%
kinds = sorted([*(RUNS / 'big/validation').iterdir(), *(RUNS / 'small/validation').iterdir()])
files = [file for kind in kinds for file in image_files([kind])[:100]]
labels = np.array([file.parent.name for file in files])
model = load_classifier(MODEL)
features = np.concatenate(list(extract(model, files)))
features /= np.linalg.norm(features, axis=1, keepdims=True)
print(features.shape)

# %% [markdown]
# ## Neighbours
#
# With unit vectors, cosine similarity is a product. No image is its own neighbour.

# %%
similarity = features @ features.T
np.fill_diagonal(similarity, -1)
order = np.argsort(-similarity, axis=1)

# %% alt="Six queries, each followed by its six nearest neighbours; most are of the same kind as the query"
shown = ('Trouser', 'Sneaker', 'Bag', 'Dress', 'Ankle boot', 'Coat')
queries = [int(np.flatnonzero(labels == name)[7]) for name in shown]
figure, axes = plt.subplots(len(queries), 7, figsize=(7.5, 7), layout='constrained')
for row, query in zip(axes, queries, strict=True):
    for axis, index in zip(row, [query, *order[query, :6]], strict=True):
        axis.imshow(Image.open(files[index]), cmap='gray')
        right = labels[index] == labels[query]
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel('' if right else labels[index], fontsize=11, color='#d55e00')
        for side in axis.spines.values():
            side.set(color='black' if index == query else '#0072b2' if right else '#d55e00', linewidth=3)
    row[0].set_ylabel(labels[query], fontsize=12)
plt.show()

# %% [markdown]
# Blue frames are of the same kind as the query on the left, orange ones are not. Dresses, ankle boots and coats are
# among the kinds that the model was never trained on.
#
# ## How good are they?
#
# Count how many of the five nearest are of the same kind, with the features, and with the pixels themselves.


# %%
def precision(vectors):
    """Share of the five nearest neighbours that are of the same kind, by image."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    close = vectors @ vectors.T
    np.fill_diagonal(close, -1)
    return (labels[np.argsort(-close, axis=1)[:, :5]] == labels[:, None]).mean(1)


pixels = np.stack([np.asarray(Image.open(file), np.float32).ravel() for file in files])
scores = {'features': precision(features), 'pixels': precision(pixels)}
known = np.isin(labels, [kind.name for kind in kinds if kind.is_relative_to(RUNS / 'big')])
for name, score in scores.items():
    old, new = 100 * score[known].mean(), 100 * score[~known].mean()
    print(f'{name:8} {old:.0f} % for kinds it was trained on, {new:.0f} % for others')
assert scores['features'][known].mean() > scores['pixels'][known].mean()
assert scores['features'][~known].mean() > 0.5

# %% alt="Share of neighbours of the same kind, for each of the ten kinds, by features and by pixels"
names = [kind.name for kind in kinds]
names.sort(key=lambda name: (name not in labels[known], -scores['features'][labels == name].mean()))
figure, axis = plt.subplots(figsize=(7.5, 4.6), layout='constrained')
for (name, score), colour, marker in zip(scores.items(), ('#0072b2', '#d55e00'), 'os', strict=True):
    shares = [100 * score[labels == kind].mean() for kind in names]
    axis.plot(shares, range(len(names)), marker, color=colour, ms=10, label=name)
marked = [name if name in labels[known] else f'{name} (new)' for name in names]
axis.set_yticks(range(len(names)), marked, fontsize=13)
axis.tick_params(axis='x', labelsize=12)
axis.set_xlabel('neighbours of the same kind in %', fontsize=13)
axis.set_xlim(0, 103)
axis.invert_yaxis()
axis.grid(alpha=0.3)
axis.legend(fontsize=13, loc='lower left')
plt.show()

# %% [markdown]
# ## Label new kinds from five examples each
#
# A new image gets the kind whose examples are closest on average: a classifier of new kinds that needs no training.

# %%
new = sorted(set(labels[~known]))
centres = np.stack([features[np.flatnonzero(labels == name)[:5]].mean(0) for name in new])
rest = np.concatenate([np.flatnonzero(labels == name)[5:] for name in new])
said = np.array(new)[np.argmax(features[rest] @ centres.T, axis=1)]
share = (said == labels[rest]).mean()
print(f'{100 * share:.0f} % of {len(rest)} images, with {len(new)} kinds: chance is {100 / len(new):.0f} %')
assert share > 0.5

# %% [markdown]
# With the published weights of a larger model the features are better, and nothing else on this page changes.
# [Features](../features.md) has maps of several resolutions as well.
