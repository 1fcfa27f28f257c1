//! Many layers that say all a layer can say, and what the result must look like from inside.

use super::layer::{Content, Device, Entry, Layer};

/// Layers that only count: overlayfs must stack them all.
const PLAIN_LAYERS: u32 = 30;

/// `VFS_CAP_REVISION_2`, effective, permitted `CAP_NET_BIND_SERVICE`.
const NET_BIND_CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Longer than the hundred bytes that the oldest tar header has room for.
const LONG: &str = "a-name-that-is-longer-than-the-hundred-bytes-which-the-oldest-header-of-a-tar-\
                    archive-has-room-for-so-it-needs-another";

/// The layers above busybox, lowest first.
pub(super) fn layers() -> Vec<Layer> {
    let mut all = vec![lower(), upper()];
    for number in 0..PLAIN_LAYERS {
        let mut layer = Layer::default();
        layer.file(&format!("layer-{number:02}"), &format!("{number}\n"));
        layer.file("last-layer", &format!("{number}\n"));
        all.push(layer);
    }
    all
}

fn lower() -> Layer {
    let mut layer = Layer::default();
    layer.directory("x");
    layer.file("x/removed", "lower\n");
    layer.file("x/replaced", "lower\n");
    layer.directory("x/removed-directory");
    layer.file("x/removed-directory/file", "lower\n");
    layer.directory("x/opaque");
    layer.file("x/opaque/hidden", "lower\n");
    layer.directory("x/merged");
    layer.file("x/merged/lower", "lower\n");
    layer.symlink("x/becomes-directory", "/x/merged");
    layer.directory("x/becomes-file");
    layer.file("x/becomes-file/file", "lower\n");
    layer
}

fn upper() -> Layer {
    let mut layer = Layer::default();
    layer.directory("x");
    layer.whiteout("x/removed");
    layer.whiteout("x/removed-directory");
    layer.file("x/replaced", "upper\n");
    layer.opaque("x/opaque");
    layer.file("x/opaque/shown", "upper\n");
    layer.directory("x/merged");
    layer.file("x/merged/upper", "upper\n");
    layer.directory("x/becomes-directory");
    layer.file("x/becomes-directory/file", "upper\n");
    layer.file("x/becomes-file", "upper\n");
    layer.file("x/one", "linked\n");
    layer.add("x/two", 0o644, Content::HardLink("x/one".to_owned()));
    layer.file(&format!("x/{LONG}"), "long\n");
    layer.file("x/ünïcode", "unicode\n");
    layer.add("x/null", 0o666, Content::Device(Device::Character(1, 3)));
    layer.add("x/block", 0o600, Content::Device(Device::Block(7, 0)));
    layer.add("x/fifo", 0o600, Content::Fifo);
    layer.add("x/set-id", 0o6755, Content::File(b"set-id\n".to_vec()));
    let owned = Entry {
        uid: 1000,
        gid: 44,
        ..layer.file("x/owned", "owned\n").clone()
    };
    layer.insert("x/owned", owned);
    let capable = layer.add("x/capable", 0o755, Content::File(b"capable\n".to_vec()));
    capable.xattrs.insert(
        "security.capability".to_owned(),
        NET_BIND_CAPABILITY.to_vec(),
    );
    layer
}

/// A script to be run in the image, and what it must print.
#[must_use]
pub fn expected() -> (String, String) {
    // Busybox's ls would print question marks for names that are not ASCII.
    let script = format!(
        "cd /x && for d in . opaque merged becomes-directory; do echo \"$d:\"; \
         (cd $d && for f in *; do [ \"$f\" = {LONG} ] || echo \"$f\"; done); echo; done; \
         cat replaced becomes-file two {LONG} /last-layer && \
         stat -c '%n %a %u %g %h %F %t,%T' one owned set-id null block fifo"
    );
    let listing = "\
.:
becomes-directory
becomes-file
block
capable
fifo
merged
null
one
opaque
owned
replaced
set-id
two
ünïcode

opaque:
shown

merged:
lower
upper

becomes-directory:
file

";
    let contents = format!("upper\nupper\nlinked\nlong\n{}\n", PLAIN_LAYERS - 1);
    let attributes = "\
one 644 0 0 2 regular file 0,0
owned 644 1000 44 1 regular file 0,0
set-id 6755 0 0 1 regular file 0,0
null 666 0 0 1 character special file 1,3
block 600 0 0 1 block special file 7,0
fifo 600 0 0 1 fifo 0,0
";
    (script, format!("{listing}{contents}{attributes}"))
}
