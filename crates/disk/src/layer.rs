//! One layer as a tree of changes: whatever order its tar had them in, what a layer says does not
//! depend on it (image-spec, layer.md, "Whiteouts"). Building it is where a layer is judged alone;
//! what needs the layers below is in `merge`.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    attributes::Attributes,
    error::{Error, Result},
    path::{Name, Path, shown},
    tree::Leaf,
};

/// Index of a node in its [`Layer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(pub(crate) usize);

/// The changes of one layer, and how long the blob with its files' contents is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The root directory is the first.
    nodes: Vec<Node>,
    /// Length of the blob in blocks of [`crate::BLOCK_BYTES`].
    pub blob_blocks: u32,
}

/// What a layer puts at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// A directory.
    Directory(LayerDirectory),
    /// Anything else. Hard links within the layer are several names of one node.
    Leaf(Attributes, Leaf),
    /// A hard link to what the layers below have at that path.
    LinkBelow(Path),
}

/// A directory of a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LayerDirectory {
    /// Those of its own entry; without one, it only leads to entries further down and keeps what
    /// the layers below say of it.
    pub(crate) attributes: Option<Attributes>,
    /// Whether something is put at it or below it: whiteouts alone make no directory.
    pub(crate) is_made: bool,
    /// Whether it hides all that layers below have in it.
    pub(crate) is_opaque: bool,
    /// Names that it removes from layers below.
    pub(crate) whiteouts: BTreeSet<Name>,
    /// What it puts into it.
    pub(crate) entries: BTreeMap<Name, NodeId>,
}

/// What a hard link's target is in the layer itself.
enum Target {
    Here(NodeId),
    Below,
}

impl Layer {
    /// The root directory.
    pub(crate) const ROOT: NodeId = NodeId(0);

    /// A layer that changes nothing.
    pub(crate) fn new() -> Self {
        Self {
            nodes: vec![Node::Directory(LayerDirectory::default())],
            blob_blocks: 0,
        }
    }

    /// A node of this layer.
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// All of them, in the order of their indexes; the root is the first.
    pub(crate) fn all(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.nodes.iter()
    }

    /// Puts a directory. Its entry may come twice, as builders that know nothing of each other
    /// write it, and the last one counts.
    ///
    /// # Errors
    /// [`Error::Refused`] when this layer has something else there, or above it.
    pub(crate) fn put_directory(&mut self, path: &Path, attributes: Attributes) -> Result<()> {
        let mut at = Self::ROOT;
        self.directory(at, path)?.is_made = true;
        for part in path.parts() {
            at = self.step(at, part, path)?;
            self.directory(at, path)?.is_made = true;
        }
        self.directory(at, path)?.attributes = Some(attributes);
        Ok(())
    }

    /// Puts anything but a directory or a hard link.
    ///
    /// # Errors
    /// [`Error::Refused`] when this layer has something at that path already (image-spec,
    /// "Distributable Format": no duplicate entries), or no directory above it.
    pub(crate) fn put_leaf(
        &mut self,
        path: &Path,
        attributes: Attributes,
        leaf: Leaf,
    ) -> Result<()> {
        let id = self.add(Node::Leaf(attributes, leaf));
        self.put_name(path, id)
    }

