# %% [markdown]
# # Fine-tune on a folder of images
#
# You have a folder with a few images of each class. Starting from a model that has seen *other* images, fine-tuning
# gets further than training from scratch, in less time. This tutorial shows by how much, on real photographs, and
# ends with a model that timm loads.
#
# The images are of [Fashion-MNIST](https://github.com/zalandoresearch/fashion-mnist) (70,000 photographs of clothes and
# shoes, 28×28, [MIT licence](https://github.com/zalandoresearch/fashion-mnist/blob/master/LICENSE), Xiao et al.,
# [arXiv:1708.07747](https://arxiv.org/abs/1708.07747)). It takes a minute or two on a CPU.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.datasets import FashionMNIST

import visionssm  # registers the models
from visionssm.apps.classify import classify, load_classifier
from visionssm.apps.validate import Options, validate
from visionssm.train import load_recipe
from visionssm.train.run import train

RUNS = Path('runs/fine-tuning')

# %% [markdown]
# ## The folders
#
# One folder per class, in `train` and in `validation`. To use your own, set `SMALL` to it and skip this part.
#
# Here six classes with 600 images each stand for the large data set that a model was trained on before. Four others,
# with 20 images each, are the ones we care about; 250 of each are held out to measure with.

# %%
BIG, SMALL = RUNS / 'big', RUNS / 'small'
NEW = ('Ankle boot', 'Coat', 'Dress', 'Shirt')


