//! `repair`: cuts a damaged partition at its first damage, after copying what the cut touches.
//!
//! A cut throws away whatever lies behind the damage, readable or not. So the default is to say
//! what would be lost; and there are kinds of damage that no cut can clear, which are only told.

use std::path::{Path, PathBuf};

use alluvium::{
    Corruption, CorruptionKind, Error, ErrorClass, InspectDetail, InspectedSegment, OnCorruption,
};

use crate::args::RepairArgs;
use crate::backup::Backup;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, command, counted, size};
use crate::survey::{Survey, survey, total};
use crate::target::{NamedStore, close};
use crate::verify::place;

/// Plans, and with `--apply` cuts.
pub(crate) async fn run(target: &NamedStore, args: RepairArgs) -> Result<Outcome, Failure> {
    let mut out = Output::new();
    let store = match target.open_read_only().await {
        Ok((store, _)) => store,
        Err(Failure::Store(e)) if e.class() == ErrorClass::Corrupt => {
            out.line(format_args!("DAMAGED {e}"))?;
            out.line(CANNOT)?;
            out.flush()?;
            return Ok(Outcome::Damaged);
        }
        Err(e) => return Err(e),
    };
    let backup = Backup::plan(&target.dir, args.backup_dir)?;
    let surveys = survey(&store, args.partition, InspectDetail::Batches).await?;
    let mut cuts = Vec::new();
    let mut left = false;
    for survey in &surveys {
        match judge(survey) {
            Verdict::Sound => {
                out.line(format_args!("partition {}: no damage", survey.info.id))?;
            }
            Verdict::Beyond { damage, why } => {
                left = true;
                out.line(format_args!("partition {}: damaged", survey.info.id))?;
                out.line(format_args!("  {}", place(&damage)))?;
                out.line(format_args!("  {why}"))?;
            }
            Verdict::Cut(cut) => {
                cut.tell(&mut out, &target.dir, &backup)?;
                cuts.push(cut);
            }
        }
    }
    if cuts.is_empty() {
        close(&store).await?;
        out.flush()?;
        return Ok(if left {
            Outcome::Damaged
        } else {
            Outcome::Done
        });
    }
    if !args.apply {
        close(&store).await?;
        out.line("dry run: nothing was changed; --apply copies the files and cuts")?;
        out.flush()?;
        return Ok(Outcome::Damaged);
    }
    // Copies are made while our own lock keeps writers away.
    for cut in &cuts {
        backup.copy(&cut.files)?;
    }
    out.line(format_args!(
        "copied what the cut touches to {}",
        backup.dir().display()
    ))?;
    out.flush()?;
    close(&store).await?;
    for cut in &cuts {
        cut.apply(target).await?;
        out.line(format_args!(
            "partition {}: cut at offset {}",
            cut.partition, cut.at
        ))?;
        out.flush()?;
    }
    let left = check(target, &mut out, &cuts).await? || left;
    out.flush()?;
    Ok(if left {
        Outcome::Damaged
    } else {
        Outcome::Done
    })
}

/// Looks again at what was cut; returns whether damage is left.
async fn check(target: &NamedStore, out: &mut Output, cuts: &[Cut]) -> Result<bool, Failure> {
    let (store, _) = target.open_read_only().await?;
    let mut left = false;
    for cut in cuts {
        let after = survey(&store, Some(cut.partition), InspectDetail::Damage).await?;
        for survey in &after {
            let offsets = survey.info.offsets;
            out.line(format_args!(
                "partition {}: now holds offsets [{}, {}), {}, {}",
                cut.partition,
                offsets.log_start(),
                offsets.log_end(),
                counted(survey.record_count(), "record"),
                match survey.damage.len() as u64 {
                    0 => "no damage".to_owned(),
                    n => counted(n, "damaged place"),
                },
            ))?;
            for damage in &survey.damage {
                left = true;
                out.line(format_args!("  {}", place(damage)))?;
            }
        }
    }
    close(&store).await?;
    Ok(left)
}

const CANNOT: &str = "this cannot be repaired by cutting: copy the store's directory, then restore \
                      the file from a backup or a replica, or save what `alluvium read` still \
                      reads and fill a new partition with it";

/// What can be done about a partition.
enum Verdict {
    Sound,
    /// There is damage that a cut would not clear, or not without needless loss.
    Beyond {
        damage: Corruption,
        why: &'static str,
    },
    Cut(Cut),
}

/// A cut that would make a partition whole.
#[derive(Debug)]
struct Cut {
    partition: u64,
    damage: Corruption,
    /// The log will end here.
    at: u64,
    /// The log ends here now.
    log_end: u64,
    /// Readable records behind the damage: they go, too.
    readable_behind: u64,
    /// Files that hold anything at or behind the cut.
    files: Vec<PathBuf>,
    files_bytes: u64,
    /// Size of the partition's segments, for the one that is made behind the cut.
    segment_bytes: u64,
}

