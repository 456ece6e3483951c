"""Files by local path or URI: everything that pyarrow's filesystems open (file, s3, gs, hf, hdfs, abfs).

A path without `://` is local. Credentials of object stores come from where the stores' own tools look. Files are
written whole or not at all.
"""

import io
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow
from pyarrow import fs

from pipeline.errors import DataError

WANTED = "expected a local path, or an s3, gs, hf or file URI such as hf://datasets/<owner>/<name>/<file>"
BUFFER_BYTES = 1 << 16  # small: samples of a few KB are read from anywhere in a file


def open_input(path: str | Path) -> io.BufferedReader:
    """Open a file for reading: a binary, buffered, seekable file object that also iterates over lines.

    Raises:
        FileNotFoundError: there is no such file; the message names it.
        DataError: the URI is malformed, or its kind of store is not supported.
    """
    return io.BufferedReader(_open(path), BUFFER_BYTES)


def read_buffer(path: str | Path) -> pyarrow.Buffer:
    """All bytes of a file. For a local file this is a view of the page cache, which processes share at no memory cost.

    Raises: as `open_input`.
    """
    with _open(path) as file:
        if not is_local(path):
            return file.read_buffer()
    with pyarrow.memory_map(_locate(path)[1]) as file:
        return file.read_buffer()


def exists(path: str | Path) -> bool:
    """Whether a file or folder of this name exists. Raises `DataError` as `open_input`."""
    return _info(path).type != fs.FileType.NotFound


def is_file(path: str | Path) -> bool:
    """Whether a file, not a folder, of this name exists. Raises `DataError` as `open_input`."""
    return _info(path).type == fs.FileType.File


def file_state(path: str | Path) -> dict:
    """`size` (bytes) and `modified` (ns since 1970; None if the store does not say): they change with the content.

    Raises: as `open_input`.
    """
    info = _info(path)
    if info.type != fs.FileType.File:
        raise FileNotFoundError(f"{path}: no such file{_from_here(path)}")
    return {"size": info.size, "modified": info.mtime_ns}


def list_files(folder: str | Path, suffixes: Sequence[str]) -> list[str]:
    """The paths of the files directly in a folder whose names end in one of `suffixes`, sorted by name.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: as `open_input`.
    """
    system, inner = _locate(folder)
    if _info(folder).type != fs.FileType.Directory:
        raise FileNotFoundError(f"{folder}: no such folder{_from_here(folder)}")
    found = system.get_file_info(fs.FileSelector(inner))
    names = sorted(info.base_name for info in found if info.type == fs.FileType.File)
    return [join(folder, name) for name in names if name.endswith(tuple(suffixes))]


def folder_names(folder: str | Path) -> list[str]:
    """The names of the folders directly in a folder, sorted. Raises: as `list_files`."""
    system, inner = _locate(folder)
    if _info(folder).type != fs.FileType.Directory:
        raise FileNotFoundError(f"{folder}: no such folder{_from_here(folder)}")
    return sorted(i.base_name for i in system.get_file_info(fs.FileSelector(inner)) if i.type == fs.FileType.Directory)


def is_empty_folder(folder: str | Path) -> bool:
    """Whether a folder is empty or missing. Raises `DataError` as `open_input`."""
    system, inner = _locate(folder)
    return not system.get_file_info(fs.FileSelector(inner, allow_not_found=True))


def remove_file(path: str | Path) -> None:
    """Remove a file. Raises `DataError` as `open_input`."""
    system, inner = _locate(path)
    system.delete_file(inner)


def remove_folder(folder: str | Path) -> None:
    """Remove a folder and everything in it. Raises `DataError` as `open_input`."""
    system, inner = _locate(folder)
    system.delete_dir(inner)


