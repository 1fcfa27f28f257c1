//! All snapshots of one moment, read a page at a time: whoever reads holds no thread and no lock
//! between two pages.

use std::ops::ControlFlow;

use crate::{Filter, Info, Key, Result, store::View};

/// Snapshots of a page, as many as containerd's own service has in a message of List.
const PAGE_SNAPSHOTS: usize = 100;

/// Bytes of names and labels after which a page is full: a page is a message, clients take 4 MiB by
/// default, and one snapshot may have 1 MiB.
const PAGE_BYTES: usize = 1 << 20;

/// What is not read yet.
#[derive(Debug)]
pub struct Listing {
    view: View,
    filter: Filter,
    last: Option<Key>,
}

impl Listing {
    pub(crate) fn new(view: View, filter: Filter) -> Self {
        Self {
            view,
            filter,
            last: None,
        }
    }
}

impl Iterator for Listing {
    /// An error is what keeps the store from being read.
    type Item = Result<Vec<Info>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut page = Vec::new();
        let mut bytes = 0;
        let read = self.view.each_after(self.last.as_ref(), |snapshot| {
            if self.filter.matches(&snapshot.info) {
                bytes += size(&snapshot.info);
                page.push(snapshot.info);
            }
            if page.len() < PAGE_SNAPSHOTS && bytes < PAGE_BYTES {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        if let Err(error) = read {
            return Some(Err(error));
        }
        self.last = Some(page.last()?.name.clone());
        Some(Ok(page))
    }
}

fn size(info: &Info) -> usize {
    let labels = info.labels.iter();
    let labels: usize = labels
        .map(|(name, value)| name.len() + value.len() + 8)
        .sum();
    let parent = info.parent.as_ref();
    let parent = parent.map_or(0, |parent| parent.as_str().len());
    info.name.as_str().len() + parent + labels + 64
}
