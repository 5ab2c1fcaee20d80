//! What came out: every round, medians, ratios, and the curves of the latencies.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::case::{Case, Workload};
use crate::contender::{Contender, Role};
use crate::engine::AtAck;
use crate::machine::Machine;
use crate::measure::{Outcome, Sizes, histogram, merge};
use crate::session::Plan;
use crate::syscalls::SyscallCounter;

/// Version of the report's shape; grows when a reader of the JSON would stumble.
const SCHEMA: u32 = 1;
/// The store that WT is held against, wherever its shards are.
const WT_REFERENCE: &str = "alluvium/tokio";

/// A whole comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Version of this shape.
    pub schema: u32,
    /// Where it was measured.
    pub machine: Machine,
    /// Rounds.
    pub rounds: usize,
    /// Measured seconds per case, contender and round.
    pub seconds: f64,
    /// How much data the workloads handled.
    pub sizes: Sizes,
    /// Why system calls are not counted; `None` when they are.
    pub syscalls_refused: Option<String>,
    /// The cases, in the order of the plan.
    pub cases: Vec<CaseReport>,
}

/// One case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CaseReport {
    /// Its name, such as `W2` or `WB/64`.
    pub name: String,
    /// What it does.
    pub what: String,
    /// What one operation is.
    pub operation: String,
    /// What `of_reference` is the ratio of, and the project's target; `None` without a reference.
    pub reference: Option<String>,
    /// Who took part.
    pub contenders: Vec<ContenderReport>,
}

/// One contender in one case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContenderReport {
    /// Its name.
    pub name: String,
    /// What it is in the comparison.
    pub role: Role,
    /// What its acknowledgements mean.
    pub durable_at_ack: AtAck,
    /// Medians over the rounds, field by field.
    pub median: Figures,
    /// The rounds.
    pub rounds: Vec<Figures>,
    /// Median of the ratios of throughput to the plain way's, round by round.
    pub of_plain: Option<f64>,
    /// Median of the ratios to the case's reference, round by round.
    pub of_reference: Option<f64>,
    /// Latencies of all rounds together: quantile from 0 to 1, and microseconds.
    pub latency_us: Vec<(f64, f64)>,
}

/// Figures of one run, or medians of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Operations per second.
    pub ops_per_s: f64,
    /// MiB of records per second.
    pub mib_per_s: f64,
    /// Latencies in microseconds.
    pub p50_us: f64,
    /// 99 % are not above this.
    pub p99_us: f64,
    /// 99.9 % are not above this.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// CPU time of the whole process per operation, in microseconds.
    pub cpu_us_per_op: f64,
    /// System calls of the whole process per operation, where they can be counted.
    pub syscalls_per_op: Option<f64>,
    /// Operations per second that were asked for, in an open loop.
    pub offered_per_s: Option<f64>,
}

/// A case as a table of text.
#[derive(Debug, Clone)]
pub struct Table {
    /// Name and description of the case.
    pub title: String,
    /// Heads of the columns; the first two are text, the others numbers.
    pub header: Vec<&'static str>,
    /// One row per contender.
    pub rows: Vec<Vec<String>>,
    /// What to know to read it.
    pub notes: Vec<String>,
}

/// The rounds of one contender in one case.
#[derive(Debug)]
pub(crate) struct Measured {
    name: String,
    role: Role,
    at_ack: AtAck,
    pub(crate) rounds: Vec<Outcome>,
}

impl Measured {
    pub(crate) fn new(contender: &dyn Contender) -> Self {
        Self {
            name: contender.name(),
            role: contender.role(),
            at_ack: contender.at_ack(),
            rounds: Vec::new(),
        }
    }
}

