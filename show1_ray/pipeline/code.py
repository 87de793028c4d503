"""The user's code (`--code`), imported here and on stations from what was given, and from nowhere else.

Its Python files travel with the stages that use them, so that nodes need not have them, and are imported from memory
under the paths that they have on the machine where they were given: a traceback names the user's own file and line.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import invalidate_caches
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from show1_ray.errors import ConfigError, one_line, shown

MOST_FILES = 2000
MOST_BYTES = 16 * 2**20
LEFT_OUT = {"__pycache__", "node_modules", "venv"}
"""Folders that are skipped, as are those whose names begin with a dot."""


@dataclass(frozen=True)
class Code:
    """Python files that somebody lets a job run.

    Attributes:
        given: as it was given.
        root: the folder that holds them, on the machine where it was given.
        files: path below `root` → source.
    """

    given: str
    root: str
    files: tuple[tuple[str, bytes], ...]

    @classmethod
    def at(cls, given: str | Path) -> Code:
        """The code of a file, of a folder (a package, or modules that lie in it), or of a module that Python finds.

        Raises:
            ConfigError: there is none, or it is too large.
        """
        try:
            return cls._at(given)
        except ConfigError:
            raise
        except (OSError, RuntimeError, ValueError) as error:  # ~nobody, a loop of links, names that no file can have
            raise ConfigError(f"--code {shown(str(given))}: cannot be opened: {one_line(error)}") from None

    @classmethod
    def _at(cls, given: str | Path) -> Code:
        path = Path(given).expanduser()
        if not str(given).strip() or not path.exists():
            path = _found(str(given))
        path = path.resolve()
        if path.is_file():
            if path.suffix != ".py" or not path.stem.isidentifier():
                raise ConfigError(f"--code {given}: not a Python module: give it a valid module name that ends in .py")
            return cls(str(given), str(path.parent), ((path.name, _read(given, path)),))
        root = path.parent if (path / "__init__.py").is_file() else path
        places = _modules_below(path)
        if not places:
            raise ConfigError(f"--code {given}: there is no Python file in it")
        if len(places) > MOST_FILES or sum(place.stat().st_size for place in places) > MOST_BYTES:
            raise ConfigError(
                f"--code {given}: more than {MOST_FILES} Python files or {MOST_BYTES >> 20} MiB; "
                "give the file or the folder that has the stages"
            )
        return cls(str(given), str(root), tuple((str(one.relative_to(root)), _read(given, one)) for one in places))

    @cached_property
    def digest(self) -> str:
        """Identifies the files by name and content: "sha256:" and 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, source in self.files:
            digest.update(f"{name}\0{len(source)}\0".encode() + source)
        return f"sha256:{digest.hexdigest()[:16]}"

    @cached_property
    def modules(self) -> Mapping[str, str]:
        """Names of its modules → their paths below `root`; of a folder without `__init__.py` ""."""
        found: dict[str, str] = {}
        for path, _ in self.files:
            *folders, last = Path(path).with_suffix("").parts
            name = ".".join(folders if last == "__init__" else [*folders, last])
            found[name] = path
            for length in range(1, len(folders) + 1):
                found.setdefault(".".join(folders[:length]), "")
        return found

    def has(self, filename: str) -> bool:
        """Whether a path of a traceback is one of its files."""
        return any(str(Path(self.root, name)) == filename for name, _ in self.files)

    def install(self) -> None:
        """Lets this process import its modules; in place of those of code that was installed before."""
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)
        if _FINDER.code is not None and _FINDER.code.digest == self.digest and _FINDER.code.root == self.root:
            return
        for name, module in list(sys.modules.items()):
            if isinstance(getattr(module, "__loader__", None), _Loader):
                del sys.modules[name]
        _FINDER.code = self
        invalidate_caches()

    def forget(self, module: str) -> None:
        """Lets a module be imported anew that somebody imported from its file before: that may have changed since."""
        found = sys.modules.get(module)
        place = self.modules.get(module)
        if found is None or not place or is_of_code(found):
            return
        if getattr(found, "__file__", None) and os.path.realpath(str(found.__file__)) == str(Path(self.root, place)):
            del sys.modules[module]

    def write(self, folder: Path) -> None:
        """Writes the files below a folder, where `place` is what to give as `--code`."""
        for name, source in self.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(source)

    @property
    def place(self) -> str:
        """Below the root: the file, the package's folder, or "." for modules that lie in a folder."""
        tops = {Path(name).parts[0] for name, _ in self.files}
        top = next(iter(tops))
        is_one = len(self.files) == 1 and self.files[0][0] == top
        return top if is_one or (len(tops) == 1 and f"{top}/__init__.py" in dict(self.files)) else "."


class _Loader(SourceLoader):
    """A module of `Code`, from memory."""

    def __init__(self, code: Code, path: str) -> None:
        self.code, self.path = code, path

    def get_filename(self, fullname: str) -> str:
        return str(Path(self.code.root, self.path))

    def get_data(self, path: str | bytes) -> bytes:
        wanted = str(Path(os.fsdecode(path)).relative_to(self.code.root))
        for name, source in self.code.files:
            if name == wanted:
                return source
        raise OSError(f"{os.fsdecode(path)}: no file of --code {self.code.given}")


class _Finder(MetaPathFinder):
    """Finds the modules of the code that is installed in this process."""

    code: Code | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self.code is None or fullname.partition(".")[0] in sys.stdlib_module_names:
            return None
        place = self.code.modules.get(fullname)
        if place is None:
            return None
        if not place:
            return ModuleSpec(fullname, None, is_package=True)
        is_package = Path(place).name == "__init__.py"
        return spec_from_loader(fullname, _Loader(self.code, place), is_package=is_package)


_FINDER = _Finder()


class Portable:
    """A dataclass with a field `code` that takes its code along where it is pickled: classes are found by name."""

    def __reduce__(self) -> Any:
        """Pickled in two layers: the code is installed before the rest is read."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "code"}  # type: ignore[arg-type]
        return _unpacked, (type(self), getattr(self, "code", None), pickle.dumps(values))


def is_of_code(module: ModuleType) -> bool:
    """Whether a module is of the code that is installed."""
    spec = module.__spec__
    return spec is not None and (isinstance(spec.loader, _Loader) and spec.loader.code.digest == _digest_installed())


def _digest_installed() -> str | None:
    return None if _FINDER.code is None else _FINDER.code.digest


def _unpacked(kind: Any, code: Code | None, values: bytes) -> Any:
    if code is not None:
        code.install()
    return kind(**pickle.loads(values), code=code)


def _found(given: str) -> Path:
    """The file or folder of a module that Python finds, of its package if it is in one."""
    top = given.partition(".")[0]
    try:
        spec = find_spec(top) if all(part.isidentifier() for part in given.split(".")) else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin in (None, "built-in", "frozen") or not Path(str(spec.origin)).is_file():
        raise ConfigError(f"--code {given}: no such file or folder, and no module of that name")
    origin = Path(str(spec.origin))
    return origin.parent if origin.name == "__init__.py" else origin


def _modules_below(folder: Path) -> list[Path]:
    """Python files whose names and folders' names can be imported."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and path.name.isidentifier() and path.name not in LEFT_OUT:
            found += _modules_below(path)
        elif path.suffix == ".py" and path.stem.isidentifier() and path.is_file():
            found.append(path)
        if len(found) > MOST_FILES:
            break
    return found


def _read(given: str | Path, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--code {given}: {path} cannot be read: {error.strerror}") from None
