//! The workloads by name, and the cases that they are run in.

use std::fmt;
use std::str::FromStr;

use crate::engine::Level;
use crate::error::Error;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Workload {
    /// Durable appends of 1 KiB by one producer, one at a time.
    W1,
    /// Durable appends of 1 KiB by 64 producers to one partition.
    W2,
    /// Durable appends of 1 KiB by 256 producers to 16 partitions.
    W3,
    /// Durable appends of 1 KiB by 1,000 producers to 1,000 partitions.
    W3k,
    /// Durable batches of 64 records by 8 producers.
    W4,
    /// Batches of 64 records acknowledged when they are written, by 8 producers, and one sync.
    W5,
    /// Sequential read of records that are in memory.
    W6,
    /// Sequential read of records that are on the disk only.
    W6c,
    /// Opening after a crash.
    W7,
    /// Append latency at half the load that W2 reached, with a reader on cold data.
    WT,
    /// Round trips over the bridge without work.
    WB,
}

/// One workload in one variant, such as `WB` with 64 callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Case {
    /// What is measured.
    pub workload: Workload,
    /// Callers of WB, partitions of W3k, bytes of W7; zero elsewhere.
    pub(crate) variant: u64,
}

/// Partitions and producers of W3k.
const MANY: u64 = 1_000;
/// Most callers, or partitions, that a case may have.
const MANY_MAX: u64 = 100_000;

/// Who appends what, and where to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) producers: usize,
    pub(crate) partitions: usize,
    pub(crate) records: usize,
    pub(crate) level: Level,
}

impl Workload {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 11] = [
        Self::W1,
        Self::W2,
        Self::W3,
        Self::W3k,
        Self::W4,
        Self::W5,
        Self::W6,
        Self::W6c,
        Self::W7,
        Self::WT,
        Self::WB,
    ];

    /// The name in the documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::W1 => "W1",
            Self::W2 => "W2",
            Self::W3 => "W3",
            Self::W3k => "W3k",
            Self::W4 => "W4",
            Self::W5 => "W5",
            Self::W6 => "W6",
            Self::W6c => "W6c",
            Self::W7 => "W7",
            Self::WT => "WT",
            Self::WB => "WB",
        }
    }

    /// The cases of this workload; `reopen_bytes` are the sizes for W7.
    pub fn cases(self, reopen_bytes: &[u64]) -> Vec<Case> {
        let variants = match self {
            Self::WB => vec![1, 64, 1_000],
            Self::W3k => vec![MANY],
            Self::W7 => reopen_bytes.to_vec(),
            _ => vec![0],
        };
        let case = |variant| Case {
            workload: self,
            variant,
        };
        variants.into_iter().map(case).collect()
    }
}

