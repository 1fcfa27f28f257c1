//! Applying a layer to the layers below it (image-spec, layer.md, "Applying Changesets").
//!
//! Three passes make the result independent of the order of the tar: what goes, goes first and
//! only from below; then hard links into layers below are found; then what is new is put.

use std::collections::{BTreeMap, HashMap};

use crate::{
    attributes::Attributes,
    digest::Digest,
    error::Result,
    layer::{Layer, Node, NodeId, refused},
    path::{Name, Path},
    tree::{Blob, Inode, InodeId, Kind, Tree},
};

impl Tree {
    /// Applies the next layer. On an error the tree is as before.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] for a hard link to what the layers below do not have, or to a
    /// directory of theirs.
    pub fn apply(&mut self, layer: &Layer, diff_id: Digest) -> Result<()> {
        let links = self.links_below(layer)?;
        self.remove(layer);
        self.blobs.push(Blob {
            diff_id,
            blocks: layer.blob_blocks,
        });
        self.put(layer, links);
        Ok(())
    }

    /// What each hard link into layers below is a name of. Nothing is changed yet, so that a layer
    /// that is refused leaves no trace.
    fn links_below(&self, layer: &Layer) -> Result<HashMap<NodeId, InodeId>> {
        let mut links = HashMap::new();
        for (index, node) in layer.all().enumerate() {
            let Node::LinkBelow(target) = node else {
                continue;
            };
            let found = self.lookup(target).filter(|_| !layer.hides(target));
            let Some(id) = found else {
                return Err(refused(target, "the target of a hard link is not there"));
            };
            if matches!(self.inode(id).kind, Kind::Directory(_)) {
                return Err(refused(target, "the target of a hard link is a directory"));
            }
            links.insert(NodeId(index), id);
        }
        Ok(links)
    }

    /// Whiteouts and opaque directories.
    fn remove(&mut self, layer: &Layer) {
        let mut pairs = vec![(Layer::ROOT, Self::ROOT)];
        while let Some((from, at)) = pairs.pop() {
            let (Node::Directory(directory), Kind::Directory(entries)) =
                (layer.node(from), &mut self.inodes[at.0].kind)
            else {
                continue;
            };
            if directory.is_opaque {
                entries.clear();
            }
            for name in &directory.whiteouts {
                entries.remove(name);
            }
            let both = directory.entries.iter();
            pairs.extend(both.filter_map(|(name, &node)| Some((node, *entries.get(name)?))));
        }
    }

    fn put(&mut self, layer: &Layer, links: HashMap<NodeId, InodeId>) {
        // Which inode a node has become: hard links are met more than once.
        let mut made = links;
        let mut pairs = vec![(Layer::ROOT, Self::ROOT)];
        while let Some((from, at)) = pairs.pop() {
            let Node::Directory(directory) = layer.node(from) else {
                continue;
            };
            if let Some(attributes) = &directory.attributes {
                self.inodes[at.0].attributes = attributes.clone();
                self.inodes[at.0].layer = self.blobs.len() - 1;
            }
            for (name, &node) in &directory.entries {
                match layer.node(node) {
                    Node::Directory(below) if below.is_made => {
                        pairs.push((node, self.directory_at(at, name)));
                    }
                    // It holds whiteouts alone, which are done.
                    Node::Directory(_) => {}
                    Node::Leaf(attributes, leaf) => {
                        let id = *made.entry(node).or_insert_with(|| {
                            self.inodes.push(Inode {
                                attributes: attributes.clone(),
                                kind: Kind::Leaf(leaf.clone()),
                                layer: self.blobs.len() - 1,
                            });
                            InodeId(self.inodes.len() - 1)
                        });
                        self.set_entry(at, name, id);
                    }
                    Node::LinkBelow(_) => {
                        let id = *made.get(&node).expect("links_below has found all of them");
                        self.set_entry(at, name, id);
                    }
                }
            }
        }
    }

    /// The directory of that name, in place of whatever else is there: no symbolic link is
    /// followed, so nothing is put where the layer does not say.
    fn directory_at(&mut self, at: InodeId, name: &Name) -> InodeId {
        let there = match &self.inodes[at.0].kind {
            Kind::Directory(entries) => entries.get(name).copied(),
            Kind::Leaf(_) => None,
        };
        let is_directory = |id: &InodeId| matches!(self.inode(*id).kind, Kind::Directory(_));
        if let Some(id) = there.filter(is_directory) {
            return id;
        }
        self.inodes.push(Inode {
            attributes: Attributes::IMPLICIT,
            kind: Kind::Directory(BTreeMap::new()),
            layer: self.blobs.len() - 1,
        });
        let id = InodeId(self.inodes.len() - 1);
        self.set_entry(at, name, id);
        id
    }

    fn set_entry(&mut self, at: InodeId, name: &Name, id: InodeId) {
        if let Kind::Directory(entries) = &mut self.inodes[at.0].kind {
            entries.insert(name.clone(), id);
        }
    }
}

impl Layer {
    /// Whether the layer removes what layers below have at that path.
    fn hides(&self, path: &Path) -> bool {
        let mut at = Self::ROOT;
        for part in path.parts() {
            let Node::Directory(directory) = self.node(at) else {
                return true;
            };
            if directory.is_opaque || directory.whiteouts.contains(part) {
                return true;
            }
            match directory.entries.get(part) {
                Some(&id) => at = id,
                None => return false,
            }
        }
        false
    }
}
