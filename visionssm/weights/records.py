"""The records of what is published: a family, its models, its files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_TASKS = {'imagenet-1k': 'classification', 'coco': 'detection', 'ade20k': 'segmentation'}
UNCLEAR = ('unknown', 'contradictory')  # in place of a licence


def license_text(license: str) -> str:
    """A licence as people should read it: whether it rules out commercial use is not left to its name."""
    return f'{license} (non-commercial)' if re.search(r'-nc\b', license) else license


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published file.

    Attributes:
        model: Registered name of the model, or of the backbone.
        tag: timm's name of a classifier's weights; '' for detectors and segmenters.
        method: Detector or segmenter with its schedule, such as 'mask_rcnn_1x'; '' for classifiers. What such a file
            holds is the whole of it, its backbone under `backbone.`.
        dataset: What `metrics` were measured on: 'imagenet-1k', 'coco' (2017) or 'ade20k'.
        metrics: What the authors report, in percent: 'top-1'; 'box AP', 'mask AP'; 'mIoU', 'mIoU (multi-scale)'.
        license: Of the file, as the Hub names it, or one of `UNCLEAR`.
        doubt: Why it is unclear.
        origin_url: Repository of the code.
        repo: Hub repository; '': the file is not on the Hub.
        revision: Commit that is pinned; '': the branch as it was at the first download.
        filename: Path in the repository; '': weights in timm's layout.
        url: Address of a file that is elsewhere.
        page: Where a person can get the file: the only way if there is neither `repo` nor `url`, else a mirror.
        sha256: As published; '': not known before the first download.
        size: In bytes, rounded as the page of the file states it.
        container: Key under which the file keeps the weights that the authors evaluate; '': they are all of the file.
        contents: What else is known of these weights, as the end of a sentence about them.
        notes: Whatever else a user must know.
        borrowed: Whether this was made from timm's own record, which has notes and nothing else.
    """

    model: str
    tag: str = ''
    method: str = ''
    dataset: str = 'imagenet-1k'
    metrics: Mapping[str, float] = field(default_factory=dict)
    license: str
    doubt: str = ''
    origin_url: str
    repo: str = ''
    revision: str = ''
    filename: str = ''
    url: str = ''
    page: str = ''
    sha256: str = ''
    size: int | None = None
    container: str = ''
    contents: str = ''
    notes: tuple[str, ...] = ()
    borrowed: bool = False

    @property
    def name(self) -> str:
        """`model.tag` or `model.method_dataset`, as `visionssm weights` shows it."""
        return f'{self.model}.{self.tag or f"{self.method}_{self.dataset}"}'

    @property
    def task(self) -> str:
        """'classification', 'detection' or 'segmentation'."""
        return _TASKS[self.dataset]

    @property
    def by_hand(self) -> bool:
        """Whether only a person can get it."""
        return not (self.repo or self.url)

    @property
    def hf_hub_id(self) -> str | None:
        """As timm has it: 'owner/name', or 'owner/name@revision'; None: not on the Hub."""
        return '@'.join(filter(None, (self.repo, self.revision))) or None

    @property
    def hf_hub_filename(self) -> str | None:
        """As timm has it: path in the Hub repository; None: weights in timm's layout, or not on the Hub."""
        return self.filename or None

    @property
    def where(self) -> str:
        """Its address, 'hf-hub:owner/name[@revision]/file' or a URL, or the page with it."""
        if self.repo:
            return '/'.join(filter(None, (f'hf-hub:{self.hf_hub_id}', self.filename)))
        return self.url or self.page

    @property
    def download_url(self) -> str:
        """URL of the file itself; '' if only a person can get it."""
        if self.repo:
            return f'https://huggingface.co/{self.repo}/resolve/{self.revision or "main"}/{self.filename}'
        return self.url

    @property
    def reported(self) -> str:
        """Metrics in a row: 'box AP 47.3, mask AP 42.7'; '' if none are known."""
        return ', '.join(f'{name} {value}' for name, value in self.metrics.items())

    @property
    def remarks(self) -> tuple[str, ...]:
        """All that is known besides address and licence, in sentences."""
        if self.borrowed:
            return self.notes
        top1 = self.metrics.get('top-1')
        reported = () if top1 is None else (f'top-1 {top1} % on ImageNet-1k, reported by the authors',)
        return (*reported, *self.details())

    def details(self, page: bool = True) -> tuple[str, ...]:
        """`remarks` without the accuracy, and without the page if it is shown elsewhere."""
        weights = f"'{self.container}' of the file" if self.container else 'all of the file'
        sentences = (
            f'weights used: {weights}{self.contents}' if self.tag else '',
            '' if self.size is None else f'file of {self.size / 1e6:g} MB',
            page and self.page and f'{"to download by hand:" if self.by_hand else "also at"} {self.page}',
            self.doubt,
            *self.notes,
        )
        return tuple(filter(None, sentences))


@dataclass(frozen=True)
class Model:
    """Size and cost of a registered model.

    Attributes:
        params: Parameters, as built here.
        macs: Multiply-adds for one image at the model's own input size, as `visionssm.catalog.macs` counts them.
        reported_params: Millions of parameters, as the authors print them; '': not reported.
        reported_gflops: Their GFLOPs (multiply-adds) for one image, as printed; '': not reported.
        remark: Why a count here differs by over 1 % from what is printed.
        top1: Accuracy that the authors report of the `in1k` weights of a model whose tags are timm's, in percent.
        container: Key of the weights in training checkpoints, for a model without published files of which one says.
    """

    params: int
    macs: int
    reported_params: str = ''
    reported_gflops: str = ''
    remark: str = ''
    top1: float | None = None
    container: str = ''


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: its paper, its code, its models, its files.

    Attributes:
        key: Name of its module, with which the names of its models begin.
        title: Name in prose.
        paper: Title of the paper.
        arxiv: Its number, such as '2401.10166'.
        venue: Where it was published.
        repository: URL of the authors' code.
        commit: Of it, that facts were taken from; '': not read.
        branches: Commits of further branches.
        license: Of the code, as the Hub names it; 'unknown': none is stated.
        models: Registered names; those that are tested only begin with `test_`.
        files: What the authors published; empty for a family whose tags are timm's.
        unpublished: What the authors report of detectors and segmenters of which they published no file, by the name
            that the file would have.
        borrowed: Whether the models are timm's, and its registry the record of their weights.
    """

    key: str
    title: str
    paper: str
    arxiv: str
    venue: str
    repository: str
    commit: str = ''
    branches: Mapping[str, str] = field(default_factory=dict)
    license: str
    models: Mapping[str, Model]
    files: tuple[Published, ...] = ()
    unpublished: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    borrowed: bool = False
