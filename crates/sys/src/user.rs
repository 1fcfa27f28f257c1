//! Another user for a program that is about to be started; must not start it.

use crate::raw;

/// Who a program runs as, without any capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// Groups, group, user: numbers of 32 bits on all machines.
#[cfg(target_pointer_width = "64")]
const IDENTITY: [libc::c_long; 3] = [
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
];
#[cfg(target_pointer_width = "32")]
const IDENTITY: [libc::c_long; 3] = [
    libc::SYS_setgroups32,
    libc::SYS_setresgid32,
    libc::SYS_setresuid32,
];

impl User {
    /// Has this process be that, between fork and execve: by the calls themselves, as those of the C
    /// library are for all threads of a process. Gives the errno of a refusal.
    pub(crate) fn wear(&self) -> Result<(), i32> {
        let [set_groups, set_gid, set_uid] = IDENTITY;
        let groups = &self.additional_gids;
        // SAFETY: length and pointer describe `groups`, which the call only reads.
        let done = unsafe { libc::syscall(set_groups, groups.len(), groups.as_ptr()) };
        if done < 0 {
            return Err(raw::errno());
        }
        for (call, id) in [(set_gid, self.gid), (set_uid, self.uid)] {
            // SAFETY: the call takes three numbers and touches no memory.
            let done = unsafe { libc::syscall(call, id, id, id) };
            if done < 0 {
                return Err(raw::errno());
            }
        }
        Ok(())
    }
}
