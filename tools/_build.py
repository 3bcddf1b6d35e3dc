"""What pyproject.toml can't tell setuptools: wheels carry configs and scripts where `mim` looks for them."""

from pathlib import Path

from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Build of the package, with `configs/`, the OpenMMLab scripts and `model-index.yml` in `visionssm/.mim/`.

    An editable install leaves them where they are.
    """

    def _copies(self) -> dict[str, str]:
        files = [path for path in Path('configs').rglob('*') if path.suffix in ('.py', '.yaml', '.yml')]
        files += [*Path('tools').glob('*_mm.py'), Path('tools/make_digit_scenes.py'), Path('model-index.yml')]
        target = Path(self.build_lib, 'visionssm', '.mim')
        return {path.as_posix(): (target / path).as_posix() for path in sorted(files)}

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._copies().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return super().get_outputs(include_bytecode) + ([] if self.editable_mode else list(self._copies().values()))

    def get_output_mapping(self) -> dict[str, str]:
        return super().get_output_mapping() | ({} if self.editable_mode else {b: a for a, b in self._copies().items()})

    def get_source_files(self) -> list[str]:  # what an sdist needs
        return [*super().get_source_files(), *self._copies(), 'tools/_build.py']
