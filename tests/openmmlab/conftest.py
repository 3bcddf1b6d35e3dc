import visionssm.openmmlab  # noqa: F401  before anything imports mmdet or mmseg
