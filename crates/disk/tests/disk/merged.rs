//! Layers on layers, by the words of the image-spec (layer.md) and in the cases that stock tools
//! are known to get wrong.

use super::tarball::{Entry, digest, directory, file, link, listing, read, tar, tree};

fn check(layers: &[&[Entry]], expected: &str) {
    let tars: Vec<Vec<u8>> = layers.iter().map(|entries| tar(entries)).collect();
    let (tree, blobs) = tree(&tars).unwrap();
    assert_eq!(
        listing(&tree, &blobs),
        format!("/ 755 0:0 directory\n{expected}")
    );
}

fn owned(uid: u32, entry: Entry) -> Entry {
    Entry { uid, ..entry }
}

#[test]
fn a_whiteout_removes_what_is_below_and_nothing_of_its_own_layer() {
    let lower = [
        directory("d"),
        file("d/x", "low"),
        file("y", "low"),
        file("z", "low"),
    ];
    let expected = "/d 755 9:0 directory\n/d/new 644 0:0 file \"up\"\n/y 644 0:0 file \"up\"\n";
    let marks = [
        file(".wh.d", ""),
        file(".wh.y", ""),
        file(".wh.z", ""),
        file(".wh.none", ""),
    ];
    let news = [
        owned(9, directory("d")),
        file("d/new", "up"),
        file("y", "up"),
    ];
    // In whatever order they come.
    check(&[&lower, &[&marks[..], &news[..]].concat()], expected);
    check(&[&lower, &[&news[..], &marks[..]].concat()], expected);
}

#[test]
fn an_opaque_directory_hides_all_below_it() {
    // The example of layer.md, "Whiteouts".
    let lower = [
        directory("a"),
        directory("a/b"),
        directory("a/b/c"),
        file("a/b/c/bar", ""),
    ];
    let news = [
        directory("a"),
        directory("a/b"),
        directory("a/b/c"),
        file("a/b/c/foo", ""),
    ];
    let mark = [file("a/.wh..wh..opq", "")];
    let expected = "/a 755 0:0 directory\n/a/b 755 0:0 directory\n/a/b/c 755 0:0 directory\n\
                    /a/b/c/foo 644 0:0 file \"\"\n";
    check(&[&lower, &[&mark[..], &news[..]].concat()], expected);
    check(&[&lower, &[&news[..], &mark[..]].concat()], expected);
    // Its own attributes stay when the layer does not tell others.
    check(
        &[&[owned(5, directory("a")), file("a/x", "")], &mark],
        "/a 755 5:0 directory\n",
    );
    check(
        &[&[file("x", "")], &[file(".wh..wh..opq", ""), file("y", "")]],
        "/y 644 0:0 file \"\"\n",
    );
}

#[test]
fn directories_that_a_layer_does_not_tell_of_keep_what_they_have() {
    let lower = [Entry {
        mode: 0o700,
        mtime: 9,
        ..owned(5, directory("d"))
    }];
    check(
        &[&lower, &[file("d/e/x", "")]],
        "/d 700 5:0 @9.000000000 directory\n/d/e 755 0:0 directory\n/d/e/x 644 0:0 file \"\"\n",
    );
    // All attributes are replaced, extended ones too.
    let with = directory("d").pax("SCHILY.xattr.user.a", b"1");
    check(
        &[&[with, file("d/x", "")], &[owned(6, directory("d"))]],
        "/d 755 6:0 directory\n/d/x 644 0:0 file \"\"\n",
    );
}

#[test]
fn what_is_of_another_type_is_replaced_whole() {
    let lower = [directory("x"), file("x/deep", ""), file("y", "")];
    let upper = [file("x", "file"), directory("y"), file("y/z", "")];
    check(
        &[&lower, &upper],
        "/x 644 0:0 file \"file\"\n/y 755 0:0 directory\n/y/z 644 0:0 file \"\"\n",
    );
    // Removed, and made again two levels deep without entries of directories.
    check(
        &[&[file("a", "")], &[file(".wh.a", ""), file("a/b/c", "")]],
        "/a 755 0:0 directory\n/a/b 755 0:0 directory\n/a/b/c 644 0:0 file \"\"\n",
    );
}

