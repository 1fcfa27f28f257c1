//! Checkpoint and restore on a kernel that Debian's CRIU knows, in a guest with cgroup v2 alone:
//! on a later one it need not work. What is asked is in shim-runlxc/tests/command/checkpoint.rs.

use std::time::Duration;

use integration::guest::{Guest, Series, Wanted};

#[test]
fn containers_go_into_files_and_come_back_on_kernel_6_1() {
    let wanted = Wanted {
        package: "runlxc".to_owned(),
        target: Some("command".to_owned()),
        name: "a_container_goes_into_files_and_comes_back".to_owned(),
    };
    let program = wanted.find().unwrap().program;
    let arguments = ["checkpoint::", "--test-threads=1"].map(str::to_owned);
    let limit = Duration::from_secs(600);
    let mut guest = Guest::running(Series::V6_1, &program, arguments.to_vec(), limit).unwrap();
    let env = guest.program.iter().position(|word| word == "env").unwrap();
    guest.program.insert(env + 1, "POUCH_CRIU=1".to_owned());
    let outcome = guest.run(|_| {}).unwrap();
    assert_eq!(outcome.code, 0, "{}", outcome.output);
    assert!(!outcome.output.contains(" 0 passed;"), "{}", outcome.output);
}
