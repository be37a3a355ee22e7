"""Zip archives, written the same on every machine, and read as if whoever made them meant harm.

Members are stored, not deflated: the weights of a network hardly shrink, the bytes do not depend on a version of zlib,
and no bit of a member can change without its checksum (a deflated stream ends in bits that nobody reads). Deflated
archives of others are read.
"""

import errno
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgeseg.errors import EdgesegError

MAX_FILES = 1000
"""Members of an archive; a bundle has about ten, and six more for each frame protocol."""
MAX_FILE_BYTES = 1 << 30
"""Of one unpacked member; an nnU-Net of 20 M parameters has 80 MB."""
MAX_TOTAL_BYTES = 2 << 30
"""Of everything unpacked, and of the archive itself."""
MAX_RATIO = 100
"""Unpacked bytes for each byte of the archive: IR and JSON shrink to a tenth at best, deflate's limit is 1032."""
CHUNK = 1 << 20
ENCRYPTED = 0x1 | 0x40 | 0x2000
"""Flag bits of a member: encrypted, strongly encrypted, masked header."""
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What zipfile raises for an archive that is not in order, each seen when bytes of one were changed at random.

BadZipFile: checksums, headers, no zip at all. zlib.error, EOFError: a deflated stream that makes no sense, or ends.
NotImplementedError: the member's own header asks for a method or version that the directory did not name. RuntimeError:
it says "encrypted" where the directory did not. ValueError: an offset before or beyond every file, a name that is no
UTF-8 (UnicodeDecodeError). An offset that the system refuses is an OSError with EINVAL.
"""


def is_safe(name: str) -> bool:
    """Whether a relative name with forward slashes stays in its folder, and means the same on every system."""
    return not re.search(r"[\x00-\x1f\x7f\\:]", name) and all(p and p == p.rstrip(". ") for p in name.split("/"))


def write_zip(files: Mapping[str, Path], out: Path) -> None:
    """Write an archive of `files` (name in the archive -> file); its bytes depend on names and contents alone."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name)  # dated 1980-01-01
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            info.file_size = files[name].stat().st_size
            with files[name].open("rb") as source, archive.open(info, "w") as target:
                shutil.copyfileobj(source, target, CHUNK)


class Archive:
    """An open zip whose directory was checked; a context manager.

    `names` are its files. A folder that holds everything, as `zip -r` makes it, is not part of them.

    Raises:
        EdgesegError: no zip, damaged, a name that leaves the folder, a link, a name twice, an encrypted member, or more
            than the limits above. Nothing is read of the members before all of this was checked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if (size := path.stat().st_size) > MAX_TOTAL_BYTES:
            raise self.refusal(f"is larger than {MAX_TOTAL_BYTES >> 20} MB")
        with self.damage():
            self.zip = zipfile.ZipFile(path)
        try:
            self.members = self.check(size)
        except BaseException:
            self.zip.close()
            raise
        self.names = frozenset(self.members)

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.zip.close()

    def refusal(self, why: str) -> EdgesegError:
        return EdgesegError(f"{self.path}: {why}: do not use this archive")

    @contextmanager
    def damage(self) -> Iterator[None]:
        """What the standard library says of a bad archive, as one line."""
        try:
            yield
        except (*DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before the file's first byte
                raise
            raise EdgesegError(f"{self.path}: no zip archive, or a damaged one: copy it again") from None

    def check(self, size: int) -> dict[str, zipfile.ZipInfo]:
        infos = self.zip.infolist()
        if len(infos) > MAX_FILES:
            raise self.refusal(f"holds more than {MAX_FILES} files")
        if (total := sum(i.file_size for i in infos)) > min(MAX_TOTAL_BYTES, MAX_RATIO * size):
            raise self.refusal(f"its {size} bytes unpack to {total}, which no bundle does")
        found: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = info.orig_filename.removesuffix("/")  # `filename` has lost what follows a zero byte
            self.check_member(info, name)
            if not info.orig_filename.endswith("/"):
                found[name] = info
        files = [i for i in infos if not i.orig_filename.endswith("/")]
        lower = {n.casefold() for n in found}  # on other systems names that differ in case are one file
        if len(lower) != len(files) or any(str(p) in lower for n in lower for p in Path(n).parents):
            raise self.refusal("holds a name twice")
        tops = {name.partition("/")[0] for name in found}
        if len(tops) == 1 and all("/" in name for name in found):
            return {name.partition("/")[2]: info for name, info in found.items()}
        return found

    def check_member(self, info: zipfile.ZipInfo, name: str) -> None:
        if not is_safe(name):
            raise self.refusal(f"the name {name[:80]!r} leaves its folder")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise self.refusal(f"{name} is a link or no plain file")
        if info.flag_bits & ENCRYPTED:
            raise EdgesegError(f"{self.path}: {name} is encrypted: pack it without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise EdgesegError(f"{self.path}: {name} is compressed by another method than deflate: pack it again")
        if info.file_size > (MAX_FILE_BYTES if name == info.orig_filename else 0):
            raise self.refusal(f"{name[:80]} has {info.file_size} bytes, too many")

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a member; never more of it than the archive's directory said."""
        info, count = self.members[name], 0
        with self.damage():
            with self.zip.open(info) as member:
                while chunk := member.read(CHUNK):
                    if (count := count + len(chunk)) > info.file_size:
                        raise self.refusal(f"{name} is larger than the archive says")
                    yield chunk
            if count != info.file_size:
                raise EOFError

    def read(self, name: str, limit: int = CHUNK) -> bytes:
        """The content of a small member, at most `limit` bytes."""
        if self.members[name].file_size > limit:
            raise self.refusal(f"{name} has {self.members[name].file_size} bytes, too many")
        return b"".join(self.chunks(name))

    def extract(self, folder: Path) -> None:
        """Write every file below `folder`, which is empty."""
        for name in sorted(self.names):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                for chunk in self.chunks(name):
                    file.write(chunk)