impl Outcome {
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        float(self.operations) / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn mib_per_s(&self) -> f64 {
        float(self.bytes) / 1_048_576.0 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn quantile_us(&self, quantile: f64) -> f64 {
        float(self.latency_ns.value_at_quantile(quantile)) / 1e3
    }

    fn figures(&self) -> Figures {
        let operations = float(self.operations.max(1));
        Figures {
            ops_per_s: self.rate(),
            mib_per_s: self.mib_per_s(),
            p50_us: self.quantile_us(0.5),
            p99_us: self.quantile_us(0.99),
            p999_us: self.quantile_us(0.999),
            max_us: float(self.latency_ns.max()) / 1e3,
            cpu_us_per_op: self.cpu.as_secs_f64() * 1e6 / operations,
            syscalls_per_op: self.syscalls.map(|n| float(n) / operations),
            offered_per_s: self.offered_per_s,
        }
    }
}

impl Report {
    pub(crate) fn new(machine: Machine, plan: &Plan, syscalls: &SyscallCounter) -> Self {
        Self {
            schema: SCHEMA,
            machine,
            rounds: plan.rounds,
            seconds: plan.duration.as_secs_f64(),
            sizes: plan.sizes.clone(),
            syscalls_refused: syscalls.refusal().map(str::to_owned),
            cases: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, case: Case, measured: Vec<Measured>) {
        let plain = measured.iter().find(|m| m.role == Role::Plain);
        let plain = plain.map(|m| m.rounds.clone());
        let reference = measured.iter().find(|m| match case.workload {
            Workload::WT => m.name.split('@').next() == Some(WT_REFERENCE),
            _ => m.role == Role::Reference,
        });
        let reference = reference.map(|m| (m.name.clone(), m.rounds.clone()));
        let contenders = measured.into_iter().map(|m| {
            let rounds: Vec<_> = m.rounds.iter().map(Outcome::figures).collect();
            let of_plain = plain.as_ref().filter(|_| case.has_throughput());
            let of_reference = reference.as_ref().filter(|(name, _)| *name != m.name);
            ContenderReport {
                role: m.role,
                durable_at_ack: m.at_ack,
                median: median_figures(&rounds),
                of_plain: of_plain
                    .and_then(|plain| ratio(&m.rounds, plain, |a, b| a.rate() / b.rate())),
                of_reference: of_reference.and_then(|(_, reference)| {
                    ratio(&m.rounds, reference, |a, b| {
                        against_reference(case.workload, a, b)
                    })
                }),
                latency_us: curve(&m.rounds),
                name: m.name,
                rounds,
            }
        });
        self.cases.push(CaseReport {
            name: case.to_string(),
            what: case.describe(),
            operation: case.operation().to_owned(),
            contenders: contenders.collect(),
            reference: reference.and_then(|_| case.reference().map(str::to_owned)),
        });
    }

    /// Every case as a table.
    pub fn tables(&self) -> Vec<Table> {
        self.cases.iter().map(CaseReport::table).collect()
    }
}

impl Case {
    fn has_throughput(self) -> bool {
        !matches!(self.workload, Workload::WT | Workload::W7)
    }

    /// What the ratio to the reference means.
    fn reference(self) -> Option<&'static str> {
        match self.workload {
            Workload::W1 => Some(
                "of ref.: p50 against one direct durable write of 1.5 KiB at a time; target <= 1.25",
            ),
            Workload::W2 => Some(
                "of ref.: ops/s against 64 / p50 of one direct durable write of 64 KiB; target >= 0.8",
            ),
            Workload::W4 => Some(
                "of ref.: MiB/s against direct durable writes of 256 KiB, 4 in flight; target >= 0.8",
            ),
            Workload::W5 => Some(
                "of ref.: MiB/s against direct writes of 1 MiB, 4 in flight, and a sync; target >= 0.8",
            ),
            Workload::W6 => {
                Some("of ref.: MiB/s against a CRC-32 scan of bytes in memory; target >= 0.5")
            }
            Workload::W6c => {
                Some("of ref.: MiB/s against direct reads of 1 MiB, 8 in flight; target >= 0.8")
            }
            Workload::WT => {
                Some("of ref.: p99.9 against the tokio backend under the same load; target <= 0.5")
            }
            _ => None,
        }
    }
}

fn against_reference(workload: Workload, a: &Outcome, reference: &Outcome) -> f64 {
    match workload {
        Workload::W1 => a.quantile_us(0.5) / reference.quantile_us(0.5),
        Workload::W2 => a.rate() / (64e6 / reference.quantile_us(0.5)),
        Workload::WT => a.quantile_us(0.999) / reference.quantile_us(0.999),
        _ => a.mib_per_s() / reference.mib_per_s(),
    }
}

fn ratio(a: &[Outcome], b: &[Outcome], of: impl Fn(&Outcome, &Outcome) -> f64) -> Option<f64> {
    let ratios = a.iter().zip(b).map(|(a, b)| of(a, b));
    median(ratios.filter(|ratio| ratio.is_finite()).collect())
}

impl CaseReport {
    /// The case as a table.
    pub fn table(&self) -> Table {
        let mut header = vec![
            "",
            "durable",
            "ops/s",
            "MiB/s",
            "p50",
            "p99",
            "p99.9",
            "max",
            "CPU us/op",
            "calls/op",
        ];
        let with_plain = self.contenders.iter().any(|c| c.of_plain.is_some());
        let with_reference = self.contenders.iter().any(|c| c.of_reference.is_some());
        if with_plain {
            header.push("of plain");
        }
        if with_reference {
            header.push("of ref.");
        }
        let row = |c: &ContenderReport| {
            let m = &c.median;
            let mut row = vec![
                c.name.clone(),
                c.durable_at_ack.as_str().to_owned(),
                number(m.ops_per_s),
                number(m.mib_per_s),
                micros(m.p50_us),
                micros(m.p99_us),
                micros(m.p999_us),
                micros(m.max_us),
                format!("{:.2}", m.cpu_us_per_op),
                m.syscalls_per_op
                    .map_or_else(String::new, |n| format!("{n:.2}")),
            ];
            let times = |ratio: Option<f64>| ratio.map_or_else(String::new, |r| format!("{r:.2}x"));
            if with_plain {
                row.push(times(c.of_plain));
            }
            if with_reference {
                row.push(times(c.of_reference));
            }
            row
        };
        let mut notes: Vec<_> = self.reference.iter().cloned().collect();
        if self
            .contenders
            .iter()
            .any(|c| c.durable_at_ack == AtAck::NotDurable)
        {
            notes.push("NO: acknowledges before the record is on stable media".to_owned());
        }
        Table {
            title: format!(
                "{}: {} (operation: {})",
                self.name, self.what, self.operation
            ),
            header,
            rows: self.contenders.iter().map(row).collect(),
            notes,
        }
    }
}

fn median_figures(rounds: &[Figures]) -> Figures {
    let over = |f: fn(&Figures) -> f64| median(rounds.iter().map(f).collect()).unwrap_or(0.0);
    let maybe = |f: fn(&Figures) -> Option<f64>| median(rounds.iter().filter_map(f).collect());
    Figures {
        ops_per_s: over(|f| f.ops_per_s),
        mib_per_s: over(|f| f.mib_per_s),
        p50_us: over(|f| f.p50_us),
        p99_us: over(|f| f.p99_us),
        p999_us: over(|f| f.p999_us),
        max_us: over(|f| f.max_us),
        cpu_us_per_op: over(|f| f.cpu_us_per_op),
        syscalls_per_op: maybe(|f| f.syscalls_per_op),
        offered_per_s: maybe(|f| f.offered_per_s),
    }
}

/// The middle value, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len().is_multiple_of(2) {
        return Some(f64::midpoint(values[values.len() / 2 - 1], upper));
    }
    Some(upper)
}

