//! Samples of a stock part and of ours taken in turn: medians, p99, ratios, as a table and as a plot. Pure.

use std::fmt::Write as _;

/// What the two are called.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// The stock part: `runc`.
    pub stock: &'static str,
    /// Ours: `runlxc`.
    pub ours: &'static str,
}

/// One thing that was measured on both in the same run.
#[derive(Debug, Clone)]
pub struct Measure {
    /// What: `ctr run --rm busybox true`.
    pub name: String,
    /// `ms`, `MiB`, `threads`...
    pub unit: &'static str,
    /// Samples of the stock part; none where it has nothing like it.
    pub stock: Vec<f64>,
    /// Samples of ours.
    pub ours: Vec<f64>,
    /// What is to be reached.
    pub goal: Goal,
}

/// What a measure is to reach.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// It is only told.
    None,
    /// The most that our median may be of stock's.
    RatioMax(f64),
    /// The most that our median may be.
    OursMax(f64),
    /// The least that it may be.
    OursMin(f64),
}

/// The sample below which `part` (0 to 1) of all lie; nearest rank, 0 of none.
#[must_use]
pub fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let ranks = sorted.iter().enumerate();
    let wanted = part * as_f64(sorted.len());
    ranks
        .filter(|(rank, _)| as_f64(rank + 1) >= wanted)
        .map(|(_, value)| *value)
        .next()
        .unwrap_or(0.0)
}

#[expect(clippy::cast_precision_loss, reason = "counts of samples are small")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

impl Measure {
    /// One without samples yet.
    #[must_use]
    pub fn new(name: &str, unit: &'static str, goal: Goal) -> Self {
        Self {
            name: name.to_owned(),
            unit,
            stock: Vec::new(),
            ours: Vec::new(),
            goal,
        }
    }

    /// Our median by stock's.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        quantile(&self.ours, 0.5) / quantile(&self.stock, 0.5)
    }

    fn verdict(&self) -> String {
        let median = quantile(&self.ours, 0.5);
        let (is_reached, goal) = match self.goal {
            Goal::None => return String::new(),
            Goal::RatioMax(max) => (self.ratio() <= max, format!("ratio ≤ {max}")),
            Goal::OursMax(max) => (median <= max, format!("p50 ≤ {max}")),
            Goal::OursMin(min) => (median >= min, format!("p50 ≥ {min}")),
        };
        let word = if is_reached { "reached" } else { "MISSED" };
        format!("{goal}: {word}")
    }
}

/// Three digits at least, one after the point at least.
fn show(value: f64) -> String {
    let after = match value {
        _ if value == 0.0 || value >= 10.0 => 1,
        1.0..10.0 => 2,
        0.1..1.0 => 3,
        0.01..0.1 => 4,
        _ => 5,
    };
    format!("{value:.after$}")
}

/// All measures, a line each.
#[must_use]
pub fn table(names: Names, measures: &[Measure]) -> String {
    let mut text = format!(
        "{:<46} {:>14} {:>9} {:>14} {:>9} {:>8}  goal\n",
        "",
        format!("{} p50", names.stock),
        "p99",
        format!("{} p50", names.ours),
        "p99",
        "ratio"
    );
    for measure in measures {
        let at = |samples: &[f64], part| match samples {
            [] => "-".to_owned(),
            _ => show(quantile(samples, part)),
        };
        let name = format!(
            "{} [{}] n={}",
            measure.name,
            measure.unit,
            measure.ours.len()
        );
        let ratio = match measure.ratio() {
            ratio if ratio.is_finite() => show(ratio),
            _ => "-".to_owned(),
        };
        let written = writeln!(
            text,
            "{name:<46} {:>14} {:>9} {:>14} {:>9} {ratio:>8}  {}",
            at(&measure.stock, 0.5),
            at(&measure.stock, 0.99),
            at(&measure.ours, 0.5),
            at(&measure.ours, 0.99),
            measure.verdict()
        );
        written.expect("a String takes all");
    }
    text
}

