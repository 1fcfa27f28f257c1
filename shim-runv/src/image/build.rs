//! Makes the guest image of a kernel that is there, in a second and without tools.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::cpio::Cpio;
use super::{INITRAMFS, Image, KERNEL, modules};
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
    /// `lib/modules/RELEASE`, with plain `.ko` files and modules.dep.
    pub modules: PathBuf,
    /// The agent; none: the one beside this program.
    pub agent: Option<PathBuf>,
}

/// Makes the image of this place; one that is there is replaced, and machines that run keep theirs.
///
/// # Errors
/// [`Error::Kernel`] for one that lacks a module, or what a file says.
pub fn build(source: &Source, home: &Home) -> Result<Image> {
    let text = |name: &str| {
        let path = source.modules.join(name);
        fs::read_to_string(&path).map_err(Error::on("read", &path))
    };
    let dependencies = text("modules.dep")?;
    let order = modules::order(&dependencies, &text("modules.builtin")?)?;
    let agent = match &source.agent {
        Some(path) => path.clone(),
        None => beside()?,
    };
    let archive = archive(&source.modules, &order, &agent)?;
    let kernel = fs::read(&source.kernel).map_err(Error::on("read", &source.kernel))?;
    let folder = home.guest();
    fs::create_dir_all(&folder).map_err(Error::on("create", &folder))?;
    write(&folder, KERNEL, &kernel)?;
    write(&folder, INITRAMFS, &archive)?;
    Image::find(home)
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

fn archive(folder: &Path, order: &[&str], agent: &Path) -> Result<Vec<u8>> {
    let mut archive = Cpio::new(Vec::new());
    let write = Error::io("write an initramfs");
    let mut fill = || {
        for folder in FOLDERS {
            archive.directory(folder)?;
        }
        let mut names = String::new();
        for (number, path) in order.iter().enumerate() {
            // By number: two modules may have the same file name.
            let name = format!("{number:02}-{}", path.rsplit('/').next().unwrap_or(path));
            let data = fs::read(folder.join(path))?;
            archive.file(&format!("modules/{name}"), 0o644, &data)?;
            names.push_str(&name);
            names.push('\n');
        }
        archive.file("modules.order", 0o644, names.as_bytes())?;
        archive.file("init", 0o755, &fs::read(agent)?)
    };
    fill().map_err(write)?;
    archive.finish().map_err(Error::io("write an initramfs"))
}

/// Under another name first, so that nobody sees half of it.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    let mut file =
        tempfile::NamedTempFile::new_in(folder).map_err(Error::on("make a file in", folder))?;
    file.write_all(bytes).map_err(Error::on("write", &path))?;
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
            "virtio_blk",
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
        assert!(matches!(Image::find(&home), Err(Error::NoGuest(_))));
        let image = build(&source, &home).unwrap();
        assert_eq!(fs::read(&image.kernel).unwrap(), b"a kernel");
        let first = fs::read(&image.initramfs).unwrap();
        let text = String::from_utf8_lossy(&first).into_owned();
        assert!(text.contains("00-virtio_mmio.ko\n01-virtio_console.ko\n"));
        assert!(text.contains("an agent") && text.contains("erofserofserofs"));
        build(&source, &home).unwrap();
        assert_eq!(fs::read(&image.initramfs).unwrap(), first);
    }
}
