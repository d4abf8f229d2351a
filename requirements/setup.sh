#!/usr/bin/env bash
# Makes .venv with the pinned packages and this project in it, and installs the system libraries
# that Qt and OpenGL need where it may. Quick when there is nothing to do.
#
# PYTHON=/path/to/python3         the Python to make .venv from (3.11 or newer)
# SKIP_SYSTEM_PACKAGES=1          go on although system libraries are missing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX PIP_USER PIP_TARGET PIP_PREFIX

# Qt's window system libraries, a software OpenGL, and a virtual screen for machines without one.
SYSTEM_PACKAGES=(
    xvfb xauth libegl1 libgl1 libgl1-mesa-dri libxkbcommon-x11-0 libdbus-1-3 libxcb-cursor0
    libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0 libxcb-shape0
    libxcb-xinerama0 libxcb-xkb1 libxcb-util1 libglib2.0-0 libfontconfig1
)

say() { printf '%s\n' "$*" >&2; }
stop() { say "$@"; exit 1; }
is_debian() { command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; }
is_root() { [ "$(id -u)" = 0 ]; }

apt_install() {
    say "Installing the system packages: $*"
    apt-get update -qq || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        stop "apt-get could not install them. Try by hand: apt-get install $*"
}

# Newer releases call some of these NAMEt64.
has_package() {
    local states
    states=$(dpkg-query -W -f '${db:Status-Status}\n' "$1" "$1t64" 2>/dev/null || true)
    grep -qx installed <<<"$states"
}

install_system_packages() {
    [ "$(uname -s)" = Linux ] && [ -z "${SKIP_SYSTEM_PACKAGES:-}" ] || return 0
    if ! is_debian; then
        command -v Xvfb >/dev/null || [ -n "${DISPLAY:-}" ] ||
            say "There is no screen and no Xvfb here, so windows cannot open. Install it first, for" \
                "example: sudo dnf install xorg-x11-server-Xvfb mesa-libEGL xcb-util-cursor"
        return 0
    fi
    local missing=() package
    for package in "${SYSTEM_PACKAGES[@]}"; do
        has_package "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    is_root || stop "Qt and OpenGL need system libraries that are missing here. Install them, then" \
        "run this again (or set SKIP_SYSTEM_PACKAGES=1 to go on without):
    sudo apt-get install -y ${missing[*]}"
    apt_install "${missing[@]}"
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The versions are pinned on 3.11, so that one is taken where there is a choice.
find_python() {
    local candidate candidates=${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3 python}
    for candidate in $candidates; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    stop "napari-sam2 needs Python 3.11 or newer, and none of these is: $candidates." \
        "Install one, or name one: make test PYTHON=/path/to/python3.11"
}

make_environment() {
    local python version
    python=$(find_python)
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
        is_debian && is_root || stop "$version here cannot make environments. Install what it" \
            "lacks, then run this again: sudo apt-get install -y $version-venv"
        apt_install "$version-venv"
    fi
    rm -rf .venv
    "$python" -m venv .venv
}

install_packages() {
    # What the environment was made from; the folder too, because an environment cannot be moved.
    local wanted
    wanted=$(pwd; cat requirements/pinned.txt requirements/setup.sh pyproject.toml | cksum)
    is_new_enough .venv/bin/python || make_environment
    [ "$(cat .venv/made-from 2>/dev/null)" != "$wanted" ] || return 0
    say "Installing the pinned Python packages into .venv; the first time takes some minutes."
    .venv/bin/python -m pip install -r requirements/pinned.txt
    .venv/bin/python -m pip install --no-deps --no-build-isolation -e .
    printf '%s\n' "$wanted" >.venv/made-from
}

install_system_packages
install_packages
