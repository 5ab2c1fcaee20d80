//! `verify`: checks every checksum, and names every damaged place.

use alluvium::{Corruption, Error, ErrorClass, InspectDetail};

use crate::args::VerifyArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, counted};
use crate::survey::{Survey, survey};
use crate::target::{NamedStore, close};

/// Checks, and prints what was found.
pub(crate) async fn run(target: &NamedStore, args: VerifyArgs) -> Result<Outcome, Failure> {
    let mut out = Output::new();
    let store = match target.open_read_only().await {
        Ok((store, _)) => store,
        Err(Failure::Store(e)) if e.class() == ErrorClass::Corrupt => {
            out.line(format_args!("DAMAGED {}", unopened(&e)))?;
            out.line("the store cannot be opened, so nothing else was checked")?;
            out.flush()?;
            return Ok(Outcome::Damaged);
        }
        Err(e) => return Err(e),
    };
    let surveys = survey(&store, args.partition, InspectDetail::Damage).await?;
    close(&store).await?;
    let mut places = 0;
    for survey in &surveys {
        tell(&mut out, survey)?;
        places += survey.damage.len() as u64;
    }
    let verdict = if places == 0 {
        "clean".to_owned()
    } else {
        counted(places, "damaged place")
    };
    out.line(format_args!(
        "{}: {}, {}, {}: {verdict}",
        target.dir.display(),
        counted(surveys.len() as u64, "partition"),
        counted(
            surveys.iter().map(|s| s.segments.len() as u64).sum(),
            "segment"
        ),
        counted(surveys.iter().map(Survey::record_count).sum(), "record"),
    ))?;
    out.flush()?;
    Ok(if places == 0 {
        Outcome::Done
    } else {
        Outcome::Damaged
    })
}

fn unopened(error: &Error) -> String {
    match error {
        Error::Corrupt(damage) => place(damage),
        other => other.to_string(),
    }
}

fn tell(out: &mut Output, survey: &Survey) -> Result<(), Failure> {
    let info = &survey.info;
    out.line(format_args!(
        "partition {}: offsets [{}, {}), {}, {}, {}",
        info.id,
        info.offsets.log_start(),
        info.offsets.log_end(),
        counted(survey.segments.len() as u64, "segment"),
        counted(survey.batch_count(), "batch"),
        counted(survey.record_count(), "record"),
    ))?;
    for damage in &survey.damage {
        out.line(format_args!("  DAMAGED {}", place(damage)))?;
    }
    if let Some(note) = survey.tail_note() {
        out.line(format_args!("  note: {note}"))?;
    }
    for foreign in &info.recovery.foreign {
        out.line(format_args!(
            "  note: {}: not a file of the store; ignored",
            foreign.display()
        ))?;
    }
    Ok(())
}

/// A damaged place on one line: file, byte position, offset range, what is wrong.
pub(crate) fn place(damage: &Corruption) -> String {
    let path = damage.path.display();
    let (start, position) = (damage.offset_start, damage.position);
    let offsets = match damage.offset_end {
        Some(end) if end == start => format!("no record lost, at offset {start}"),
        Some(end) => format!("offsets [{start}, {end})"),
        None => format!("offsets from {start} on, how far is not known"),
    };
    format!("{path}: byte {position}, {offsets}: {}", damage.found)
}
