//! fd-holder: keeps the descriptors that it was started with, and gives copies to whoever may connect to its socket.
//! It knows nothing of what they are, and uses none of them: there is nothing in it to upgrade.
//!
//! ```text
//!  fd-holder COUNT     descriptor 3 listens, 4 and on are the COUNT that are kept
//!
//!  client: TAKE  ->  one byte COUNT with the descriptors; the connection stays, and its end is that of the holder
//!  client: END   ->  END, and the holder is gone
//! ```

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::ExitCode,
    time::Duration,
};

/// As many as one message carries under any C library.
const COUNT_MAX: u8 = 252;

/// A client that connects and says nothing holds up the others no longer.
const SILENCE: Duration = Duration::from_secs(2);

/// Clients that may wait for the end of the holder; who used it longest ago is forgotten.
const CLIENTS_MAX: usize = 8;

const TAKE: u8 = b't';
const END: u8 = b'e';

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without anybody to tell, it just ends.
            drop(writeln!(io::stderr(), "fd-holder: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let usage = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is started with descriptors: fd-holder COUNT, 1 to 252",
        )
    };
    let mut arguments = std::env::args().skip(1);
    let count = arguments.next().and_then(|word| word.parse().ok());
    let count = count.filter(|count| (1..=COUNT_MAX).contains(count));
    let count: u8 = count.ok_or_else(usage)?;
    if arguments.next().is_some() {
        return Err(usage());
    }
    let listener = UnixListener::from(sys::take_inherited_fd(3)?);
    let numbers = (0..count).map(|index| 4 + i32::from(index));
    let kept = numbers.map(sys::take_inherited_fd);
    let kept = kept.collect::<io::Result<Vec<OwnedFd>>>()?;
    serve(&listener, &kept)
}

fn serve(listener: &UnixListener, kept: &[OwnedFd]) -> io::Result<()> {
    let mut clients = VecDeque::new();
    loop {
        let client = match listener.accept() {
            Ok((client, _nameless)) => client,
            // It is no socket that listens: EBADF, EINVAL, ENOTSOCK.
            Err(error) if [9, 22, 88].contains(&error.raw_os_error().unwrap_or_default()) => {
                return Err(error);
            }
            // Whatever it is, it is no reason to let go of what is kept.
            Err(_passing) => continue,
        };
        match answer(client, kept) {
            Ok(Some(client)) => clients.push_back(client),
            Ok(None) => return Ok(()),
            // One that went away, or said nothing: it sees that its connection is closed.
            Err(_its_own) => {}
        }
        if clients.len() > CLIENTS_MAX {
            clients.pop_front();
        }
    }
}

/// The client if it may stay; none when it has ended the holder.
fn answer(mut client: UnixStream, kept: &[OwnedFd]) -> io::Result<Option<UnixStream>> {
    client.set_read_timeout(Some(SILENCE))?;
    client.set_write_timeout(Some(SILENCE))?;
    let mut word = [0];
    client.read_exact(&mut word)?;
    match word[0] {
        TAKE => {
            let kept: Vec<BorrowedFd<'_>> = kept.iter().map(AsFd::as_fd).collect();
            let count = u8::try_from(kept.len()).map_err(io::Error::other)?;
            sys::send_with_fds(&client, &[count], &kept)?;
            Ok(Some(client))
        }
        END => {
            // Who asked may have gone; it is ended all the same.
            drop(client.write_all(&[END]));
            Ok(None)
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Seek};

    use super::*;

    /// A holder of a file that says `kept`, on a thread; its clients by path.
    fn scene() -> (tempfile::TempDir, std::thread::JoinHandle<io::Result<()>>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"kept").unwrap();
        let holder = std::thread::spawn(move || serve(&listener, &[file.into()]));
        (directory, holder)
    }

    fn ask(at: &tempfile::TempDir, word: u8) -> UnixStream {
        let mut client = UnixStream::connect(at.path().join("socket")).unwrap();
        client.write_all(&[word]).unwrap();
        client
    }

    #[test]
    fn each_who_asks_gets_a_copy_and_who_stays_sees_the_end() {
        let (directory, holder) = scene();
        let mut first = ask(&directory, TAKE);
        for client in [first.try_clone().unwrap(), ask(&directory, TAKE)] {
            let mut count = [0];
            let (read, mut fds, _) = sys::recv_with_fds(&client, &mut count).unwrap();
            assert_eq!((read, count[0], fds.len()), (1, 1, 1));
            let mut file = File::from(fds.remove(0));
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "kept");
        }
        assert_eq!(ask(&directory, b'?').read(&mut [0]).unwrap(), 0, "refused");
        let mut ended = [0];
        ask(&directory, END).read_exact(&mut ended).unwrap();
        assert_eq!(ended[0], END);
        holder.join().unwrap().unwrap();
        assert_eq!(first.read(&mut [0]).unwrap(), 0, "it sees the end");
    }
}
