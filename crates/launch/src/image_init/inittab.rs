//! Lines of inittab(5), whose form sysvinit and BusyBox have in common; must not know what a field means.

/// A line.
pub(super) struct Entry<'a> {
    /// sysvinit: what it is called; BusyBox: its terminal.
    pub(super) id: &'a str,
    /// sysvinit alone has them.
    pub(super) levels: &'a str,
    pub(super) action: &'a str,
    pub(super) process: &'a str,
}

impl<'a> Entry<'a> {
    /// None for comments, and for what is no entry.
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim_start();
        if line.starts_with('#') {
            return None;
        }
        let mut fields = line.splitn(4, ':');
        Some(Self {
            id: fields.next()?,
            levels: fields.next()?,
            action: fields.next()?.trim(),
            process: fields.next()?,
        })
    }
}