fn judge(survey: &Survey) -> Verdict {
    let of_segment = |d: &Corruption| survey.segments.iter().any(|s| s.path == d.path);
    let too_short = |d: &Corruption| matches!(d.found, CorruptionKind::Shortened { .. });
    // A header that cannot be read, or a file that is not there: what it held is not known.
    let beyond = survey.damage.iter().find(|d| !of_segment(d));
    if let Some(damage) = beyond {
        return Verdict::Beyond {
            damage: damage.clone(),
            why: CANNOT,
        };
    }
    let newest = survey.segments.last().map(|s| &s.path);
    let log_start = survey.info.offsets.log_start();
    // A short file is told by the place at which its batches end, if any are missing.
    let walked = survey.damage.iter().filter(|d| !too_short(d));
    let costs_records = |d: &&Corruption| {
        d.offset_end
            .is_none_or(|end| end > d.offset_start.max(log_start))
    };
    // Without a record of its own behind the header, too, it keeps the partition from being written.
    let of_newest = |d: &Corruption| Some(&d.path) == newest;
    let of_its_tail = |d: &&Corruption| of_newest(d) && d.position > 0;
    let first = walked
        .clone()
        .filter(|d| costs_records(d) || of_its_tail(d))
        .min_by_key(|d| (d.offset_start, d.position));
    let shortened = survey.damage.iter().find(|d| too_short(d) && of_newest(d));
    match (first, shortened.or(survey.damage.first())) {
        (Some(first), _) => plan(survey, first, first.offset_start.max(log_start)),
        (None, None) => Verdict::Sound,
        (None, Some(short)) if too_short(short) && of_newest(short) => {
            plan(survey, short, survey.info.offsets.log_end())
        }
        (None, Some(damage)) if of_newest(damage) => Verdict::Beyond {
            damage: damage.clone(),
            why: "the other copy of the header is sound and no record is lost; opening the store for \
                  writing makes both whole",
        },
        (None, Some(damage)) => Verdict::Beyond {
            damage: damage.clone(),
            why: "no record is lost here, and readers pass over it; a cut would cost the readable \
                  records behind it, so it is left alone. It goes when the log is trimmed past it",
        },
    }
}

fn plan(survey: &Survey, damage: &Corruption, at: u64) -> Verdict {
    let from = survey
        .segments
        .iter()
        .position(|s| s.path == damage.path)
        .unwrap_or(0);
    let touched = survey.segments.get(from..).unwrap_or_default();
    let behind = |segment: &InspectedSegment| {
        let batches = segment.batches.iter();
        batches
            .map(|b| b.end_offset.saturating_sub(b.header.base_offset.max(at)))
            .sum::<u64>()
    };
    Verdict::Cut(Cut {
        partition: survey.info.id,
        damage: damage.clone(),
        at,
        log_end: survey.info.offsets.log_end(),
        readable_behind: touched.iter().map(behind).sum(),
        files: touched.iter().map(|s| s.path.clone()).collect(),
        files_bytes: total(touched.iter().map(|s| s.header.capacity_bytes)),
        segment_bytes: touched.last().map_or(64 << 20, |s| s.header.capacity_bytes),
    })
}

impl Cut {
    fn tell(&self, out: &mut Output, store: &Path, backup: &Backup) -> Result<(), Failure> {
        out.line(format_args!("partition {}: damaged", self.partition))?;
        out.line(format_args!("  first damage: {}", place(&self.damage)))?;
        if self.at < self.log_end {
            out.line(format_args!(
                "  the cut:      offsets [{}, {}) go, with {} that can still be read",
                self.at,
                self.log_end,
                counted(self.readable_behind, "record"),
            ))?;
        } else {
            out.line("  the cut:      nothing goes that can still be read")?;
        }
        if self.readable_behind > 0 {
            out.line(format_args!(
                "  to save them: {}",
                command(
                    store,
                    &format!(
                        "read --partition {} --from {} --skip-damaged",
                        self.partition, self.at
                    )
                )
            ))?;
        }
        out.line(format_args!(
            "  afterwards:   the log ends at {}, and new records get the offsets from there on; \
             consumers that were ahead must be set back",
            self.at
        ))?;
        out.line(format_args!(
            "  copied first: {} ({}) to {}",
            counted(self.files.len() as u64, "file"),
            size(self.files_bytes),
            backup.dir().display()
        ))?;
        for file in &self.files {
            out.line(format_args!("                {}", file.display()))?;
        }
        Ok(())
    }

    /// Cuts: the newest segment by opening, the rest by a truncation.
    async fn apply(&self, target: &NamedStore) -> Result<(), Failure> {
        let partition = self.partition;
        let settings = |builder: alluvium::StoreBuilder| {
            builder.create(false).configure(|config| {
                config.on_corruption = OnCorruption::CutTail { partition };
                config.segment_bytes = self.segment_bytes;
                // What is replaced must not come back into use before the store closes.
                config.spare_segments_max = 0;
            })
        };
        let (store, _) = target.open(settings).await?;
        let handle = store.partition(partition).await?;
        let end = handle.offsets().log_end();
        let cut = if end > self.at {
            handle.truncate_to(self.at).await
        } else {
            Ok(())
        };
        let closed = close(&store).await;
        match cut {
            Err(Error::InsideOpaqueBatch { base, .. }) => Err(Failure::Other(format!(
                "partition {partition}: the cut at offset {} lies inside of an opaque batch that \
                 starts at {base}; nothing was cut",
                self.at
            ))),
            cut => {
                cut?;
                closed?;
                if end < self.at {
                    return Err(Failure::Other(format!(
                        "partition {partition}: the log ends at {end}, not at {} as said; the copy \
                         has the files as they were",
                        self.at
                    )));
                }
                Ok(())
            }
        }
    }
}
