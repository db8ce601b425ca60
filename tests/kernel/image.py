"""What QEMU boots: Debian's kernel, the few of its modules that the guest needs, and busybox, as one small archive.

The guest's files are the host's own, so nothing but this has to be made. Packages come through apt: QEMU and busybox
are installed where they lack, the kernel is only unpacked.
"""

from __future__ import annotations

import gzip
import lzma
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "kernel"
QEMU, BUSYBOX = "qemu-system-x86_64", "busybox"
PACKAGES = {QEMU: "qemu-system-x86", BUSYBOX: "busybox-static"}
KERNEL_META_PACKAGE = "linux-image-amd64"
MODULES = ("virtio_pci", "virtio_net", "9pnet_virtio", "9p", "overlay", "xhci-pci", "vhci-hcd")
APPLETS = ("sh", "mount", "insmod", "mkdir", "chroot", "poweroff", "cat", "cut", "echo", "ip")
DIRECTORIES = ("bin", "modules", "proc", "sys", "dev", "lower", "upper", "host")
_DIRECTORY, _FILE, _LINK = 0o040755, 0o100755, 0o120777


class NoQemu(Exception):
    """This computer cannot have QEMU or Debian's kernel; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What QEMU is given to boot."""

    kernel: Path
    initramfs: Path


def prepare() -> Image:
    """Get what is missing and build the image, once.

    Raises
    ------
    NoQemu
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise NoQemu(f"the guest runs the host's own programs, so it must be x86-64 Linux, not {platform.machine()}")
    _install()
    root = _unpack_kernel()
    kernel = next((root / "boot").glob("vmlinuz-*"))
    initramfs = BUILD / "initramfs.gz"
    made_of = max(path.stat().st_mtime for path in (kernel, HERE / "init.sh", Path(__file__)))
    if not initramfs.exists() or initramfs.stat().st_mtime < made_of:
        partial = initramfs.with_suffix(".partial")
        partial.write_bytes(gzip.compress(b"".join(_archive(root)), compresslevel=1))
        partial.replace(initramfs)
    return Image(kernel=kernel, initramfs=initramfs)


def _install() -> None:
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if not missing:
        return
    names = " ".join(missing)
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise NoQemu(f"{names} cannot be installed without apt-get and root")
    _apt("update", "-qq")
    _apt("install", "-qq", "--yes", "--no-install-recommends", *missing)


def _unpack_kernel() -> Path:
    """Return the folder with Debian's kernel package unpacked in it."""
    root = BUILD / "root"
    if root.is_dir():
        return root
    if shutil.which("apt-get") is None:
        raise NoQemu("Debian's kernel cannot be fetched without apt-get")
    folder = BUILD / "package"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        package = _kernel_package()
        _apt("download", "-qq", package, cwd=folder)
    except NoQemu:
        if os.geteuid() != 0:
            raise
        _apt("update", "-qq")  # the lists are old, or were never fetched
        package = _kernel_package()
        _apt("download", "-qq", package, cwd=folder)
    unpacked = BUILD / "root.partial"
    shutil.rmtree(unpacked, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", next(folder.glob("*.deb")), unpacked], check=True)
    unpacked.replace(root)
    shutil.rmtree(folder)
    return root


def _kernel_package() -> str:
    """Return the name of the package with the kernel itself, which the meta package depends on."""
    found = subprocess.run(["apt-cache", "depends", KERNEL_META_PACKAGE], capture_output=True, text=True, check=False)
    names = re.findall(r"Depends: (linux-image-\S+)", found.stdout)
    if not names:
        raise NoQemu(f"apt knows no {KERNEL_META_PACKAGE}: this needs Debian's packages")
    return names[0]


def _apt(*arguments: str, cwd: Path | None = None) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        ["apt-get", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise NoQemu(f"apt-get {' '.join(arguments)} failed: {done.stderr.strip()[-300:]}")


def _archive(root: Path) -> Iterator[bytes]:
    """Yield the pieces of a cpio archive in the kernel's "newc" form.

    # Ref: Linux Documentation/driver-api/early-userspace/buffer-format.rst
    """
    order = list(_modules(root))
    yield from (_entry(name, _DIRECTORY, b"") for name in DIRECTORIES)
    busybox = shutil.which(BUSYBOX)
    assert busybox is not None
    yield _entry("bin/busybox", _FILE, Path(busybox).read_bytes())
    yield from (_entry(f"bin/{name}", _LINK, b"busybox") for name in APPLETS)
    yield from (_entry(f"modules/{path.name.removesuffix('.xz')}", _FILE, _plain(path)) for path in order)
    names = "".join(path.name.removesuffix(".xz") + "\n" for path in order)
    yield _entry("modules/order", _FILE, names.encode())
    yield _entry("init", _FILE, (HERE / "init.sh").read_bytes())
    yield _entry("TRAILER!!!", 0, b"")


def _entry(name: str, mode: int, content: bytes) -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(piece: bytes) -> bytes:
    return piece + bytes(-len(piece) % 4)


def _modules(root: Path) -> Iterator[Path]:
    """Yield the modules' files, each after those it depends on; what is not a file is built into the kernel."""
    files = {_module_name(path): path for path in (root / "lib" / "modules").rglob("*.ko*")}
    seen = set()

    def visit(name: str) -> Iterator[Path]:
        if name in seen or name not in files:
            return
        seen.add(name)
        depends = re.search(rb"\0depends=([^\0]*)\0", _plain(files[name]))
        for needed in depends[1].decode().split(",") if depends else ():
            yield from visit(needed.replace("-", "_"))
        yield files[name]

    for name in MODULES:
        yield from visit(name.replace("-", "_"))


def _module_name(path: Path) -> str:
    return path.name.split(".")[0].replace("-", "_")


def _plain(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content
