//! The containers of this guest by id, each from the moment in which it is asked for: who gives one up
//! while it is being made has it undone as soon as it is.
//!
//! ```text
//!   begin ──> being made ──done──> made ──give_up──> ending ──removed──> nothing
//!                 │                                     └──give_up, after a failure──> ending
//!                 └──give_up──> unwanted ──done, or failed──> nothing
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

#[derive(Debug)]
enum Slot<T> {
    BeingMade,
    Unwanted,
    Made(Arc<T>),
    /// Nobody's any more, and not removed yet: that may fail, and is asked for again then.
    Ending(Arc<T>),
}

/// All of them, of a type that a test chooses too.
#[derive(Debug)]
pub(crate) struct Containers<T>(Mutex<BTreeMap<String, Slot<T>>>);

/// An id that is taken. Dropped, it is free again.
#[derive(Debug)]
pub(crate) struct BeingMade<'a, T> {
    containers: &'a Containers<T>,
    id: &'a str,
}

/// What there was when one was given up.
#[derive(Debug)]
pub(crate) enum GivenUp<T> {
    /// It is the caller's to remove, who says when it is.
    Made(Arc<T>),
    /// Who makes it removes it.
    BeingMade,
}

impl<T> Default for Containers<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Containers<T> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Slot<T>>> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an id.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one that is no id, or is taken.
    pub(crate) fn begin<'a>(&'a self, id: &'a str) -> Result<BeingMade<'a, T>> {
        if id.is_empty() || id.contains('/') || id.starts_with('.') {
            return Err(Error::Invalid(format!("{id:?} is no id")));
        }
        let mut slots = self.lock();
        if slots.contains_key(id) {
            return Err(Error::Invalid(format!("container {id} exists")));
        }
        slots.insert(id.to_owned(), Slot::BeingMade);
        Ok(BeingMade {
            containers: self,
            id,
        })
    }

    /// One that was made.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn find(&self, id: &str) -> Result<Arc<T>> {
        match self.lock().get(id) {
            Some(Slot::Made(container)) => Ok(Arc::clone(container)),
            _ => Err(missing(id)),
        }
    }

    /// Nobody wants it any more. One that was made is given as often as it is asked for, until it is removed.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn give_up(&self, id: &str) -> Result<GivenUp<T>> {
        let mut slots = self.lock();
        let slot = slots.get_mut(id).ok_or_else(|| missing(id))?;
        let (next, given) = match slot {
            Slot::Made(it) | Slot::Ending(it) => {
                (Slot::Ending(Arc::clone(it)), GivenUp::Made(Arc::clone(it)))
            }
            Slot::BeingMade | Slot::Unwanted => (Slot::Unwanted, GivenUp::BeingMade),
        };
        *slot = next;
        Ok(given)
    }

    /// One that was given up is gone: its id is free. Nothing when somebody else has said so before.
    pub(crate) fn removed(&self, id: &str, container: &Arc<T>) {
        let mut slots = self.lock();
        if matches!(slots.get(id), Some(Slot::Ending(it)) if Arc::ptr_eq(it, container)) {
            slots.remove(id);
        }
    }
}

fn missing(id: &str) -> Error {
    Error::NotFound(format!("container {id}"))
}

impl<T> BeingMade<'_, T> {
    /// It is made; given back when nobody wants it any more.
    pub(crate) fn done(self, container: Arc<T>) -> Option<Arc<T>> {
        let mut slots = self.containers.lock();
        match slots.get_mut(self.id) {
            Some(slot @ Slot::BeingMade) => {
                *slot = Slot::Made(container);
                None
            }
            _ => Some(container),
        }
    }
}

impl<T> Drop for BeingMade<'_, T> {
    fn drop(&mut self) {
        let mut slots = self.containers.lock();
        if matches!(slots.get(self.id), Some(Slot::BeingMade | Slot::Unwanted)) {
            slots.remove(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_from_the_request_to_the_end() {
        let containers = Containers::default();
        for odd in ["", "a/b", ".."] {
            assert!(matches!(containers.begin(odd), Err(Error::Invalid(_))));
        }
        let making = containers.begin("c").unwrap();
        assert!(matches!(containers.begin("c"), Err(Error::Invalid(_))));
        assert!(matches!(containers.find("c"), Err(Error::NotFound(_))));
        assert!(making.done(Arc::new(7)).is_none());
        assert_eq!(*containers.find("c").unwrap(), 7);
        assert!(matches!(containers.begin("c"), Err(Error::Invalid(_))));
        // Its removal may fail.
        for _again in 0..2 {
            assert!(matches!(containers.give_up("c"), Ok(GivenUp::Made(_))));
            assert!(matches!(containers.find("c"), Err(Error::NotFound(_))));
            assert!(matches!(containers.begin("c"), Err(Error::Invalid(_))));
        }
        let Ok(GivenUp::Made(ending)) = containers.give_up("c") else {
            panic!("it was not removed");
        };
        containers.removed("c", &ending);
        assert!(matches!(containers.give_up("c"), Err(Error::NotFound(_))));
        let making = containers.begin("c").unwrap();
        assert!(making.done(Arc::new(8)).is_none());
        assert!(matches!(containers.give_up("c"), Ok(GivenUp::Made(_))));
        // Told late, of the one before.
        containers.removed("c", &ending);
        let Ok(GivenUp::Made(ending)) = containers.give_up("c") else {
            panic!("it was not removed");
        };
        containers.removed("c", &ending);
        drop(containers.begin("c").unwrap());
        assert!(containers.begin("c").is_ok());
    }

    #[test]
    fn one_that_is_given_up_while_it_is_made_is_its_makers_to_remove() {
        let containers = Containers::default();
        let making = containers.begin("c").unwrap();
        for _again in 0..2 {
            assert!(matches!(containers.give_up("c"), Ok(GivenUp::BeingMade)));
        }
        assert!(matches!(containers.begin("c"), Err(Error::Invalid(_))));
        assert_eq!(making.done(Arc::new(7)).as_deref(), Some(&7));
        assert!(matches!(containers.find("c"), Err(Error::NotFound(_))));
        assert!(containers.begin("c").is_ok());
    }
}