const ROW_PX: f64 = 64.0;
const LEFT_PX: f64 = 260.0;
const WIDTH_PX: f64 = 460.0;

/// The same as a plot: a bar to the median, a whisker to p99, each measure on its own scale.
#[must_use]
pub fn plot(names: Names, measures: &[Measure], title: &str) -> String {
    let height = ROW_PX * as_f64(measures.len()) + 60.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"820\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"14\">{}</text>\n",
        escape(title)
    );
    for (row, measure) in measures.iter().enumerate() {
        let top = 48.0 + ROW_PX * as_f64(row);
        let most = quantile(&measure.stock, 0.99).max(quantile(&measure.ours, 0.99));
        let scale = WIDTH_PX / if most > 0.0 { most } else { 1.0 };
        let label = format!("{} [{}]", measure.name, measure.unit);
        let written = writeln!(
            svg,
            "<text x=\"16\" y=\"{}\">{}</text>",
            top + 24.0,
            escape(&label)
        );
        written.expect("a String takes all");
        svg.push_str(&bar((top, "#888888"), names.stock, &measure.stock, scale));
        svg.push_str(&bar(
            (top + 22.0, "#2a6fb0"),
            names.ours,
            &measure.ours,
            scale,
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

fn bar((top, colour): (f64, &str), name: &str, samples: &[f64], scale: f64) -> String {
    let [median, p99] = [0.5, 0.99].map(|part| quantile(samples, part));
    let middle = top + 9.0;
    format!(
        "<rect x=\"{LEFT_PX}\" y=\"{top}\" width=\"{:.1}\" height=\"18\" fill=\"{colour}\"/>\n\
         <line x1=\"{:.1}\" y1=\"{middle}\" x2=\"{:.1}\" y2=\"{middle}\" stroke=\"{colour}\"/>\n\
         <text x=\"{:.1}\" y=\"{}\">{name} {median:.1}, p99 {p99:.1}</text>\n",
        median * scale,
        LEFT_PX + median * scale,
        LEFT_PX + p99 * scale,
        LEFT_PX + 6.0,
        top + 13.0,
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_by_nearest_rank() {
        let check = |samples: &[f64], part: f64, expected: f64| {
            assert!(
                (quantile(samples, part) - expected).abs() < 1e-9,
                "{samples:?} {part}"
            );
        };
        check(&[3.0, 1.0, 2.0], 0.5, 2.0);
        check(&[1.0], 0.99, 1.0);
        check(&[4.0, 1.0, 2.0, 3.0], 0.5, 2.0);
        check(&[4.0, 1.0, 2.0, 3.0], 0.99, 4.0);
        check(&[], 0.5, 0.0);
    }

    #[test]
    fn a_missed_goal_is_said() {
        let names = Names {
            stock: "runc",
            ours: "runlxc",
        };
        let measure = |ours: f64, goal| Measure {
            stock: vec![10.0],
            ours: vec![ours],
            ..Measure::new("x", "ms", goal)
        };
        let check = |ours: f64, goal, expected: &str| {
            let said = table(names, &[measure(ours, goal)]);
            assert!(said.contains(expected), "{said}");
        };
        check(7.0, Goal::RatioMax(0.8), "ratio ≤ 0.8: reached");
        check(9.0, Goal::RatioMax(0.8), "ratio ≤ 0.8: MISSED");
        check(9.0, Goal::OursMax(9.0), "p50 ≤ 9: reached");
        check(9.1, Goal::OursMax(9.0), "p50 ≤ 9: MISSED");
        check(9.0, Goal::OursMin(9.0), "p50 ≥ 9: reached");
        check(8.9, Goal::OursMin(9.0), "p50 ≥ 9: MISSED");
        let alone = Measure {
            stock: Vec::new(),
            ..measure(0.25, Goal::OursMax(1.0))
        };
        let said = table(names, &[alone]);
        assert!(said.contains(" - ") && said.contains("0.250"), "{said}");
        let drawn = plot(names, &[measure(9.0, Goal::None)], "a < b");
        assert!(drawn.contains("a &lt; b"));
    }
}
