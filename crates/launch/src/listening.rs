//! Whether somebody listens at a port of TCP, as proc_net_tcp tells it. Plain reading.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// The kernel's number for a socket that listens.
const LISTENS: &str = "0A";

/// More of a table than that is not read.
const BYTES_MAX: u64 = 16 << 20;

/// Whether somebody listens at `port`, by the tables below `net` (`/proc/PID/net`).
///
/// # Errors
/// What keeps the table of IPv4 from being read; IPv6 may be missing.
pub fn is_listening(net: &Path, port: u16) -> io::Result<bool> {
    if has_listener(&table(&net.join("tcp"))?, port) {
        return Ok(true);
    }
    match table(&net.join("tcp6")) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        text => Ok(has_listener(&text?, port)),
    }
}

fn table(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Lines of number, local address and port, remote ones, state, and more.
fn has_listener(table: &str, port: u16) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1).and_then(|local| local.rsplit_once(':'));
        let state = fields.nth(1);
        let number = local.and_then(|(_, digits)| u16::from_str_radix(digits, 16).ok());
        number == Some(port) && state == Some(LISTENS)
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_found_by_its_port_in_either_table() {
        let dir = tempfile::tempdir().unwrap();
        let head = "  sl  local_address rem_address   st tx_queue rx_queue\n";
        let tcp = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n   \
                   1: 0100007F:1F91 0100007F:9C40 01 00000000:00000000\nnonsense\n";
        std::fs::write(dir.path().join("tcp"), format!("{head}{tcp}")).unwrap();
        let check = |port| is_listening(dir.path(), port).unwrap();
        assert!(check(8080));
        assert!(!check(8081), "a connection listens to nobody");
        assert!(!check(9000));
        let tcp6 = "   0: 00000000000000000000000000000000:2328 \
                    00000000000000000000000000000000:0000 0A 0\n";
        std::fs::write(dir.path().join("tcp6"), format!("{head}{tcp6}")).unwrap();
        assert!(check(9000));
        assert!(is_listening(&dir.path().join("none"), 1).is_err());
    }

    #[test]
    fn the_kernel_tells_of_a_real_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let net = Path::new("/proc/self/net");
        assert!(is_listening(net, port).unwrap());
        drop(listener);
        assert!(!is_listening(net, port).unwrap());
    }
}
