//! How fast the processor's time stamp counter runs; must not decide whether it can be trusted.

use std::time::{Duration, Instant};

/// So long it is watched at least: the clock's own grain is a millionth of that.
const WATCH: Duration = Duration::from_millis(10);

/// The counter, watched since a moment in the past.
#[derive(Debug, Clone, Copy)]
pub struct TimeStampCounter {
    from: u64,
    begun: Instant,
}

impl TimeStampCounter {
    /// From now on; none on a processor that has no such counter.
    #[must_use]
    pub fn watch() -> Option<Self> {
        Some(Self {
            from: ticks()?,
            begun: Instant::now(),
        })
    }

    /// Its ticks in a millisecond, measured against the monotonic clock. Whoever asks before it has been
    /// watched for 10 ms waits for the rest of them.
    #[must_use]
    pub fn khz(self) -> Option<u64> {
        let mut elapsed = self.begun.elapsed();
        while elapsed < WATCH {
            std::hint::spin_loop();
            elapsed = self.begun.elapsed();
        }
        let ticks = u128::from(ticks()?.wrapping_sub(self.from));
        u64::try_from(ticks * 1_000_000 / elapsed.as_nanos()).ok()
    }
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn it_runs_as_fast_as_processors_do_and_evenly() {
        let measured = [(); 3].map(|()| TimeStampCounter::watch().unwrap().khz().unwrap());
        let (least, most) = (
            measured.iter().min().unwrap(),
            measured.iter().max().unwrap(),
        );
        assert!(*least > 100_000 && *most < 20_000_000, "{measured:?}");
        assert!(most - least < least / 20, "{measured:?}");
    }
}
