"""Tools that tests use beyond this machine's own C compiler."""

from __future__ import annotations

#: The Debian packages that bring each tool. `.ci/run` installs them.
PACKAGES = {
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "arm-linux-gnueabihf-gcc": "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross",
    "arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
    "clang": "clang",
    "cmake": "cmake",
    "qemu-aarch64": "qemu-user",
    "qemu-arm": "qemu-user",
}
