//! Values of version 1, as the specification has them, made into values of version 2.
//!
//! Pure; the formulas are runc's, so that a container is limited alike under both.

use crate::{Error, Result};

/// cpu.weight (1..=10000) for cpu.shares (2..=262144); none for 0, which is unset.
///
/// The curve goes through the smallest, the default (1024 to 100) and the largest value of both, as
/// runc's does since 1.4. A straight line would give a container with default shares less than half
/// of what a cgroup nobody has touched gets.
pub(crate) fn weight_of_shares(shares: u64) -> Option<u64> {
    match shares {
        0 => None,
        1..=2 => Some(1),
        262_144.. => Some(10_000),
        _ => Some(weight_on_curve(shares)),
    }
}

/// ceil(10^((l² + 125·l)/612 - 7/34)) with l = log2(shares), for shares from 3 to 262143.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shares are below 2^18, the result lies between 1 and 10000"
)]
fn weight_on_curve(shares: u64) -> u64 {
    let l = (shares as f64).log2();
    10_f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
}

/// io.weight (1..=10000) for blkio.weight (10..=1000), linearly; none for 0, which is unset.
pub(crate) fn io_weight(weight: u16) -> Option<u64> {
    if weight == 0 {
        return None;
    }
    Some(1 + u64::from(weight).saturating_sub(10) * 9_999 / 990)
}

/// memory.swap.max for a limit of memory and swap together; `Some(-1)` is `max`, none is "leave
/// it". Unlimited memory without a word on swap unlimits swap too, as on version 1.
pub(crate) fn swap_alone(swap: i64, memory: i64) -> Result<Option<i64>> {
    let refused = |why: String| {
        Err(Error::Invalid {
            field: "linux.resources.memory.swap",
            why,
        })
    };
    match (swap, memory) {
        (0, -1) | (-1, _) => Ok(Some(-1)),
        (0, _) => Ok(None),
        (swap, -1) => Ok(Some(swap)),
        (_, 0) => refused("unable to set swap limit without memory limit".to_owned()),
        (_, memory) if memory < 0 => refused(format!("invalid memory value: {memory}")),
        (swap, memory) if swap < memory => {
            refused("memory+swap limit should be >= memory limit".to_owned())
        }
        (swap, memory) => Ok(Some(swap - memory)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_lie_on_runcs_curve() {
        for (shares, weight) in [
            (0, None),
            (1, Some(1)),
            (2, Some(1)),
            (3, Some(2)),
            (256, Some(35)),
            (512, Some(59)),
            (1024, Some(100)),
            (2048, Some(174)),
            (262_143, Some(10_000)),
            (262_144, Some(10_000)),
            (u64::MAX, Some(10_000)),
        ] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }

    #[test]
    fn more_shares_are_never_less_weight() {
        let weights = (1..=262_144).map(|shares| weight_of_shares(shares).unwrap());
        assert!(weights.is_sorted());
    }

    #[test]
    fn block_weights_spread_linearly() {
        for (given, weight) in [
            (0, None),
            (5, Some(1)),
            (10, Some(1)),
            (500, Some(4950)),
            (1000, Some(10_000)),
        ] {
            assert_eq!(io_weight(given), weight, "{given}");
        }
    }

    #[test]
    fn swap_loses_the_memory_in_it() {
        for (swap, memory, alone) in [
            (0, 0, None),
            (0, 4096, None),
            (0, -1, Some(-1)),
            (-1, 4096, Some(-1)),
            (-1, 0, Some(-1)),
            (8192, -1, Some(8192)),
            (8192, 4096, Some(4096)),
            (4096, 4096, Some(0)),
        ] {
            assert_eq!(swap_alone(swap, memory).unwrap(), alone, "{swap} {memory}");
        }
        for (swap, memory) in [(4096, 0), (4096, -2), (4096, 8192)] {
            assert!(swap_alone(swap, memory).is_err(), "{swap} {memory}");
        }
    }
}
