//! What a kernel says of itself before it runs: the setup header of x86 (Documentation/arch/x86/boot.rst).

/// Where the header says what it is.
const MAGIC_AT: usize = 0x202;

/// `header`.
const MAGIC: &[u8] = b"HdrS";

/// Where `kernel_version` is: 16 bits, the offset of a text from the end of the first sector.
const VERSION_AT: usize = 0x20e;

/// The first sector.
const SECTOR: usize = 0x200;

/// Bytes of a release at most (`__NEW_UTS_LEN`).
const RELEASE_BYTES_MAX: usize = 64;

/// The release of a `bzImage`; none for another form, and for one that does not tell.
pub(super) fn release(kernel: &[u8]) -> Option<&str> {
    if kernel.get(MAGIC_AT..)?.starts_with(MAGIC) {
        let offset = kernel.get(VERSION_AT..VERSION_AT + 2)?;
        let offset = u16::from_le_bytes(offset.try_into().ok()?);
        let text = kernel.get(SECTOR + usize::from(offset)..)?;
        let text = &text[..text.len().min(RELEASE_BYTES_MAX + 1)];
        let end = text.iter().position(|byte| matches!(byte, b' ' | 0))?;
        let release = std::str::from_utf8(&text[..end]).ok()?;
        return (offset != 0 && !release.is_empty()).then_some(release);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(offset: u16, text: &[u8]) -> Vec<u8> {
        let mut kernel = vec![0; 0x300];
        kernel[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(MAGIC);
        kernel[VERSION_AT..VERSION_AT + 2].copy_from_slice(&offset.to_le_bytes());
        kernel.extend_from_slice(text);
        kernel
    }

    #[test]
    fn a_kernel_says_its_release() {
        let text = b"6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org) #1\0";
        assert_eq!(release(&kernel(0x100, text)), Some("6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn what_does_not_tell_has_none() {
        let long = vec![b'6'; 4096];
        for other in [
            kernel(0x100, b""),
            kernel(0x100, b"\0"),
            kernel(0x100, &long),
            kernel(u16::MAX, b"6.1 "),
            b"\x7fELF".to_vec(),
            Vec::new(),
        ] {
            assert_eq!(release(&other), None);
        }
    }
}
