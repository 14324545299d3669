# shellcheck shell=bash
# Sourced by the other scripts: installs what is missing on Debian and Ubuntu, asking nothing.

# need PROGRAM PACKAGE...: remembers the packages when the program is not there.
missing=()
need() {
    local program=$1
    shift
    # fusermount3 and others live in directories that are not in every user's PATH.
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing+=("$@")
}

# install_missing: installs what was remembered.
install_missing() {
    ((${#missing[@]})) || return 0
    if ! command -v apt-get >/dev/null; then
        echo "These are missing, by their Debian names; please install them: ${missing[*]}" >&2
        return 1
    fi
    local root=()
    if ((EUID != 0)); then
        if ! command -v sudo >/dev/null; then
            echo "As root, please: apt-get install ${missing[*]}" >&2
            return 1
        fi
        root=(sudo)
    fi
    echo "Installing ${missing[*]} ..." >&2
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq update
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null
    missing=()
}

# need_rust: cargo, also when rustup put it where this shell has not looked yet.
need_rust() {
    command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    if ! command -v cargo >/dev/null; then
        echo "Rust is missing; see https://rustup.rs" >&2
        return 1
    fi
}