def copy_folder(source: str | Path, target: str | Path) -> None:
    """Copy everything in `source` into `target`, which is created. Raises `DataError` as `open_input`."""
    (source_system, source_inner), (system, inner) = _locate(source), _locate(target)
    system.create_dir(inner, recursive=True)
    fs.copy_files(source_inner, inner, source_system, system)


def copy_files(
    source: str | Path,
    target: str | Path,
    wanted: Callable[[Collection[str]], set[str]],
    copied: Callable[[], None] = lambda: None,
) -> None:
    """Copy the files directly in `source` whose names `wanted` selects into `target`, which is created.

    `copied` is called after each file.

    Raises:
        DataError: as `open_input`.
    """
    (source_system, source_inner), (system, inner) = _locate(source), _locate(target)
    names = [i.base_name for i in source_system.get_file_info(fs.FileSelector(source_inner)) if i.is_file]
    system.create_dir(inner, recursive=True)
    for name in sorted(wanted(names)):
        fs.copy_files(f"{source_inner}/{name}", f"{inner}/{name}", source_system, system)
        copied()


def make_folder(folder: str | Path) -> None:
    """Create a folder and its parents. Object stores have no folders, so there this does next to nothing."""
    system, inner = _locate(folder)
    system.create_dir(inner, recursive=True)


def join(folder: str | Path, name: str) -> str:
    return f"{str(folder).rstrip('/')}/{name}"


def is_local(path: str | Path) -> bool:
    return "://" not in str(path) or str(path).startswith("file://")


def local_path(path: str | Path) -> Path:
    """The path of a local file or folder, given as a path or a file URI."""
    return Path(str(path).removeprefix("file://"))


@contextmanager
def atomic_output(path: str | Path) -> Iterator[Path]:
    """Yield a local path to write to. The file becomes `path` when the block ends, and is dropped if the block fails.

    A local file is renamed. Any other is uploaded in one go and appears in its store once it is complete.

    Raises:
        DataError: as `open_input`.
    """
    system, inner = _locate(path)
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            yield (partial := Path(folder) / "partial")
            fs.copy_files(str(partial), inner, fs.LocalFileSystem(), system)
        return
    partial = Path(f"{inner}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else a crash of the machine may keep the new name and lose the content
        partial.replace(inner)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file, replacing an existing one. Raises `DataError` as `open_input`."""
    with atomic_output(path) as partial:
        partial.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole UTF-8 file, replacing an existing one. Raises `DataError` as `open_input`."""
    write_bytes(path, text.encode())


def _open(path: str | Path) -> pyarrow.NativeFile:
    system, inner = _locate(path)
    if _info(path).type != fs.FileType.File:
        raise FileNotFoundError(f"{path}: no such file{_from_here(path)}")
    return system.open_input_file(inner)


def _locate(path: str | Path) -> tuple[fs.FileSystem, str]:
    path = str(path)
    if "://" not in path:
        return fs.LocalFileSystem(), path
    try:
        return fs.FileSystem.from_uri(path)
    except (ValueError, ImportError) as error:  # pyarrow's own errors are ValueErrors; hf needs huggingface_hub
        raise DataError(f"{path}: {error}; {WANTED}") from None


def _info(path: str | Path) -> fs.FileInfo:
    """The type, size and modification time of a path.

    Raises:
        DataError: the path is malformed.
        OSError: the store cannot be reached.
    """
    system, inner = _locate(path)
    try:
        return system.get_file_info(inner)
    except (ValueError, NotImplementedError) as error:
        raise DataError(f"{path}: {error}; {WANTED}") from None
    except OSError:
        raise
    except Exception as error:  # the hf filesystem is Python code and raises its client's errors
        raise ConnectionError(
            f"{path} cannot be reached ({type(error).__name__}: {error}); try again, or download it and give the local "
            "path"
        ) from None


def _from_here(path: str | Path) -> str:
    """For messages about a relative path: the folder it was looked for in."""
    return "" if "://" in str(path) or Path(path).is_absolute() else f" (from {Path.cwd()})"
