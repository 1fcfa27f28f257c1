//! Every behaviour with runlxc: what holds for stock runc holds for it.

use integration::runtime::Runtime;

/// What the behaviours are checked with.
const RUNTIME: Runtime = Runtime::Runlxc;

mod behaviours;
mod guests;
