#!/usr/bin/env bash
# Builds every shipped binary, or those that are named, against musl, static and non-PIE, for
# kernels from 2.6.32 (snapshotter-quota wants overlayfs, so 3.18 at least).
#
# Usage: static-build.sh OUT_DIR [BINARY...]
#
# With a rustup that has the musl target, that is used. Else Debian's own Rust (packages
# rustc-web cargo-web rust-web-src musl-tools) builds std from source. Static glibc is no
# substitute: its fstat() fails on a real 2.6.32 (AT_EMPTY_PATH came with 2.6.39).
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:?usage: static-build.sh OUT_DIR [BINARY...]}
tuple=x86_64-unknown-linux-musl
binaries=("${@:2}")
[ ${#binaries[@]} -gt 0 ] || binaries=(containerd-shim-runlxc-v2 runlxc runlxc-init snapshotter-quota)
flags="-C target-feature=+crt-static -C relocation-model=static -C panic=abort"
mkdir -p "$out"
out=$(realpath "$out")

arguments=(build --release --locked --target "$tuple" --target-dir "$out/build")
for binary in "${binaries[@]}"; do arguments+=(--bin "$binary"); done

if rustup target list --installed 2>/dev/null | grep -qx "$tuple"; then
    RUSTFLAGS=$flags cargo "${arguments[@]}"
else
    missing=$(for p in rustc-web cargo-web rust-web-src musl-tools; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q ' installed$' || echo "$p"
    done)
    if [ -n "$missing" ]; then
        apt-get update -qq
        # shellcheck disable=SC2086 # one word per package
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
    fi
    # gcc's libgcc_eh serves as libunwind; it asks for _dl_find_object, which musl has not.
    # Answering -1 makes it walk the program headers as it did before glibc 2.35.
    glue=$out/glue
    mkdir -p "$glue"
    echo 'int _dl_find_object(void *pc, void *result) { (void)pc; (void)result; return -1; }' >"$glue/find.c"
    musl-gcc -c -O2 "$glue/find.c" -o "$glue/find.o"
    cp "$(gcc -print-file-name=libgcc_eh.a)" "$glue/libunwind.a"
    ar r "$glue/libunwind.a" "$glue/find.o"
    RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc \
        RUSTFLAGS="$flags -C linker=musl-gcc -C link-self-contained=no -L native=$glue \
-C link-arg=-Wl,--start-group -C link-arg=$glue/libunwind.a -C link-arg=-lc -C link-arg=-Wl,--end-group" \
        /usr/bin/cargo "${arguments[@]}" -Zbuild-std=std,panic_abort
fi

for binary in "${binaries[@]}"; do
    install -m 0755 "$out/build/$tuple/release/$binary" "$out/$binary"
    file=$(LC_ALL=C readelf -h "$out/$binary" | sed -n 's/ *Type: *//p')
    printf '%-28s %9d bytes  %s\n' "$binary" "$(stat -c %s "$out/$binary")" "$file"
done
