"""Facts about the families: papers and repositories."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        title: Name in prose.
        pattern: Wildcards of its registered names.
        paper: Title, arXiv number and where it was published.
        code: Official repository, the commit of it that was read, and its licence.
    """

    title: str
    pattern: str
    paper: tuple[str, str, str]
    code: tuple[str, str, str]


FAMILIES = {
    'vmamba': Family(
        title='VMamba',
        pattern='vmamba_*',
        paper=('VMamba: Visual State Space Model', '2401.10166', 'NeurIPS 2024'),
        code=('https://github.com/MzeroMiko/VMamba', 'read at 2ed52ead', 'MIT'),
    ),
    'vim': Family(
        title='Vision Mamba (Vim)',
        pattern='vim_*',
        paper=(
            'Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model',
            '2401.09417',
            'ICML 2024',
        ),
        code=('https://github.com/hustvl/Vim', 'read at dd0358ad', 'Apache-2.0'),
    ),
    'msvmamba': Family(
        title='MSVMamba',
        pattern='msvmamba*',
        paper=('Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model', '2405.14174', 'NeurIPS 2024'),
        code=('https://github.com/YuHengsss/MSVMamba', 'read at c3940191, its branch v2 at fca4a391', 'none stated'),
    ),
    'groupmamba': Family(
        title='GroupMamba',
        pattern='groupmamba_*',
        paper=('GroupMamba: Efficient Group-Based Visual State Space Model', '2407.13772', 'CVPR 2025'),
        code=('https://github.com/Amshaker/GroupMamba', 'read at c1800ed2', 'MIT'),
    ),
    'plainmamba': Family(
        title='PlainMamba',
        pattern='plainmamba_*',
        paper=('PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition', '2403.17695', 'BMVC 2024'),
        code=('https://github.com/ChenhongyiYang/PlainMamba', 'read at 0975a1d', 'Apache-2.0'),
    ),
    'lbvim': Family(
        title='LBVim (LBMamba)',
        pattern='lbvim_*',
        paper=('LBMamba: Locally Bi-directional Mamba', '2506.15976', 'arXiv 2025'),
        code=('https://github.com/cvlab-stonybrook/LBMamba', 'read at 5215551', 'none stated'),
    ),
    'a2mamba': Family(
        title='A2Mamba',
        pattern='a2mamba_*',
        paper=('A2Mamba: Attention-augmented State Space Models for Visual Recognition', '2507.16624', 'arXiv 2025'),
        code=('https://github.com/LMMMEng/A2Mamba', '', 'none stated'),
    ),
    'mambaout': Family(
        title='MambaOut',
        pattern='mambaout_*',
        paper=('MambaOut: Do We Really Need Mamba for Vision?', '2405.07992', 'CVPR 2025'),
        code=('https://github.com/yuweihao/MambaOut', '', 'Apache-2.0'),
    ),
}


def family_of(model: str) -> str | None:
    """Key of the family of a registered name, with or without tag and `test_`; None if it is no family of ours."""
    name = model.removeprefix('test_')
    return next((key for key in FAMILIES if name.startswith(key)), None)
