//! Keeps the committed code equal to what the `.proto` files give.
//!
//! `BLESS=1 cargo test -p proto` writes it anew. Needs protoc (`make setup` installs it).

use std::{fs, path::Path};

const PROTOS: &[&str] = &[
    "containerd/types/descriptor.proto",
    "containerd/types/mount.proto",
    "containerd/services/content/v1/content.proto",
    "containerd/services/diff/v1/diff.proto",
    "containerd/services/events/v1/events.proto",
    "containerd/services/images/v1/images.proto",
    "containerd/services/introspection/v1/introspection.proto",
    "containerd/services/leases/v1/leases.proto",
    "containerd/services/snapshots/v1/snapshots.proto",
    "pouch/quota/v1/quota.proto",
    "pouch/remote/v1/remote.proto",
];

/// The first of these are types that the others import.
const TYPES: usize = 2;

#[test]
fn committed_code_is_what_the_protos_give() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let protos = here.join("protos");
    tonic_prost_build::configure()
        .out_dir(out.path())
        .btree_map(".")
        .extern_path(".containerd.types", "crate::types")
        .compile_protos(
            &PROTOS[TYPES..]
                .iter()
                .map(|p| protos.join(p))
                .collect::<Vec<_>>(),
            std::slice::from_ref(&protos),
        )
        .unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .compile_protos(
            &PROTOS[..TYPES]
                .iter()
                .map(|p| protos.join(p))
                .collect::<Vec<_>>(),
            &[protos],
        )
        .unwrap();

    let committed = here.join("src/generated");
    for entry in fs::read_dir(out.path()).unwrap().map(Result::unwrap) {
        let made = fs::read_to_string(entry.path()).unwrap();
        if made.is_empty() {
            continue;
        }
        let kept = committed.join(entry.file_name());
        if std::env::var_os("BLESS").is_some() {
            fs::write(&kept, &made).unwrap();
        }
        let text = fs::read_to_string(&kept).unwrap_or_default();
        assert!(
            text == made,
            "{} is not what the .proto files give: run `BLESS=1 cargo test -p proto`",
            kept.display()
        );
    }
}
