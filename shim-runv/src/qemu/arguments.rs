//! QEMU's command line as a pure function: what a machine has, and nothing that it does not need.

use std::path::PathBuf;

use super::Accelerator;
use crate::image::Image;
use crate::size::Size;

/// Descriptor number of the agent's port: one end of a socket pair.
pub const AGENT_FD: i32 = 3;

/// Descriptor number of the monitor's socket.
pub const MONITOR_FD: i32 = 4;

/// Descriptor number of the memory, where it is a file: a template's, or that of a machine that shares
/// volumes.
pub const MEMORY_FD: i32 = 5;

/// Descriptor number of the socket at which its volumes are served.
pub const VOLUMES_FD: i32 = 6;

/// Descriptor number of the file for what the guest writes to its console.
pub const CONSOLE_FD: i32 = 7;

/// Descriptor number of the kernel, of a machine that boots.
pub const KERNEL_FD: i32 = 8;

/// Descriptor number of the initramfs, of a machine that boots.
pub const INITRAMFS_FD: i32 = 9;

/// Descriptor number of the first link's tap; those of the others follow.
pub const LINK_FD: i32 = 10;

/// Number by which QEMU's own lists of descriptors have the console. Disks have those of their units.
pub const CONSOLE_SET: u16 = 0;

/// Name of the SCSI adapter, whose bus is `NAME.0`.
pub const SCSI: &str = "pod";

/// Links that a machine can have: as many transports for devices as a microvm has without ACPI, less
/// those that others take.
pub const LINKS_MAX: usize = 4;

/// What is in a machine's memory when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Nothing: it boots.
    Empty,
    /// Nothing, and it is to become a template's.
    Template,
    /// What a template's has, copied where it is written: the machine goes on where that one was stopped.
    Copy,
}

/// Whether a machine sees volumes of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volumes {
    /// No.
    None,
    /// Those that virtiofsd serves, which maps the machine's memory.
    Shared,
}

/// A machine to start.
#[derive(Debug, Clone)]
pub struct Arguments {
    /// Kernel and initramfs.
    pub image: Image,
    /// How it runs.
    pub accelerator: Accelerator,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// What is in it.
    pub memory: Memory,
    /// Processors.
    pub processors: u32,
    /// Rate of the host's time stamp counter, which the guest shares.
    pub tsc_khz: Option<u64>,
    /// What of the host it sees.
    pub volumes: Volumes,
    /// How many links it has, at most [`LINKS_MAX`]. All machines begin with the same hardware addresses,
    /// and are told their own.
    pub links: usize,
    /// File for what the guest writes to its console.
    pub console: PathBuf,
}

impl Arguments {
    /// How large the machine is.
    pub(crate) fn size(&self) -> Size {
        Size {
            memory_mib: self.memory_mib,
            processors: self.processors,
        }
    }

    /// What the kernel is told. Without the rate of its clock an emulated machine, which has nothing to
    /// measure it by, sometimes spins for ever.
    fn kernel_words(&self) -> String {
        let mut words = vec![
            "console=ttyS0".to_owned(),
            "quiet".to_owned(),
            "panic=-1".to_owned(),
            "reboot=t".to_owned(),
            "no_timer_check".to_owned(),
            "swiotlb=noforce".to_owned(),
            "rcupdate.rcu_expedited=1".to_owned(),
            "random.trust_cpu=on".to_owned(),
            "cgroup_no_v1=all".to_owned(),
        ];
        if let Some(khz) = self.tsc_khz {
            words.push(format!("tsc_early_khz={khz}"));
            words.push("tsc=reliable".to_owned());
        }
        words.join(" ")
    }

    /// Whether another process maps its memory: it cannot be a private copy of somebody's.
    #[must_use]
    pub fn needs_shared_memory(&self) -> bool {
        self.volumes == Volumes::Shared
    }

    /// Its memory where that is a file, and what has to do with that.
    fn of_memory(&self) -> Vec<(&'static str, String)> {
        let share = match (self.memory, self.needs_shared_memory()) {
            (Memory::Empty, false) => return Vec::new(),
            (Memory::Copy, _) => "off",
            (Memory::Template, _) | (Memory::Empty, true) => "on",
        };
        let memory = format!(
            "memory-backend-file,id=memory,size={}M,mem-path=/proc/self/fd/{MEMORY_FD},share={share}",
            self.memory_mib
        );
        let mut words = vec![
            ("-object", memory),
            ("-machine", "memory-backend=memory".to_owned()),
        ];
        if self.memory == Memory::Copy {
            // Until the monitor says from where.
            words.push(("-incoming", "defer".to_owned()));
        }
        if self.needs_shared_memory() {
            let tag = guest::call::VOLUMES_TAG;
            let device = format!("vhost-user-fs-device,chardev=volumes,tag={tag}");
            words.push(("-chardev", format!("socket,id=volumes,fd={VOLUMES_FD}")));
            words.push(("-device", device));
        }
        words
    }

    /// What it boots; one that goes on has it in its memory, and QEMU need not read it again.
    fn of_image(&self) -> Vec<(&'static str, String)> {
        match self.memory {
            Memory::Copy => Vec::new(),
            Memory::Empty | Memory::Template => vec![
                ("-kernel", format!("/proc/self/fd/{KERNEL_FD}")),
                ("-initrd", format!("/proc/self/fd/{INITRAMFS_FD}")),
                ("-append", self.kernel_words()),
            ],
        }
    }