#[test]
fn no_symbolic_link_of_a_layer_below_is_followed() {
    let lower = [
        directory("real"),
        file("real/x", ""),
        link(b'2', "d", "real"),
    ];
    // The link makes way for the directory that the path says, as stock and BuildKit have it.
    let real = "/real 755 0:0 directory\n/real/x 644 0:0 file \"\"\n";
    let made = format!("/d 755 0:0 directory\n/d/y 644 0:0 file \"\"\n{real}");
    check(&[&lower, &[file("d/y", "")]], &made);
    // Removals in what is no directory remove nothing, there or elsewhere.
    let kept = format!("/d 777 0:0 -> real\n{real}");
    check(&[&lower, &[file("d/.wh.x", "")]], &kept);
    check(&[&lower, &[file("d/.wh..wh..opq", "")]], &kept);
}

#[test]
fn a_whiteout_removes_a_name_of_any_length() {
    let name = "n".repeat(255);
    let long = file("x", "").pax("path", name.as_bytes());
    let mark = file("x", "").pax("path", format!(".wh.{name}").as_bytes());
    check(&[&[long], &[mark]], "");
}

#[test]
fn whiteouts_make_no_directories() {
    check(
        &[
            &[file("x", "")],
            &[file("a/b/.wh.c", ""), file("a/.wh..wh..opq", "")],
        ],
        "/x 644 0:0 file \"\"\n",
    );
    check(&[&[file(".wh..wh.aufs", ""), file(".wh..wh.plnk", "")]], "");
}

#[test]
fn hard_links_reach_into_layers_below() {
    let lower = [file("a", "low"), link(b'1', "b", "a"), link(b'2', "l", "a")];
    check(
        &[
            &lower,
            &[
                link(b'1', "c", "a"),
                link(b'1', "m", "l"),
                link(b'1', "d", "c"),
            ],
        ],
        "/a 644 0:0 file \"low\"\n/b is /a\n/c is /a\n/d is /a\n/l 777 0:0 -> a\n/m is /l\n",
    );
    // One name changes, the others stay what they were.
    check(
        &[&lower, &[file("a", "up"), file(".wh.l", "")]],
        "/a 644 0:0 file \"up\"\n/b 644 0:0 file \"low\"\n",
    );
    // Attributes of a link are those of its file.
    check(
        &[&[file("a", ""), owned(7, link(b'1', "b", "a"))]],
        "/a 644 0:0 file \"\"\n/b is /a\n",
    );
}

#[test]
fn a_hard_link_to_nothing_is_refused_and_changes_nothing() {
    let (mut tree, blobs) = tree(&[tar(&[directory("d"), file("d/x", "low")])]).unwrap();
    let before = listing(&tree, &blobs);
    let mut check = |entries: &[Entry], expected: &str| {
        let (layer, _) = read(&tar(entries)).unwrap();
        let error = tree.apply(&layer, digest(1)).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(listing(&tree, &blobs), before);
        assert_eq!(tree.blobs().len(), 1);
    };
    let missing = "the target of a hard link is not there";
    check(
        &[file("new", ""), link(b'1', "y", "none")],
        &format!("/none: {missing}"),
    );
    check(
        &[file("d/.wh.x", ""), link(b'1', "y", "d/x")],
        &format!("/d/x: {missing}"),
    );
    check(
        &[file("d/.wh..wh..opq", ""), link(b'1', "y", "d/x")],
        &format!("/d/x: {missing}"),
    );
    check(
        &[file(".wh.d", ""), link(b'1', "y", "d/x")],
        &format!("/d/x: {missing}"),
    );
    check(&[link(b'1', "y", "d/x/z")], &format!("/d/x/z: {missing}"));
    check(
        &[link(b'1', "y", "d")],
        "/d: the target of a hard link is a directory",
    );
}

#[test]
fn the_same_layer_twice_is_the_same_tree() {
    let layer = tar(&[directory("d"), file("d/x", "x"), file("d/.wh.y", "")]);
    let once = tree(std::slice::from_ref(&layer)).unwrap();
    let twice = tree(&[layer.clone(), layer]).unwrap();
    assert_eq!(listing(&once.0, &once.1), listing(&twice.0, &twice.1));
}