impl Case {
    /// Names that [`parse`](Self::parse) takes.
    pub fn names() -> Vec<&'static str> {
        Workload::ALL.map(Workload::name).to_vec()
    }

    /// The cases of a name: a workload, or one case of it, such as `WB/64` (callers), `W3k/100`
    /// (partitions) or `W7/1024MiB`.
    ///
    /// # Errors
    /// [`Error::UnknownWorkload`].
    pub fn parse(name: &str, reopen_bytes: &[u64]) -> Result<Vec<Self>, Error> {
        let unknown = || Error::UnknownWorkload {
            name: name.to_owned(),
        };
        let Some((workload, variant)) = name.split_once('/') else {
            let cases = name
                .parse::<Workload>()
                .map_err(|_| unknown())?
                .cases(reopen_bytes);
            return if cases.is_empty() {
                Err(unknown())
            } else {
                Ok(cases)
            };
        };
        let workload = workload.parse().map_err(|_| unknown())?;
        let number = |text: &str| text.parse::<u64>().ok().filter(|&n| n > 0);
        let variant = match workload {
            Workload::WB | Workload::W3k => number(variant).filter(|&n| n <= MANY_MAX),
            Workload::W7 => variant
                .strip_suffix("MiB")
                .and_then(number)
                .and_then(|mib| mib.checked_mul(1 << 20)),
            _ => None,
        };
        let variant = variant.ok_or_else(unknown)?;
        Ok(vec![Self { workload, variant }])
    }

    /// Shape of the closed loop, for workloads that are one.
    pub(crate) fn shape(self) -> Option<Shape> {
        let shape = |producers, partitions, records, level| {
            Some(Shape {
                producers,
                partitions,
                records,
                level,
            })
        };
        match self.workload {
            Workload::W1 => shape(1, 1, 1, Level::Durable),
            Workload::W2 => shape(64, 1, 1, Level::Durable),
            Workload::W3 => shape(256, 16, 1, Level::Durable),
            Workload::W3k => {
                let many = usize::try_from(self.variant).ok()?;
                shape(many, many, 1, Level::Durable)
            }
            Workload::W4 => shape(8, 1, 64, Level::Durable),
            Workload::W5 => shape(8, 1, 64, Level::Written),
            Workload::W6 | Workload::W6c | Workload::W7 | Workload::WT | Workload::WB => None,
        }
    }

    /// What the case does, in a line.
    pub fn describe(&self) -> String {
        match self.workload {
            Workload::W1 => "durable append, 1 producer, 1 KiB, one at a time".into(),
            Workload::W2 => "durable append, 64 producers, 1 partition, 1 KiB".into(),
            Workload::W3 => "durable append, 256 producers, 16 partitions, 1 KiB".into(),
            Workload::W3k => format!(
                "durable append, {0} producers, {0} partitions, 1 KiB",
                self.variant
            ),
            Workload::W4 => "durable batches of 64 x 1 KiB, 8 producers".into(),
            Workload::W5 => {
                "batches of 64 x 1 KiB acknowledged when written, 8 producers; one sync at the end \
                 included"
                    .into()
            }
            Workload::W6 => {
                "sequential read of 1 KiB records, every checksum verified, data in memory".into()
            }
            Workload::W6c => {
                "sequential read of 1 KiB records, every checksum verified, data on the disk".into()
            }
            Workload::W7 => format!(
                "reopening after a crash with {} MiB in the partition; latency is the opening",
                self.variant >> 20
            ),
            Workload::WT => {
                "open loop at half the load of W2, 1 KiB, while a reader reads cold data and \
                 segments roll; latency from the moment that the append was due"
                    .into()
            }
            Workload::WB => format!(
                "bridge alone: round trips without work, {} callers at once",
                self.variant
            ),
        }
    }

    /// What one operation is.
    pub fn operation(&self) -> &'static str {
        match self.workload {
            Workload::W4 | Workload::W5 => "batch of 64 KiB",
            Workload::W6 | Workload::W6c => "record of 1 KiB",
            Workload::W7 => "opening",
            Workload::WB => "round trip",
            _ => "append of 1 KiB",
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Workload {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let found = Self::ALL
            .into_iter()
            .find(|w| w.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| Error::UnknownWorkload {
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.workload {
            Workload::WB => write!(f, "WB/{}", self.variant),
            Workload::W3k if self.variant != MANY => write!(f, "W3k/{}", self.variant),
            Workload::W7 => write!(f, "W7/{}MiB", self.variant >> 20),
            other => f.write_str(other.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str) -> Vec<String> {
        let cases = Case::parse(name, &[64 << 20, 1 << 30]).expect(name);
        cases.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_stand_for_all_cases_or_one() {
        assert_eq!(names("w1"), ["W1"]);
        assert_eq!(names("WB"), ["WB/1", "WB/64", "WB/1000"]);
        assert_eq!(names("WB/8"), ["WB/8"]);
        assert_eq!(names("W3k"), ["W3k"]);
        assert_eq!(names("W3k/20"), ["W3k/20"]);
        assert_eq!(names("w7/3MiB"), ["W7/3MiB"]);
        assert_eq!(names("W7"), ["W7/64MiB", "W7/1024MiB"]);
        for workload in Workload::ALL {
            assert_eq!(workload.name().parse::<Workload>().ok(), Some(workload));
        }
    }

    #[test]
    fn unknown_names_are_refused_with_those_there_are() {
        for name in [
            "",
            "W9",
            "WB/0",
            "WB/x",
            "W1/",
            "W1/2",
            "W7/1",
            "W3k/1000001",
        ] {
            let error = Case::parse(name, &[]).expect_err(name);
            assert!(error.to_string().contains("W6c"), "{error}");
        }
        assert!(Case::parse("W7", &[]).is_err());
    }
}
