//! What a snapshot may hold: read from labels, rules and defaults, decided once. Touches no disk.
//!
//! ```text
//!  labels (containerd.io/snapshot/..) --+
//!  first rule that matches -------------+--> decide --> Limit
//!  defaults ----------------------------+
//! ```

mod asked;
mod decide;
mod group;
mod least;
mod mode;
mod path_rules;
mod policy;
mod refusal;
mod size;
mod thresholds;

pub use asked::{Asked, DISK_QUOTA, GROUP, INODES, MAX_SIZE, MODE, SOFT_SIZE, WARN};
pub use decide::{Limit, Request, decide};
pub use group::{Group, GroupName};
pub use least::refuse_too_small;
pub use mode::Mode;
pub use path_rules::{ContainerPath, PathRule, PathRules, Place};
pub use policy::{Accounting, Policy, PolicyText, Rule, RuleText};
pub use refusal::{Refusal, Unreadable};
pub use size::{Inodes, Size};
pub use thresholds::Thresholds;
