//! Users and groups by the image's own files, and how such files are read: with a bound, and nothing
//! but regular ones.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::str::FromStr;

use crate::error::{Result, host};

use super::refusal;

const BYTES_MAX: u64 = 16 << 20;
const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// A user.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) additional_gids: Vec<u32>,
}

/// Looks a user up by its name, for `field`.
pub(crate) fn find(field: &str, name: &str) -> Result<Account> {
    let Some((uid, gid)) = user(&text_of(PASSWD)?, name) else {
        let why = format!("{field}: no user {name:?} in {PASSWD} of the image");
        return Err(refusal(why));
    };
    Ok(Account {
        uid,
        gid,
        additional_gids: groups(&text_of(GROUP)?, name, gid),
    })
}

fn text_of(path: &str) -> Result<String> {
    let read = read_regular(path).map_err(host(|| format!("read {path} of the image")))?;
    Ok(String::from_utf8_lossy(&read.unwrap_or_default()).into_owned())
}

/// The content of a file, none when there is no regular one.
pub(super) fn read_regular(path: &str) -> io::Result<Option<Vec<u8>>> {
    read_bounded(path, BYTES_MAX)
}

/// The same, so much of it at most.
pub(super) fn read_bounded(path: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    // The image could have put a fifo there.
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// passwd(5): name, password, uid, gid.
fn user(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        Some((number(fields.nth(1))?, number(fields.next())?))
    })
}

/// group(5): name, password, gid, members.
fn groups(group: &str, name: &str, own: u32) -> Vec<u32> {
    let mut all: Vec<u32> = group
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let gid = number(fields.nth(2))?;
            let is_member = fields.next()?.split(',').any(|member| member == name);
            (is_member && gid != own).then_some(gid)
        })
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn number(field: Option<&str>) -> Option<u32> {
    u32::from_str(field?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_their_groups_are_found_by_name() {
        let passwd = "root:x:0:0::/root:/bin/sh\n#\nbad:x:y:1\nadmin:x:500:501::/:/bin/sh\n";
        assert_eq!(user(passwd, "admin"), Some((500, 501)));
        assert_eq!(user(passwd, "bad"), None);
        assert_eq!(user(passwd, ""), None);
        assert_eq!(user(passwd, "500"), None);
        let group = "a:x:7:x,admin\nb:x:501:admin\nc:x:3:admin\nd:x:9:administrator\nnone\n";
        assert_eq!(groups(group, "admin", 501), [3, 7]);
    }
}
