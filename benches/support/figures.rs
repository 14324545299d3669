//! Figures: measured in turns with what they are compared to, shown beside what was promised.

use std::fmt::Write as _;

/// What the ratio of a figure should be.
#[derive(Clone, Copy)]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
    /// Shown for comparison only.
    Nothing,
}

/// The table. Every line is printed as soon as it is known, all of them again at the end.
#[derive(Default)]
pub struct Figures(Vec<String>);

impl Figures {
    /// Measures both in turns, each round the other one first, and notes the medians and the median
    /// of the rounds' ratios: what else the machine does meanwhile meets both alike.
    #[allow(clippy::too_many_arguments)]
    pub fn compare(
        &mut self,
        rounds: usize,
        what: &str,
        unit: &str,
        against: &str,
        wanted: Wanted,
        mut ours: impl FnMut() -> f64,
        mut theirs: impl FnMut() -> f64,
    ) {
        let (mut mine, mut yours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            let (a, b) = if round % 2 == 0 {
                let a = ours();
                (a, theirs())
            } else {
                let b = theirs();
                (ours(), b)
            };
            ratios.push(a / b);
            mine.push(a);
            yours.push(b);
        }
        self.note(
            what,
            unit,
            median(mine),
            against,
            median(yours),
            median(ratios),
            wanted,
        );
    }

    /// Notes a figure beside a fixed limit or another measured one.
    pub fn beside(
        &mut self,
        what: &str,
        unit: &str,
        value: f64,
        against: &str,
        other: f64,
        wanted: Wanted,
    ) {
        self.note(what, unit, value, against, other, value / other, wanted);
    }

    #[allow(clippy::too_many_arguments)]
    fn note(
        &mut self,
        what: &str,
        unit: &str,
        ours: f64,
        against: &str,
        theirs: f64,
        ratio: f64,
        wanted: Wanted,
    ) {
        let mut line = format!(
            "{what:46} {:>9} {unit:5} {:>9} {against:26} {ratio:7.2}",
            short(ours),
            short(theirs)
        );
        let held = match wanted {
            Wanted::AtLeast(limit) => {
                write!(line, "  >= {limit:<5}").ok();
                Some(ratio >= limit)
            }
            Wanted::AtMost(limit) => {
                write!(line, "  <= {limit:<5}").ok();
                Some(ratio <= limit)
            }
            Wanted::Nothing => None,
        };
        line.push_str(match held {
            Some(true) => " ok",
            Some(false) => " MISSED",
            None => "",
        });
        eprintln!("{line}");
        self.0.push(line);
    }

    /// Prints all lines to standard output.
    pub fn print(&self) {
        println!(
            "\n{:46} {:>9} {:5} {:>9} {:26} {:>7}  wanted",
            "", "brfs", "", "", "compared to", "ratio"
        );
        for line in &self.0 {
            println!("{line}");
        }
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
