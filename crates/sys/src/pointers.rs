//! Strings as execve(2) takes them.

use std::ffi::CString;
use std::io;

/// Strings with a NULL-terminated array of pointers to them.
pub(crate) struct Pointers {
    _strings: Vec<CString>,
    pub(crate) array: Vec<*const libc::c_char>,
}

impl Pointers {
    pub(crate) fn new(strings: impl IntoIterator<Item = Vec<u8>>) -> io::Result<Self> {
        let strings: Vec<_> = strings
            .into_iter()
            .map(CString::new)
            .collect::<Result<_, _>>()?;
        let array = strings.iter().map(|string| string.as_ptr());
        let array = array.chain([std::ptr::null()]).collect();
        Ok(Self {
            _strings: strings,
            array,
        })
    }
}