/// Points at quantiles that come ever closer to 1, as far as there are values to tell them apart.
fn curve(rounds: &[Outcome]) -> Vec<(f64, f64)> {
    let mut all: Histogram<u64> = histogram();
    for outcome in rounds {
        merge(&mut all, &outcome.latency_ns);
    }
    let mut points = Vec::new();
    let mut beyond = 1.0_f64;
    while beyond * float(all.len()) >= 1.0 {
        let quantile = 1.0 - beyond;
        points.push((quantile, float(all.value_at_quantile(quantile)) / 1e3));
        beyond /= 10_f64.powf(0.125);
    }
    points
}

/// A number with as many digits as a reader can use.
fn number(n: f64) -> String {
    match n {
        n if n >= 100.0 => grouped(n),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

/// Rounded to a whole number, with its thousands apart.
fn grouped(n: f64) -> String {
    let digits = format!("{n:.0}");
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A time in microseconds, as text in the unit that suits it.
pub fn micros(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.2} s", us / 1e6),
        us if us >= 1e3 => format!("{:.2} ms", us / 1e3),
        us => format!("{us:.1} us"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn float(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn outcome(operations: u64, latency_us: u64) -> Outcome {
        let mut latency_ns = histogram();
        latency_ns.saturating_record_n(latency_us * 1_000, operations);
        Outcome {
            operations,
            bytes: operations << 20,
            elapsed: Duration::from_secs(2),
            cpu: Duration::from_micros(operations * 3),
            syscalls: None,
            latency_ns,
            offered_per_s: None,
        }
    }

    #[test]
    fn figures_are_per_second_and_per_operation() {
        let figures = outcome(100, 5_000).figures();
        assert!((figures.ops_per_s - 50.0).abs() < 1e-6);
        assert!((figures.mib_per_s - 50.0).abs() < 1e-6);
        assert!((figures.cpu_us_per_op - 3.0).abs() < 1e-6);
        assert!((figures.p99_us / 5_000.0 - 1.0).abs() < 0.01);
        assert_eq!(figures.syscalls_per_op, None);
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        // The machine was twice as fast in the second round: the ratio is the same in both.
        let store = [outcome(100, 10), outcome(200, 5)];
        let plain = [outcome(10, 100), outcome(20, 50)];
        let throughput = ratio(&store, &plain, |a, b| a.rate() / b.rate());
        assert!((throughput.expect("two rounds") - 10.0).abs() < 1e-6);
        let w1 = against_reference(Workload::W1, &plain[0], &store[0]);
        assert!((w1 / 10.0 - 1.0).abs() < 0.01);
        let w2 = against_reference(Workload::W2, &store[0], &store[0]);
        assert!((w2 / (50.0 / 6.4e6) - 1.0).abs() < 0.01);
        assert_eq!(ratio(&[], &[], |_, _| 1.0), None);
    }

    #[test]
    fn medians_and_curves() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        let points = curve(&[outcome(500, 7), outcome(500, 70)]);
        assert!(points.len() > 20, "{points:?}");
        assert!(points.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
        assert!(
            points
                .last()
                .is_some_and(|(q, _)| (0.998..0.9991).contains(q))
        );
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(number(1_234_567.0), "1,234,567");
        assert_eq!(number(12.34), "12.3");
        assert_eq!(micros(0.25), "0.2 us");
        assert_eq!(micros(1_500.0), "1.50 ms");
        assert_eq!(micros(2_000_000.0), "2.00 s");
    }
}
