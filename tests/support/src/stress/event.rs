//! What the victim says through its pipe: one line per event.

use std::fmt;

use alluvium_core::Ack;

/// One step of the writer. `slot` is the place of a partition in the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named like those of the model")]
pub enum Event {
    /// The store is open.
    Opened,
    /// The partition has been created, or was there.
    Created { slot: usize },
    /// A batch is about to be submitted.
    Submit {
        slot: usize,
        client: u32,
        count: u32,
        record_bytes: usize,
        opaque: bool,
    },
    /// A batch has been acknowledged.
    Acknowledged {
        slot: usize,
        id: u64,
        level: Ack,
        base: u64,
        count: u32,
    },
    /// A batch was certainly not applied.
    Refused { slot: usize, id: u64 },
    /// A trim is about to be asked for.
    TrimAsked { slot: usize, to: u64 },
    /// It has returned.
    Trimmed { slot: usize, to: u64 },
    /// A truncation is about to be asked for.
    CutAsked { slot: usize, to: u64 },
    /// It has returned.
    Cut { slot: usize },
    /// It was certainly not carried out.
    CutRefused { slot: usize },
    /// A sync or a durable read has shown that everything below is durable.
    Durable { slot: usize, end: u64 },
    /// A request failed as only a broken disk makes it fail.
    Failed { text: String },
    /// The writer itself saw a promise broken.
    Violation { text: String },
    /// The store was closed in order.
    Closed,
}

/// Marks the lines that are events: a test binary says other things, too.
const MARK: &str = "@";

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MARK)?;
        match self {
            Self::Opened => write!(f, "O"),
            Self::Created { slot } => write!(f, "N {slot}"),
            Self::Submit {
                slot,
                client,
                count,
                record_bytes,
                opaque,
            } => {
                let opaque = u8::from(*opaque);
                write!(f, "S {slot} {client} {count} {record_bytes} {opaque}")
            }
            Self::Acknowledged {
                slot,
                id,
                level,
                base,
                count,
            } => {
                let level = match level {
                    Ack::Accepted => 0,
                    Ack::Written => 1,
                    Ack::Durable => 2,
                };
                write!(f, "A {slot} {id} {level} {base} {count}")
            }
            Self::Refused { slot, id } => write!(f, "X {slot} {id}"),
            Self::TrimAsked { slot, to } => write!(f, "T {slot} {to}"),
            Self::Trimmed { slot, to } => write!(f, "t {slot} {to}"),
            Self::CutAsked { slot, to } => write!(f, "C {slot} {to}"),
            Self::Cut { slot } => write!(f, "c {slot}"),
            Self::CutRefused { slot } => write!(f, "x {slot}"),
            Self::Durable { slot, end } => write!(f, "D {slot} {end}"),
            Self::Failed { text } => write!(f, "F {}", one_line(text)),
            Self::Violation { text } => write!(f, "V {}", one_line(text)),
            Self::Closed => write!(f, "E"),
        }
    }
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

impl Event {
    /// The event of a line; `None` when the line is none.
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.strip_prefix(MARK)?;
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        let text = || rest.to_owned();
        match kind {
            "O" => return Some(Self::Opened),
            "E" => return Some(Self::Closed),
            "F" => return Some(Self::Failed { text: text() }),
            "V" => return Some(Self::Violation { text: text() }),
            _ => {}
        }
        let mut numbers = rest.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        let slot = usize::try_from(next()?).ok()?;
        Some(match kind {
            "N" => Self::Created { slot },
            "S" => Self::Submit {
                slot,
                client: u32::try_from(next()?).ok()?,
                count: u32::try_from(next()?).ok()?,
                record_bytes: usize::try_from(next()?).ok()?,
                opaque: next()? == 1,
            },
            "A" => Self::Acknowledged {
                slot,
                id: next()?,
                level: match next()? {
                    0 => Ack::Accepted,
                    1 => Ack::Written,
                    2 => Ack::Durable,
                    _ => return None,
                },
                base: next()?,
                count: u32::try_from(next()?).ok()?,
            },
            "X" => Self::Refused { slot, id: next()? },
            "T" => Self::TrimAsked { slot, to: next()? },
            "t" => Self::Trimmed { slot, to: next()? },
            "C" => Self::CutAsked { slot, to: next()? },
            "c" => Self::Cut { slot },
            "x" => Self::CutRefused { slot },
            "D" => Self::Durable { slot, end: next()? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_through_as_they_were_said() {
        let slot = 2;
        let events = [
            Event::Opened,
            Event::Created { slot },
            Event::Submit {
                slot,
                client: 4,
                count: 3,
                record_bytes: 99,
                opaque: true,
            },
            Event::Acknowledged {
                slot,
                id: 1 << 40,
                level: Ack::Written,
                base: 7,
                count: 3,
            },
            Event::Refused { slot, id: 9 },
            Event::TrimAsked { slot, to: 3 },
            Event::Trimmed { slot, to: 3 },
            Event::CutAsked { slot, to: 8 },
            Event::Cut { slot },
            Event::CutRefused { slot },
            Event::Durable { slot, end: 11 },
            Event::Failed {
                text: "no such luck".to_owned(),
            },
            Event::Violation {
                text: "P2".to_owned(),
            },
            Event::Closed,
        ];
        for event in events {
            assert_eq!(Event::parse(&event.to_string()), Some(event));
        }
        for other in ["", "running 1 test", "@", "@A 1", "@A 1 2 3 4 5", "@Z 1"] {
            assert_eq!(Event::parse(other), None, "{other}");
        }
    }
}
