"""Where DICOM lies: files of a folder, a DICOMDIR, or a zip archive (which is not unpacked)."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO, cast

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from napari_sam2.io.volume import ReadError

_MAX_RATIO = 200  # scans shrink 2 to 50 times; bombs a thousandfold
_SMALL = 16 << 20  # bytes that do no harm, however well they were packed


@dataclass(frozen=True)
class Source:
    """A file on disk, or a member of a zip archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path} ({self.member})"

    @property
    def name(self) -> str:
        return PurePath(self.member or self.path).name

    @property
    def folder(self) -> PurePath:
        """That it lies in, of an archive's member within the archive."""
        return PurePath(self.member or self.path).parent

    def open(self) -> BinaryIO:
        """The file, open for reading; a member of an archive in memory."""
        if self.member is None:
            return self.path.open("rb")
        with zipfile.ZipFile(self.path) as archive:
            return io.BytesIO(archive.read(self.member))

    @property
    def size(self) -> int:
        """In bytes, unpacked."""
        if self.member is None:
            return self.path.stat().st_size
        with zipfile.ZipFile(self.path) as archive:
            return archive.getinfo(self.member).file_size


def is_archive(path: Path) -> bool:
    """Whether the file is a zip archive, or is called one."""
    with path.open("rb") as file:
        return path.suffix.lower() == ".zip" or file.read(4) == b"PK\3\4"


def is_dicomdir(path: Path) -> bool:
    """Whether the file is the table of contents of a DICOM medium."""
    if path.name.upper() == "DICOMDIR":
        return True
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
        return meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage
    except Exception:  # pydicom raises many kinds on files that are something else
        return False


def open_all(path: Path) -> Iterator[tuple[Source, BinaryIO, int]]:
    """Every file that may be a part: of a folder with its subfolders, a DICOMDIR, a zip archive, or
    the folder that one file lies in; each with its size in bytes, and open while it is looked at.

    Raises: ReadError for an archive or DICOMDIR that is damaged, leads out of its folder or is
    suspiciously large.
    """
    if path.is_dir():
        files = sorted(path.rglob("*"))
    elif is_archive(path):
        yield from _open_archive(path)
        return
    elif is_dicomdir(path):
        files = _listed_files(path)
    else:
        files = sorted(path.parent.iterdir())
    for one in files:
        if one.is_file():
            with one.open("rb") as file:
                yield Source(one), file, one.stat().st_size


def _open_archive(path: Path) -> Iterator[tuple[Source, BinaryIO, int]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
            _check_archive(path, members)
            for member in sorted(members, key=lambda m: m.filename):
                with archive.open(member) as file:
                    source = Source(path, member.filename)
                    yield source, cast(BinaryIO, file), member.file_size
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise ReadError(
            f"The archive {path} cannot be unpacked ({error}); copy or download it again."
        ) from error


def _check_archive(path: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in "".join(name.parts[:1]):
            raise ReadError(
                f"The archive {path} is not safe: its member {member.filename} leads out of the "
                "archive's own folder."
            )
        if member.flag_bits & 1:
            raise ReadError(f"The archive {path} is encrypted; unpack it and open the folder.")
    total = sum(member.file_size for member in members)
    if _is_bomb(total, path.stat().st_size):
        raise ReadError(
            f"{path} is not safe: it would unpack to more than {_MAX_RATIO} times its size."
        )


def _listed_files(path: Path) -> list[Path]:
    """The files that a DICOMDIR lists and that are there."""
    try:
        records = pydicom.dcmread(path).get("DirectoryRecordSequence") or []
        listed = [record.get("ReferencedFileID") for record in records]
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise ReadError(f"{path} is damaged; open the folder that it lies in instead.") from error
    root = path.parent.resolve()
    files = []
    for parts in listed:
        if not parts:
            continue
        names = [parts] if isinstance(parts, str) else [str(part) for part in parts]
        for given in (names, [name.lower() for name in names]):  # discs copied by some systems
            file = root.joinpath(*given).resolve()
            if not file.is_relative_to(root):
                raise ReadError(
                    f"{path} is not safe: it lists the file {'/'.join(names)}, which lies outside "
                    "its folder."
                )
            if file.is_file():
                files.append(file)
                break
    if not files:
        raise ReadError(
            f"None of the files that {path} lists is there; copy the whole disc, then open it "
            "again."
        )
    return files


def check_inflated_size(source: Source, file: BinaryIO, size: int) -> None:
    """Refuse a file of `size` bytes in the deflated transfer syntax that would fill the memory.

    Raises: ReadError.
    """
    file.seek(0)
    start = file.read(1024)
    if DeflatedExplicitVRLittleEndian.encode() not in start:
        return
    file.seek(144 + int.from_bytes(start[140:144], "little"))  # behind the file meta information
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total, data = 0, file.read(1 << 16)
    while data:
        total += len(inflater.decompress(data, 1 << 20))
        if _is_bomb(total, size):
            raise ReadError(
                f"{source} is not safe: it would unpack to more than {_MAX_RATIO} times its size."
            )
        data = inflater.unconsumed_tail or file.read(1 << 16)


def _is_bomb(unpacked: int, packed: int) -> bool:
    return unpacked > _SMALL and unpacked > _MAX_RATIO * packed
