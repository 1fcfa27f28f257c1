//! Every behaviour with stock runc: it proves the harness, and says what "as with runc" means.

use integration::runtime::Runtime;

/// What the behaviours are checked with.
const RUNTIME: Runtime = Runtime::Runc;

mod behaviours;