    /// The command line without the program's name. It names no file of the host.
    #[must_use]
    pub fn render(&self) -> Vec<String> {
        // In several threads, a kernel that patches its own text may run a stale instruction.
        let (accelerator, cpu) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Tcg => ("tcg,thread=single,tb-size=16", "max"),
        };
        let console = format!("fd={CONSOLE_FD},set={CONSOLE_SET}");
        let pairs: [(&str, String); 18] = [
            ("-M", "microvm".to_owned()),
            ("-accel", accelerator.to_owned()),
            ("-cpu", cpu.to_owned()),
            ("-smp", self.processors.to_string()),
            ("-m", self.memory_mib.to_string()),
            ("-display", "none".to_owned()),
            ("-monitor", "none".to_owned()),
            ("-global", "virtio-mmio.force-legacy=false".to_owned()),
            ("-add-fd", console),
            ("-serial", format!("file:/dev/fdset/{CONSOLE_SET}")),
            ("-device", "virtio-serial-device".to_owned()),
            ("-chardev", format!("socket,id=agent,fd={AGENT_FD}")),
            (
                "-device",
                format!("virtserialport,chardev=agent,name={}", guest::PORT),
            ),
            ("-device", "virtio-rng-device".to_owned()),
            ("-device", format!("virtio-scsi-device,id={SCSI}")),
            ("-chardev", format!("socket,id=monitor,fd={MONITOR_FD}")),
            ("-mon", "chardev=monitor,mode=control".to_owned()),
            (
                "-sandbox",
                "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
                    .to_owned(),
            ),
        ];
        let links = (LINK_FD..).zip(0..self.links).flat_map(|(fd, link)| {
            let mac = guest::first_mac(link);
            let back = format!("tap,id=link{fd},fd={fd},vhost=off");
            let front = format!("virtio-net-device,netdev=link{fd},mac={mac}");
            [("-netdev", back), ("-device", front)]
        });
        let mut words: Vec<String> = ["-nodefaults", "-no-user-config", "-no-reboot"]
            .map(str::to_owned)
            .into();
        let rest = self.of_image().into_iter().chain(self.of_memory());
        for (name, value) in pairs.into_iter().chain(rest).chain(links) {
            words.push(name.to_owned());
            words.push(value);
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = "\
-nodefaults -no-user-config -no-reboot -M microvm -accel tcg,thread=single,tb-size=16 -cpu max -smp 2 \
-m 512 -display none -monitor none -global virtio-mmio.force-legacy=false \
-add-fd fd=7,set=0 -serial file:/dev/fdset/0 \
-device virtio-serial-device -chardev socket,id=agent,fd=3 \
-device virtserialport,chardev=agent,name=pouch.runv.agent \
-device virtio-rng-device -device virtio-scsi-device,id=pod -chardev socket,id=monitor,fd=4 \
-mon chardev=monitor,mode=control \
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

    const BOOTS: &str = " -kernel /proc/self/fd/8 -initrd /proc/self/fd/9 \
-append console=ttyS0 quiet panic=-1 reboot=t no_timer_check swiotlb=noforce rcupdate.rcu_expedited=1 \
random.trust_cpu=on cgroup_no_v1=all tsc_early_khz=2100000 tsc=reliable";

    fn machine() -> Arguments {
        Arguments {
            image: Image {
                name: crate::image::Name::default(),
                kernel: "/g/kernel".into(),
                initramfs: "/g/initramfs".into(),
            },
            accelerator: Accelerator::Tcg,
            memory_mib: 512,
            memory: Memory::Empty,
            processors: 2,
            tsc_khz: Some(2_100_000),
            volumes: Volumes::None,
            links: 0,
            console: "/s/console".into(),
        }
    }

    #[test]
    fn a_machine_is_this_command_line() {
        assert_eq!(machine().render().join(" "), format!("{GOLDEN}{BOOTS}"));
    }

    #[test]
    fn each_link_is_a_card_with_its_own_descriptor() {
        let machine = Arguments {
            links: 2,
            ..machine()
        };
        let line = machine.render().join(" ");
        let expected = "-netdev tap,id=link10,fd=10,vhost=off -device virtio-net-device,netdev=link10,mac=02:72:75:6e:76:00 \
                        -netdev tap,id=link11,fd=11,vhost=off -device virtio-net-device,netdev=link11,mac=02:72:75:6e:76:01";
        assert_eq!(line, format!("{GOLDEN}{BOOTS} {expected}"));
    }

    #[test]
    fn a_template_and_its_copies_are_the_same_machine() {
        let line = |memory| {
            let machine = Arguments {
                memory,
                ..machine()
            };
            machine.render().join(" ")
        };
        let memory = "-object memory-backend-file,id=memory,size=512M,mem-path=/proc/self/fd/5";
        let machine = "-machine memory-backend=memory";
        let expected = format!("{GOLDEN}{BOOTS} {memory},share=on {machine}");
        assert_eq!(line(Memory::Template), expected);
        let expected = format!("{GOLDEN} {memory},share=off {machine} -incoming defer");
        assert_eq!(line(Memory::Copy), expected);
    }

    #[test]
    fn a_machine_with_volumes_shares_its_memory() {
        let machine = Arguments {
            volumes: Volumes::Shared,
            ..machine()
        };
        let line = machine.render().join(" ");
        let expected = "-object memory-backend-file,id=memory,size=512M,mem-path=/proc/self/fd/5,share=on \
                        -machine memory-backend=memory -chardev socket,id=volumes,fd=6 \
                        -device vhost-user-fs-device,chardev=volumes,tag=volumes";
        assert_eq!(line, format!("{GOLDEN}{BOOTS} {expected}"));
    }

    #[test]
    fn with_kvm_the_processor_is_the_hosts() {
        let machine = Arguments {
            accelerator: Accelerator::Kvm,
            tsc_khz: None,
            ..machine()
        };
        let line = machine.render().join(" ");
        assert!(line.contains("-accel kvm -cpu host"), "{line}");
        assert!(!line.contains("tsc"), "{line}");
    }
}
