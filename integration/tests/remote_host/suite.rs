//! containerd's 21 cases: what no store has is a plain overlay.

use integration::{
    conformance::{CASES, DirectoryRename, Target},
    original_suite,
    snapshotter::{Setup, Snapshotter},
    store::Store,
};

/// With a store that never answers: nothing here is in one.
fn start(store: &Store) -> Snapshotter {
    let config = store.config("127.0.0.1:9");
    Snapshotter::start(Setup::remote(&config).unwrap()).unwrap()
}

/// What the suite is told: overlay cannot rename directories of lower layers.
fn target(snapshotter: &Snapshotter) -> Target {
    Target {
        directory_rename: DirectoryRename::LeftOut,
        ..snapshotter.target()
    }
}

#[test]
fn it_conforms() {
    let store = Store::with_images(&[integration::images::Image::Busybox]).unwrap();
    let snapshotter = start(&store);
    let target = target(&snapshotter);
    let failures: Vec<_> = CASES
        .iter()
        .filter_map(|case| Some((case.name, format!("{:#}", case.run(&target).err()?))))
        .collect();
    assert!(failures.is_empty(), "{failures:#?}");
    snapshotter.finish().unwrap();
}

#[test]
fn containerd_s_own_suite_passes() {
    let store = Store::with_images(&[integration::images::Image::Busybox]).unwrap();
    let snapshotter = start(&store);
    original_suite::passes(&target(&snapshotter)).unwrap();
    snapshotter.finish().unwrap();
}
