"""Where a study's files are: one folder that every node sees, or a bucket and a folder beside the
driver.

With a bucket (`storage_path` s3://..., or another scheme that pyarrow knows) workers keep their
checkpoints there; the run folder stays on the driver's disk and is copied there by `mirror`.
Credentials and endpoints come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...).
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_search.errors import InputError
from vgg_search.storage.folder import is_remote, replacing

if TYPE_CHECKING:  # at run time when it is needed: it takes a second to import
    from pyarrow.fs import FileInfo, FileSystem


class StorageError(InputError):
    """A storage that cannot be reached, or is in use; one line."""


@contextmanager
def _errors_of(kind: type[Exception] | tuple[type[Exception], ...], fault: str) -> Iterator[None]:
    """Turns an error of this kind into a StorageError of one line."""
    try:
        yield
    except StorageError:
        raise
    except kind as error:
        text = str(error).split(". Detail:")[0].splitlines()[0]  # pyarrow's are long
        raise StorageError(f"{fault}: {text[:300]}") from error


@cache
def _file_system(root: str) -> "tuple[FileSystem, str]":
    from pyarrow.fs import FileSystem

    file_system, path = FileSystem.from_uri(root)
    return file_system, path


@dataclass(frozen=True)
class Place:
    """The files of a study as every node reaches them; it travels to workers.

    `root` is an absolute folder or a URI. Names are relative to it. Raises StorageError.
    """

    root: str

    @classmethod
    def of(cls, storage_path: str, name: str) -> "Place":
        if is_remote(storage_path):
            return cls(f"{storage_path.rstrip('/')}/{name}")
        return cls(str(Path(storage_path, name).absolute()))

    @property
    def remote(self) -> bool:
        return is_remote(self.root)

    def _used(self) -> AbstractContextManager[None]:
        """For what a disk refuses: it is full, or gone, or its server is."""
        return _errors_of(OSError, f"{self.root} cannot be used")

    def _reached(self) -> AbstractContextManager[None]:
        """For whatever pyarrow raises."""
        return _errors_of((OSError, ValueError), f"{self.root} cannot be reached")

    def make(self) -> None:
        """The folder itself, which `writing` never makes: a study that was removed stays so."""
        if not self.remote:
            with self._used():
                Path(self.root).mkdir(parents=True)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local folder; what the block leaves there is then in folder `name`.

        A file appears whole or not at all: here by the block's own doing, in a bucket by its. An
        OSError of the block is the storage's, and so is it that `root` was removed.
        """
        with self._used():
            if not self.remote:
                os.stat(self.root)
                yield Path(self.root, name)
                return
            with tempfile.TemporaryDirectory(prefix="vgg_search-") as scratch:
                yield Path(scratch)
                # A card, which makes a folder a model, is written last and goes last
                for file in sorted(Path(scratch).iterdir(), key=lambda f: f.stat().st_mtime_ns):
                    self.put(file, f"{name}/{file.name}")

    @contextmanager
    def reading(self, name: str) -> Iterator[Path | None]:
        """File `name` as a local one, None if there is none. An OSError of the block is the
        storage's."""
        with self._used():
            if not self.remote:
                file = Path(self.root, name)
                yield file if file.exists() else None
                return
            with tempfile.TemporaryDirectory(prefix="vgg_search-") as scratch:
                yield self.get(name, Path(scratch, "file"))

    def put(self, file: Path, name: str) -> None:
        """Copy a local file to `name`."""
        with self._reached():
            file_system, path = _file_system(self.root)
            content = file.read_bytes()  # in one write: it is whole before it is seen
            with file_system.open_output_stream(f"{path}/{name}") as stream:
                stream.write(content)

    def get(self, name: str, file: Path) -> Path | None:
        """Copy `name` to a local file, whole or not at all; None if there is none."""
        with self._reached():
            file_system, path = _file_system(self.root)
            try:
                with (
                    file_system.open_input_stream(f"{path}/{name}") as stream,
                    replacing(file) as temporary,
                    temporary.open("wb") as out,
                ):
                    shutil.copyfileobj(stream, out, 2**20)
            except FileNotFoundError:
                return None
        return file

    def files(self, name: str = "") -> "dict[str, FileInfo]":
        """The files under folder `name`, by name relative to the root. Keys of a bucket may be any
        text: such as lead out of a folder (../x, /x) are nobody's."""
        from pyarrow.fs import FileSelector, FileType

        with self._reached():
            file_system, path = _file_system(self.root)
            where = f"{path}/{name}".rstrip("/")
            selector = FileSelector(where, allow_not_found=True, recursive=True)
            infos = file_system.get_file_info(selector)
        files = {f.path.removeprefix(f"{path}/"): f for f in infos if f.type == FileType.File}
        return {n: f for n, f in files.items() if not {"", ".", ".."} & set(n.split("/"))}

    def remove(self, name: str) -> None:
        """Remove a file, or a folder and what is in it; it need not be there."""
        if not self.remote:
            shutil.rmtree(Path(self.root, name), ignore_errors=True)
            return
        files = self.files(name) or [name]
        with self._reached():
            file_system, path = _file_system(self.root)
            for file in files:
                with suppress(FileNotFoundError):
                    file_system.delete_file(f"{path}/{file}")
            # Empty keys mark its folders. Not every server takes their removal as pyarrow asks for
            # it (all at once, without Content-MD5), and they cost nothing
            with suppress(OSError):
                file_system.delete_dir(f"{path}/{name}".rstrip("/"))