def write_images(data, label, folder, count):
    """The first `count` images of a class, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in torch.nonzero(data.targets == label)[:count, 0].tolist():
        Image.fromarray(data.data[index].numpy()).save(
            folder / f'{index:05d}.png'
        )


training, test = (
    FashionMNIST('data', download=True),
    FashionMNIST('data', train=False),
)
for label, name in enumerate(training.classes):
    root, count = (SMALL, 20) if name in NEW else (BIG, 600)
    write_images(
        training, label, root / 'train' / name.replace('/', ' or '), count
    )
    write_images(
        test, label, root / 'validation' / name.replace('/', ' or '), 250
    )

# %% alt="Five training images of each of the four classes: ankle boots, coats, dresses and shirts, white on black"
folders = sorted((SMALL / 'train').iterdir())
figure, axes = plt.subplots(
    len(folders), 5, figsize=(6, 5), layout='constrained'
)
for row, folder in zip(axes, folders, strict=True):
    row[0].set_ylabel(folder.name, fontsize=13)
    for axis, file in zip(row, sorted(folder.iterdir()), strict=False):
        axis.imshow(Image.open(file), cmap='gray')
        axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## A model that has seen other images
#
# Usually this step is somebody else's: `initial='pretrained'` starts from the published weights of a model such as
# `vmamba_tiny_s1l8`. To need neither those nor a GPU, we make our own, with a nano VMamba.
# [`train`](../api/train.md) is what `visionssm train` runs; each keyword is one of its keys.

# %%
common = dict(
    model='vmamba_nano',
    model_args={'in_chans': 1},
    img_size=32,
    workers=0,
    scale=[0.6, 1.0],
    log_steps=1000,
)
recipe = load_recipe(
    data=str(BIG), epochs=2, batch_size=64, lr=2e-3, warmup_epochs=0.3, **common
)
history = train(recipe, RUNS / 'base', say=print)

# %% [markdown]
# ## Fine-tune, and train from scratch
#
# The same recipe twice, for 80 images. Fine-tuning starts from the model above; its classifier is made anew for the
# four classes. Layers near the image learn more slowly (`layer_decay`), since what they have learned is useful as
# it is.

# %%
short = dict(
    data=str(SMALL), epochs=20, batch_size=20, warmup_epochs=2, **common
)
tuned = train(
    load_recipe(initial=str(RUNS / 'base'), lr=1e-3, layer_decay=0.8, **short),
    RUNS / 'tuned',
    say=lambda line: None,
)
scratch = train(
    load_recipe(lr=2e-3, **short), RUNS / 'scratch', say=lambda line: None
)

# %% alt="Accuracy on the held-out images against epochs, of the fine-tuned model and of the one from scratch"
figure, axis = plt.subplots(figsize=(7, 3.6), layout='constrained')
for history, name, colour, style in (
    (tuned, 'fine-tuned', '#0072b2', '-'),
    (scratch, 'from scratch', '#d55e00', '--'),
):
    accuracy = [100 * epoch.accuracy for epoch in history]
    axis.plot(
        range(1, len(accuracy) + 1),
        accuracy,
        style,
        color=colour,
        lw=2.5,
        label=name,
    )
axis.set_xlabel('epoch', fontsize=13)
axis.set_ylabel('accuracy in %', fontsize=13)
axis.tick_params(labelsize=12)
axis.set_xticks(range(0, 21, 5))
axis.set_ylim(20, 100)
axis.legend(fontsize=13, loc='lower right')
axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Evaluate
#
# `visionssm validate` and the function of the same name measure a model on a folder, and keep the result as a file.

# %%
results = {
    name: validate(
        Options(str(SMALL), f'local-dir:{RUNS / name}', workers=0),
        RUNS / 'results',
    )
    for name in ('tuned', 'scratch')
}
for name, result in results.items():
    print(f'{name:8} {result["top1"]:.1f} % of {result["images"]} images')
assert results['tuned']['top1'] >= 75
assert results['tuned']['top1'] >= results['scratch']['top1'] + 2

# %% [markdown]
# ## Classify
#
# A trained model is a folder. Its labels are the names of your folders.

# %%
model = load_classifier(f'local-dir:{RUNS / "tuned"}')
files = sorted((SMALL / 'validation').rglob('*.png'))
found = list(classify(model, files, topk=1))
for entry in found[::125]:
    (best,) = entry['predictions']
    print(
        f'{Path(entry["file"]).parent.name:10}  {best["label"]:10}  {100 * best["probability"]:.0f} %'
    )

# %% [markdown]
# What is taken for what? Rows are the truth, columns what the model says.

# %% alt="Confusion matrix of the four classes; most images are on the diagonal, coats and shirts are confused most"
classes = [folder.name for folder in folders]
confusion = np.zeros((len(classes), len(classes)), int)
for entry in found:
    truth = Path(entry['file']).parent.name
    confusion[
        classes.index(truth), classes.index(entry['predictions'][0]['label'])
    ] += 1
figure, axis = plt.subplots(figsize=(6, 4.6), layout='constrained')
axis.imshow(confusion, cmap='Blues', vmin=0, vmax=250)
for (row, column), count in np.ndenumerate(confusion):
    axis.text(
        column,
        row,
        count,
        ha='center',
        va='center',
        fontsize=14,
        color='white' if count > 125 else 'black',
    )
axis.set_xticks(range(len(classes)), classes, fontsize=12)
axis.set_yticks(range(len(classes)), classes, fontsize=12)
plt.show()

# %% [markdown]
# ## Load it with timm
#
# The folder is in timm's own layout: `local-dir:` here, `hf-hub:` after `visionssm push`. The other program needs
# `import visionssm`, nothing else of this tutorial. Both give the same numbers.

# %%
again = timm.create_model(f'local-dir:{RUNS / "tuned"}', pretrained=True).eval()
transform = create_transform(
    **resolve_data_config(model=again), is_training=False
)
image = transform(Image.open(files[0])).unsqueeze(0)
with torch.inference_mode():
    probability = again(image).softmax(1).max().item()
assert abs(probability - found[0]['predictions'][0]['probability']) < 1e-5
print(f'{files[0].parent.name}: {100 * probability:.1f} %')

# %% [markdown]
# The same on the command line, with your folder and published weights:
#
# ```sh
# visionssm train --model vmamba_tiny_s1l8 --data flowers --output runs/flowers --epochs 20 \
#     --set initial=pretrained lr=2e-4 batch_size=64 micro_batch=16 warmup_epochs=2 layer_decay=0.8
# visionssm validate --model local-dir:runs/flowers --data flowers
# visionssm classify new.jpg --model local-dir:runs/flowers
# ```
#
# [Fine-tune on your own folder](../fine-tuning.md) has more settings, [Train](../training.md) all of them.
# The next tutorial looks at what this model has learned: [Features and nearest neighbours](nearest-neighbours.py).
