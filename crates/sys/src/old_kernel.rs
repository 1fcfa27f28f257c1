//! A thread for tests that finds only the system calls of Linux 2.6.32; x86-64 numbers.

use crate::process;

/// perf_event_open, the last system call of 2.6.32.
const LAST_CALL: u64 = 298;

/// Makes uname(2) say 2.6.x.
const UNAME26: u64 = 0x0002_0000;

/// Runs `test` in a thread where every later system call answers ENOSYS.
pub(crate) fn in_thread(test: impl FnOnce() + Send + 'static) {
    const LOAD_NUMBER: u64 = 0x20;
    const JUMP_IF_GREATER: u64 = 0x25;
    const RETURN: u64 = 0x06;
    const ALLOW: u64 = 0x7fff_0000;
    const ENOSYS: u64 = 0x0005_0000 | 38;
    let filter = [
        LOAD_NUMBER,
        JUMP_IF_GREATER | 1 << 24 | LAST_CALL << 32,
        RETURN | ENOSYS << 32,
        RETURN | ALLOW << 32,
    ];
    let thread = std::thread::spawn(move || {
        process::personality(UNAME26).unwrap();
        process::no_new_privs().unwrap();
        process::load_seccomp(&filter, 0).unwrap();
        test();
    });
    thread.join().unwrap();
}
