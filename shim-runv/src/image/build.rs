//! Makes the guest image of a kernel that is there, in a second and without tools.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::cpio::Cpio;
use super::{INITRAMFS, Image, KERNEL, Name, RELEASE, header, modules, unpack};
use crate::home::Home;
use crate::{Error, Result};

/// What the agent's binary is called.
const AGENT: &str = "runv-agent";

/// Folders of the initramfs.
const FOLDERS: [&str; 4] = ["dev", "modules", "newroot", "proc"];

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct Source {
    /// `vmlinuz`.
    pub kernel: PathBuf,
    /// `lib/modules/RELEASE`, with modules.dep; modules are plain, or packed by gzip, xz or zstd.
    pub modules: PathBuf,
    /// The agent; none: the one beside this program.
    pub agent: Option<PathBuf>,
}

/// Makes the image of that name; one that is there is replaced, and machines that run keep theirs.
///
/// # Errors
/// [`Error::Kernel`] for one that lacks a module or has those of another, or what a file says.
pub fn build(source: &Source, home: &Home, name: &Name) -> Result<Image> {
    let text = |name: &str| {
        let path = source.modules.join(name);
        fs::read_to_string(&path).map_err(Error::on("read", &path))
    };
    let dependencies = text("modules.dep")?;
    let built_in = match text("modules.builtin") {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        other => Some(other?),
    };
    let order = modules::order(&dependencies, built_in.as_deref())?;
    let agent = match &source.agent {
        Some(path) => path.clone(),
        None => beside()?,
    };
    let (archive, of_modules) = archive(&source.modules, &order, &agent)?;
    let kernel = fs::read(&source.kernel).map_err(Error::on("read", &source.kernel))?;
    let release = release(header::release(&kernel), of_modules)?;
    let folder = home.guest(name);
    fs::create_dir_all(&folder).map_err(Error::on("create", &folder))?;
    write(&folder, KERNEL, &kernel)?;
    write(&folder, INITRAMFS, &archive)?;
    write(&folder, RELEASE, release.as_bytes())?;
    Image::find(home, name)
}

/// The release of kernel and modules, which must be one; `unknown` for a kernel and modules that both do not tell.
fn release(of_kernel: Option<&str>, of_modules: Option<String>) -> Result<String> {
    match (of_kernel, of_modules) {
        (Some(kernel), Some(modules)) if kernel != modules => Err(Error::Kernel(format!(
            "the kernel is {kernel} and the modules are for {modules}: --kernel and --modules must be of one package"
        ))),
        (Some(known), _) => Ok(known.to_owned()),
        (None, known) => Ok(known.unwrap_or_else(|| "unknown".to_owned())),
    }
}

fn beside() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(Error::io("read /proc/self/exe"))?;
    let path = own.with_file_name(AGENT);
    match path.is_file() {
        true => Ok(path),
        false => Err(Error::Usage(format!(
            "{AGENT} is not beside {}: name it by --agent",
            own.display()
        ))),
    }
}

/// The initramfs, and the release that the first of its modules tells.
fn archive(folder: &Path, order: &[&str], agent: &Path) -> Result<(Vec<u8>, Option<String>)> {
    let mut archive = Cpio::new(Vec::new());
    let mut release = None;
    let mut names = String::new();
    let write = || Error::io("write an initramfs");
    let mut fill = || {
        for folder in FOLDERS {
            archive.directory(folder).map_err(write())?;
        }
        for (number, path) in order.iter().enumerate() {
            let (name, packing) = unpack::split(path.rsplit('/').next().unwrap_or(path));
            // By number: two modules may have the same file name.
            let name = format!("{number:02}-{name}");
            let path = folder.join(path);
            let data = unpack::read(&path, packing).map_err(Error::on("unpack", &path))?;
            release = release
                .take()
                .or_else(|| modules::release(&data).map(str::to_owned));
            let added = archive.file(&format!("modules/{name}"), 0o644, &data);
            added.map_err(write())?;
            names.push_str(&name);
            names.push('\n');
        }
        let agent = fs::read(agent).map_err(Error::on("read", agent))?;
        let last = archive.file("modules.order", 0o644, names.as_bytes());
        last.and_then(|()| archive.file("init", 0o755, &agent))
            .map_err(write())
    };
    fill()?;
    let bytes = archive.finish().map_err(write())?;
    Ok((bytes, release))
}

/// Under another name first, so that nobody sees half of it.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    let mut file =
        tempfile::NamedTempFile::new_in(folder).map_err(Error::on("make a file in", folder))?;
    file.write_all(bytes).map_err(Error::on("write", &path))?;
    // QEMU, which is nobody, reads them.
    let mode = fs::Permissions::from_mode(0o644);
    let readable = file.as_file().set_permissions(mode);
    readable.map_err(Error::on("chmod", &path))?;
    let persisted = file.persist(&path);
    persisted.map_err(|error| Error::on("write", &path)(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_kernel_modules_and_agent() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let wanted = [
            "virtio_mmio",
            "virtio_console",
            "virtio_scsi",
            "sd_mod",
            "virtio_net",
            "erofs",
            "overlay",
        ];
        fs::create_dir(at("modules")).unwrap();
        let mut lines = String::new();
        for name in wanted {
            fs::write(at(&format!("modules/{name}.ko")), name.repeat(3)).unwrap();
            lines.push_str(&format!("{name}.ko:\n"));
        }
        fs::write(at("modules/modules.dep"), lines).unwrap();
        fs::write(at("modules/modules.builtin"), "").unwrap();
        fs::write(at("vmlinuz"), "a kernel").unwrap();
        fs::write(at("agent"), "an agent").unwrap();
        let source = Source {
            kernel: at("vmlinuz"),
            modules: at("modules"),
            agent: Some(at("agent")),
        };
        let home = Home::at(&at("home")).unwrap();
        let name = Name::default();
        assert!(matches!(
            Image::find(&home, &name),
            Err(Error::NoGuest { .. })
        ));
        let image = build(&source, &home, &name).unwrap();
        assert_eq!(fs::read(&image.kernel).unwrap(), b"a kernel");
        let first = fs::read(&image.initramfs).unwrap();
        let text = String::from_utf8_lossy(&first).into_owned();
        assert!(text.contains("00-virtio_mmio.ko\n01-virtio_console.ko\n"));
        assert!(text.contains("an agent") && text.contains("erofserofserofs"));
        build(&source, &home, &name).unwrap();
        assert_eq!(fs::read(&image.initramfs).unwrap(), first);
        let other = "other".parse().unwrap();
        let image = build(&source, &home, &other).unwrap();
        assert!(image.kernel.ends_with("guests/other/kernel"));
        assert_eq!(
            Image::all(&home).unwrap(),
            [name, other].map(|name| (name, "unknown".to_owned()))
        );
    }

    #[test]
    fn kernel_and_modules_are_of_one_release() {
        let modules = |release: &str| Some(release.to_owned());
        assert_eq!(release(Some("6.1"), modules("6.1")).unwrap(), "6.1");
        assert_eq!(release(None, modules("6.1")).unwrap(), "6.1");
        assert_eq!(release(Some("6.1"), None).unwrap(), "6.1");
        let error = release(Some("6.1"), modules("6.12"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("kernel is 6.1 and the modules are for 6.12"),
            "{error}"
        );
    }
}
