//! An OCI bundle: config.json validated once into closed values, and the names of our files
//! beside it.
//!
//! Pure but for reading config.json and the exit record: nothing here changes the host.

mod error;

mod load;
pub mod names;
mod tolerance;

pub mod annotations;
pub mod capabilities;
pub mod colocation;
mod device;
mod filter;
mod hook;
mod image_init;
pub mod intel_rdt;
mod mount;
mod namespaces;
mod net_device;
pub mod priority;
mod process;
mod resources;
pub mod rich;
mod scheduling;
mod sysctl;
mod systemd;
pub mod template;
pub mod traffic;
mod update;
pub mod view;

mod convert;
pub mod plan;

pub mod example;
pub mod exit;
pub mod state;

pub use error::{Error, Result};
pub use exit::ExitRecord;
pub use load::{Bundle, parse_process, parse_resources};
pub use plan::{
    HostFacts, IdMap, Namespace, NamespaceKind, Plan, PlanContext, Planned, SeccompListener,
    TimeOffset,
};
pub use process::{ProcessContext, process_plan};
pub use resources::resources;
pub use scheduling::{MEMORY_FLAGS, MEMORY_MODES};
pub use seccomp::NEW_LISTENER;
pub use state::{State, Status};
pub use template::Template;
pub use traffic::Traffic;
pub use update::Update;
pub use view::View;
