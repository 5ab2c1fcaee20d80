//! When something was slow, and whose a pause was.
//!
//! An append waits for three writes in a row at most: the one under way when it comes, the header
//! of the next segment if there is none, and its own. So what explains a pause took a third of it,
//! within the pause: what was over when it had just begun kept nobody waiting.
//! A machine that is not there is missed for as long as it is gone, in one piece or in several.

use std::time::{Duration, Instant};

/// When something was slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: Instant,
    pub(super) to: Instant,
}

impl Span {
    pub(super) fn len(&self) -> Duration {
        self.to - self.from
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

/// What one witness saw.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    /// In the order of their beginnings.
    spans: Vec<Span>,
    longest: Duration,
}

impl From<Vec<Span>> for Timeline {
    fn from(mut spans: Vec<Span>) -> Self {
        spans.sort_unstable_by_key(|span| span.from);
        let longest = spans.iter().map(Span::len).max().unwrap_or_default();
        Self { spans, longest }
    }
}

impl Timeline {
    /// Those that may overlap `pause`: the first begins when the longest could just reach it.
    fn around(&self, pause: &Span) -> &[Span] {
        let too_early = |span: &Span| span.from + self.longest < pause.from;
        let begin = self.spans.partition_point(too_early);
        let end = self.spans.partition_point(|span| span.from <= pause.to);
        self.spans.get(begin..end).unwrap_or_default()
    }

    /// The longest that was slow during `pause`; zero when nothing was.
    pub(super) fn longest_during(&self, pause: &Span) -> Duration {
        let spans = self.around(pause).iter();
        let overlapping = spans.filter(|span| span.overlaps(pause));
        overlapping.map(Span::len).max().unwrap_or_default()
    }

    /// For how much of `pause` something was slow.
    pub(super) fn total_during(&self, pause: &Span) -> Duration {
        let mut counted_to = pause.from;
        let new = |span: &Span| {
            let (from, to) = (span.from.max(counted_to), span.to.min(pause.to));
            counted_to = counted_to.max(to);
            to.saturating_duration_since(from)
        };
        self.around(pause).iter().map(new).sum()
    }

    /// Whether one that was slow took a third of `pause`.
    fn explains(&self, pause: &Span) -> bool {
        let within = |span: &Span| {
            let (from, to) = (span.from.max(pause.from), span.to.min(pause.to));
            to.saturating_duration_since(from)
        };
        let longest = self.around(pause).iter().map(within).max();
        3 * longest.unwrap_or_default() >= pause.len()
    }
}

/// What the witnesses saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The witness file's writes.
    pub(super) disk: Timeline,
    /// The store's own durable writes.
    pub(super) store: Timeline,
    /// The shard's threads held by the disk while they hand operations over to it.
    pub(super) blocked: Timeline,
    /// No core, or one that stood still.
    pub(super) machine: Timeline,
    /// The shard's answers.
    pub(super) shard: Timeline,
}

/// Whose a pause was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Disk,
    Machine,
    Own,
}

impl Seen {
    pub(super) fn whose(&self, pause: &Span) -> Whose {
        // A shard that was held up itself sees the ends of its operations late.
        let shard_was_late = 3 * self.shard.longest_during(pause) >= pause.len();
        let store_waited = !shard_was_late && self.store.explains(pause);
        if self.disk.explains(pause) || self.blocked.explains(pause) || store_waited {
            Whose::Disk
        } else if 3 * self.machine.total_during(pause) >= pause.len() {
            Whose::Machine
        } else {
            Whose::Own
        }
    }
}

/// The same moments, those that overlap as one: many appends wait at the same time.
pub(super) fn moments(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable_by_key(|span| span.from);
    spans.dedup_by(|next, last| {
        let joins = next.overlaps(last);
        if joins {
            last.to = last.to.max(next.to);
        }
        joins
    });
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(start: Instant, all: &[(u64, u64)]) -> Vec<Span> {
        let at = |ms| start + Duration::from_millis(ms);
        let span = |&(from, to)| Span {
            from: at(from),
            to: at(to),
        };
        all.iter().map(span).collect()
    }

    #[test]
    fn a_pause_is_whose_witness_saw_a_third_of_it_and_else_our_own() {
        let start = Instant::now();
        let line = |all: &[(u64, u64)]| Timeline::from(spans(start, all));
        let seen = Seen {
            disk: line(&[(5, 15), (120, 129)]),
            store: line(&[(199, 204), (202, 212), (500, 504), (700, 706)]),
            machine: line(&[
                (10, 30),
                (305, 310),
                (700, 706),
                (1100, 1102),
                (1101, 1103),
                (1107, 1109),
                (1201, 1203),
                (1202, 1203),
                (1210, 1250),
            ]),
            blocked: line(&[(1000, 1004)]),
            shard: line(&[(600, 606), (700, 707), (800, 806), (1000, 1006)]),
        };
        let pauses = [
            ((0, 20), Whose::Disk),
            ((100, 130), Whose::Own),
            ((102, 129), Whose::Disk),
            ((200, 215), Whose::Disk),
            ((200, 260), Whose::Own),
            ((300, 315), Whose::Machine),
            // A write of 4 ms explains no pause of 300.
            ((400, 700), Whose::Own),
            // All but the last 2 ms of a write of 9, and of 10, were over when it began.
            ((127, 140), Whose::Own),
            ((210, 221), Whose::Own),
            // The shard was late: its writes say nothing.
            ((698, 712), Whose::Machine),
            ((798, 812), Whose::Own),
            ((900, 911), Whose::Own),
            ((999, 1010), Whose::Disk),
            // Pieces add up, what two saw counts once, and only what is within: 5 ms of 15, of 12,
            // 2 of 10, 5 of 13, 4 of 13.
            ((1098, 1113), Whose::Machine),
            ((1099, 1111), Whose::Machine),
            ((1199, 1209), Whose::Own),
            ((1200, 1213), Whose::Machine),
            ((1199, 1212), Whose::Own),
        ];
        for ((from, to), whose) in pauses {
            let pause = spans(start, &[(from, to)])[0];
            assert_eq!(seen.whose(&pause), whose, "{from}..{to}");
        }
    }

    #[test]
    fn a_long_span_that_began_long_ago_is_found() {
        let start = Instant::now();
        let mut all = vec![(0, 1000)];
        all.extend((1..400).map(|n| (n, n + 1)));
        let line = Timeline::from(spans(start, &all));
        let pause = spans(start, &[(900, 920)])[0];
        assert_eq!(line.longest_during(&pause), Duration::from_secs(1));
    }

    #[test]
    fn pauses_at_the_same_time_are_one_moment() {
        let start = Instant::now();
        let own = spans(start, &[(30, 45), (0, 20), (1, 12)]);
        assert_eq!(moments(own), spans(start, &[(0, 20), (30, 45)]));
        let own = spans(start, &[(30, 45), (0, 20), (20, 33)]);
        assert_eq!(moments(own), spans(start, &[(0, 45)]));
    }
}
