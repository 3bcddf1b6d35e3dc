"""Push a folder in timm's layout to the Hub: checked and shown first, uploaded only on request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import timm
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from visionssm.catalog.models import check_model, sketch
from visionssm.files import parse_yaml, read_object, read_small
from visionssm.models.bounds import check_size
from visionssm.version import __version__
from visionssm.weights.checkpoint import load_checkpoint
from visionssm.weights.quantized import install, read_metadata
from visionssm.weights.records import UNCLEAR

from .card import folder_card, for_hub

_PICKLES = ('.bin', '.ckpt', '.pickle', '.pkl', '.pt', '.pth', '.tar')
_NEEDED = ('config.json', 'model.safetensors')


@dataclass(frozen=True)
class Plan:
    """What an upload would contain.

    Attributes:
        repo_id: Repository.
        files: Path in the repository to content: a file, or bytes made for the upload.
        title: Of the card.
        license: As the card states it.
        left_out: Files that are not uploaded because they may be pickles: training checkpoints.
        warnings: Reasons not to upload, unless the owner says it is allowed.
    """

    repo_id: str
    files: dict[str, Path | bytes]
    title: str
    license: str
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]

    def size(self, name: str) -> int:
        """Bytes of a file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def plan(folder: Path, repo_id: str) -> Plan:
    """Check a folder; nothing is requested.

    Args:
        folder: As `visionssm convert`, `demo` or `train` wrote it. Without a card, one is made; the examples in our
            cards then load from the repository.
        repo_id: 'owner/name'.

    Raises:
        ValueError: If the folder is not a model in timm's layout, or its card or the name is not valid.
        FileNotFoundError: If there is no such folder.
        MissingExtraError: If the weights are quantised and there is no torchao that reads them.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f'{repo_id!r} is not a valid repository name: {error}') from None
    if repo_id.count('/') != 1:
        raise ValueError(f'{repo_id!r} is not a repository name; give OWNER/NAME')
    if not folder.is_dir():
        raise FileNotFoundError(f'no folder at {folder}')
    files: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob('*')):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith('.') for part in name.parts):
            files[name.as_posix()] = path
    if missing := [name for name in _NEEDED if name not in files]:
        raise ValueError(f"{folder} is not a model in timm's layout: it has no {' and no '.join(missing)}")
    left_out = tuple(name for name in files if name.endswith(_PICKLES))
    files = {name: path for name, path in files.items() if name not in left_out}
    config = _check_model(folder)
    card = read_small(folder / 'README.md') if 'README.md' in files else folder_card(config)
    title, license = _check_card(folder, card)
    files['README.md'] = for_hub(card, repo_id).encode()
    stored = config['pretrained_cfg'].get('license') or 'unknown'
    warnings = []
    if stored in UNCLEAR or license in ('unknown', 'other', None):
        warnings.append(
            f'the licence of the weights is {stored if stored in UNCLEAR else license}: only publish them '
            'if you have the right to'
        )
    if 'provenance' in config and license and stored not in (*UNCLEAR, license):
        warnings.append(f'config.json says {stored}, README.md {license}')
    return Plan(repo_id, dict(sorted(files.items())), title, license or 'none', left_out, tuple(warnings))


def upload(plan: Plan, private: bool = False) -> str:
    """Create the repository if it does not exist, and upload all files in one commit.

    Returns:
        Address of the commit.

    Raises:
        OSError: If the Hub refuses or can't be reached, as huggingface_hub reports it.
    """
    api = HfApi(library_name='visionssm', library_version=__version__)
    # otherwise an organisation's default applies
    api.create_repo(plan.repo_id, exist_ok=True, **({'private': True} if private else {}))
    operations = [CommitOperationAdd(name, content) for name, content in plan.files.items()]
    return api.create_commit(plan.repo_id, operations, commit_message=f'Upload {plan.title}').commit_url


def _check_model(folder: Path) -> dict:
    """The configuration, after checking that the weights beside it fit what it describes."""
    try:
        config = read_object(folder / 'config.json')
        name, classes = config['architecture'], config['num_classes']
        config['pretrained_cfg']['input_size']
    except (KeyError, TypeError) as error:
        raise ValueError(f'{folder / "config.json"} is not as timm writes it: {type(error).__name__} {error}') from None
    check_model(str(name))
    args = {**(config.get('model_args') or {}), 'num_classes': classes}
    check_size(name, lambda: timm.create_model(name, **args), args, from_file=True)
    model = sketch(name, **args)
    file = folder / 'model.safetensors'
    try:
        with safe_open(file, 'pt') as weights:
            found = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118 - no mapping
        quantised = read_metadata(file)
    except (SafetensorError, RuntimeError) as error:  # the second where it can't be mapped
        raise ValueError(f'{file} is not a complete safetensors file: {error}') from None
    if quantised:
        state_dict = load_checkpoint(file)
        found = {key: list(x.shape) for key, x in state_dict.items()}
        install(model, state_dict)
    expected = {key: list(x.shape) for key, x in model.state_dict().items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        raise ValueError(f'{file} does not fit config.json: {len(wrong)} tensors differ, the first is {wrong[0]}')
    return config


def _check_card(folder: Path, card: str) -> tuple[str, str | None]:
    """Title and licence."""
    try:
        if metadata := REGEX_YAML_BLOCK.match(card):
            parse_yaml(metadata[2])
        data = ModelCard(card).data
    except Exception as error:  # PyYAML's errors, and ValueError: all of them say what is wrong with the metadata
        raise ValueError(f'the metadata of {folder / "README.md"} are not valid: {error}') from None
    title = next((line[2:].strip() for line in card.splitlines() if line.startswith('# ')), folder.resolve().name)
    return title, data.license
