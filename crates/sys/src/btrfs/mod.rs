//! btrfs: subvolumes, and quota groups that count and limit them.
//!
//! By the ioctls of linux/btrfs.h, described in btrfs-ioctl(2) of btrfs-progs. Must not walk trees
//! of files nor decide what is kept.

mod live;
mod quota;
mod search;
mod subvolume;

pub use live::LiveQgroups;
pub use quota::{
    Accounting, Qgroup, QgroupId, QgroupLimits, QuotaKind, QuotaMode, assign, create_qgroup,
    destroy_qgroup, disable_quota, enable_quota, qgroup, qgroups, quota_mode, set_qgroup_limits,
    unassign,
};
pub use subvolume::{
    SubvolumeAccess, SubvolumeId, create_subvolume, destroy_subvolume, is_btrfs, is_subvolume_root,
    set_subvolume_access, snapshot, subvolume_access, subvolume_exists, subvolume_of, sync,
};

/// BTRFS_IOCTL_MAGIC.
const MAGIC: u8 = 0x94;