    /// A node that has no name yet.
    pub(crate) fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() - 1)
    }

    /// Puts another name of what is at `target`: in this layer if it was there before, as every tar
    /// tool demands, else in the layers below.
    ///
    /// # Errors
    /// As [`Layer::put_leaf`], and for a target that is a directory or not to be reached.
    pub(crate) fn put_hard_link(&mut self, path: &Path, target: &Path) -> Result<()> {
        let id = match self.target(path, target)? {
            Target::Here(id) => id,
            Target::Below => self.add(Node::LinkBelow(target.clone())),
        };
        self.put_name(path, id)
    }

    /// Removes what layers below have at a path.
    ///
    /// # Errors
    /// [`Error::Refused`] below what this layer says is no directory.
    pub(crate) fn put_whiteout(&mut self, directory: &Path, name: &[u8]) -> Result<()> {
        let at = self.descend(directory)?;
        let whiteouts = &mut self.directory(at, directory)?.whiteouts;
        whiteouts.insert(name.into());
        Ok(())
    }

    /// Removes all that layers below have in a directory.
    ///
    /// # Errors
    /// [`Error::Refused`] when this layer says that it is no directory.
    pub(crate) fn put_opaque(&mut self, directory: &Path) -> Result<()> {
        let at = self.descend(directory)?;
        self.directory(at, directory)?.is_opaque = true;
        Ok(())
    }

    /// Checks what only the whole layer shows.
    ///
    /// # Errors
    /// [`Error::Refused`] for a hard link to a path that the layer itself puts later: which file is
    /// meant would depend on the order in which it is unpacked. Links that name each other in a
    /// ring always have one of these.
    pub(crate) fn finish(&self) -> Result<()> {
        for node in &self.nodes {
            let Node::LinkBelow(target) = node else {
                continue;
            };
            if self.lookup(target).is_some() {
                return Err(refused(
                    target,
                    "the target of a hard link that comes before it",
                ));
            }
        }
        Ok(())
    }

    fn target(&self, path: &Path, target: &Path) -> Result<Target> {
        let mut at = Self::ROOT;
        for part in target.parts() {
            match self.node(at) {
                Node::Directory(directory) => match directory.entries.get(part) {
                    Some(&next) => at = next,
                    None => return Ok(Target::Below),
                },
                Node::Leaf(..) | Node::LinkBelow(_) => {
                    return Err(refused(
                        path,
                        "a hard link to a path below what is no directory",
                    ));
                }
            }
        }
        match self.node(at) {
            Node::Directory(directory) if directory.is_made => {
                Err(refused(path, "a hard link to a directory"))
            }
            Node::Directory(_) => Ok(Target::Below),
            Node::Leaf(..) | Node::LinkBelow(_) => Ok(Target::Here(at)),
        }
    }

    fn lookup(&self, path: &Path) -> Option<NodeId> {
        path.parts()
            .try_fold(Self::ROOT, |at, part| match self.node(at) {
                Node::Directory(directory) => directory.entries.get(part).copied(),
                Node::Leaf(..) | Node::LinkBelow(_) => None,
            })
    }

    /// Gives a node that is no directory a name.
    ///
    /// # Errors
    /// As [`Layer::put_leaf`].
    pub(crate) fn put_name(&mut self, path: &Path, id: NodeId) -> Result<()> {
        let Some((parent, name)) = path.split_last() else {
            return Err(refused(path, "the root of an image that is no directory"));
        };
        let mut at = Self::ROOT;
        self.directory(at, path)?.is_made = true;
        for part in parent.parts() {
            at = self.step(at, part, path)?;
            self.directory(at, path)?.is_made = true;
        }
        let entries = &mut self.directory(at, path)?.entries;
        if entries.contains_key(name) {
            return Err(refused(path, "a path that the layer has twice"));
        }
        entries.insert(name.into(), id);
        Ok(())
    }

    fn descend(&mut self, path: &Path) -> Result<NodeId> {
        path.parts()
            .try_fold(Self::ROOT, |at, part| self.step(at, part, path))
    }

    /// The entry of that name, made a directory if there is none.
    fn step(&mut self, at: NodeId, part: &[u8], path: &Path) -> Result<NodeId> {
        let fresh = NodeId(self.nodes.len());
        let entries = &mut self.directory(at, path)?.entries;
        if let Some(&id) = entries.get(part) {
            return Ok(id);
        }
        entries.insert(part.into(), fresh);
        self.nodes.push(Node::Directory(LayerDirectory::default()));
        Ok(fresh)
    }

    /// The directory of that index, which the entry `path` wants to be one.
    fn directory(&mut self, id: NodeId, path: &Path) -> Result<&mut LayerDirectory> {
        match &mut self.nodes[id.0] {
            Node::Directory(directory) => Ok(directory),
            Node::Leaf(_, Leaf::Symlink(_)) => Err(refused(
                path,
                "a path through a symbolic link of its own layer",
            )),
            Node::Leaf(..) | Node::LinkBelow(_) => {
                Err(refused(path, "a directory where its own layer has a file"))
            }
        }
    }
}

pub(crate) fn refused(path: &Path, why: &'static str) -> Error {
    Error::Refused {
        path: path.to_string(),
        why,
    }
}

/// As [`refused`], for what is no path.
pub(crate) fn refused_raw(path: &[u8], why: &'static str) -> Error {
    Error::Refused {
        path: shown(path),
        why,
    }
}
