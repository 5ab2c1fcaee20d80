//! Every combination of damage under every policy, on a store of files: what opening finds and does is
//! what the table of `DamageFacts` says.

use std::path::{Path, PathBuf};

use alluvium::format::{SEGMENT_HEADER_LEN, SegmentHeader, SegmentKind};
use alluvium::{DamageFacts, Error, NewestSegment, OnCorruption, Opening};
use alluvium_testkit::logs::{batch, close};

use crate::damage::{END, Files, closed_store, survey, tiny};
use crate::machine::{machine_from, snapshot, try_open};

/// The partition that is damaged.
const PARTITION: u64 = 1;

/// A closed store, and the files of one partition of it.
struct Store {
    files: Files,
    /// Of the log, oldest first.
    log: Vec<PathBuf>,
    /// Name of one that holds nothing of the log.
    unused: PathBuf,
}

impl Store {
    fn new() -> Self {
        let files = closed_store();
        let headers = files.iter().filter_map(|(path, content)| {
            let header = SegmentHeader::decode(content).ok()?;
            (header.partition == PARTITION).then_some((header, path.clone()))
        });
        let mut log: Vec<_> = headers
            .filter(|(header, _)| header.kind == SegmentKind::Log)
            .map(|(header, path)| (header.sequence, header, path))
            .collect();
        log.sort_by_key(|(sequence, ..)| *sequence);
        // Only those that the newest one leads to.
        let (mut chain, mut wanted) = (Vec::new(), None);
        for (_, header, path) in log.into_iter().rev() {
            if wanted.is_none_or(|wanted| wanted == header.identity) {
                wanted = Some(header.prev_identity);
                chain.push(path);
            }
        }
        chain.reverse();
        let unused = chain[0].with_file_name("00000000000000009999.seg");
        Self {
            files,
            log: chain,
            unused,
        }
    }

    /// Of the partition.
    fn dir(&self) -> &Path {
        self.unused.parent().unwrap()
    }

    /// The base offset of the newest segment.
    fn newest_base(&self) -> u64 {
        let newest = self.log.last().unwrap();
        SegmentHeader::decode(&self.files[newest])
            .unwrap()
            .base_offset
    }

    /// The files with exactly this damage.
    fn damaged(&self, facts: DamageFacts) -> Files {
        let mut files = self.files.clone();
        let [.., removed, shortened, newest] = &self.log[..] else {
            panic!("too few segments: {:?}", self.log);
        };
        if facts.newest == NewestSegment::Missing {
            let is_segment = |path: &PathBuf| path.extension().is_some_and(|e| e == "seg");
            files.retain(|path, _| !(path.starts_with(self.dir()) && is_segment(path)));
        }
        if facts.header_unreadable {
            let junk = vec![0x5A; self.files[newest].len()];
            files.insert(self.unused.clone(), junk);
        }
        if facts.segment_missing {
            files.remove(removed).unwrap();
        }
        if facts.older_shortened {
            files
                .get_mut(shortened)
                .unwrap()
                .truncate(SEGMENT_HEADER_LEN);
        }
        if facts.tail_corrupt {
            files.get_mut(newest).unwrap()[SEGMENT_HEADER_LEN + 100] ^= 1;
        }
        if facts.newest == NewestSegment::Shortened {
            let content = files.get_mut(newest).unwrap();
            let len = content.len();
            content.truncate(len - 512);
        }
        files
    }
}

/// The files of the partition among those of a machine.
fn of_partition(store: &Store, files: &Files) -> Files {
    let of_it = files
        .iter()
        .filter(|(path, _)| path.starts_with(store.dir()));
    of_it
        .map(|(path, bytes)| (path.clone(), bytes.clone()))
        .collect()
}

#[test]
fn every_combination_of_damage_is_opened_as_the_table_says() {
    let store = Store::new();
    let cut = |partition| OnCorruption::CutTail { partition };
    let policies = [
        OnCorruption::Refuse,
        OnCorruption::Salvage,
        cut(PARTITION),
        cut(PARTITION + 1),
    ];
    // What an error may name.
    let mut places = vec![store.dir()];
    places.extend(store.log.iter().map(PathBuf::as_path));
    let mut met = 0;
    for facts in DamageFacts::all().filter(|facts| facts.impossible().is_none()) {
        let files = store.damaged(facts);
        let mut around = None;
        for policy in policies {
            let sim = machine_from(&files);
            let opened = sim.block_on(try_open(&sim, |config| {
                tiny(config);
                config.on_corruption = policy;
            }));
            let opening = facts.opening(policy, PARTITION);
            let (opened, report) = match opened {
                Err(Error::Corrupt(corruption)) if opening == Opening::Refused => {
                    assert_eq!(corruption.partition, PARTITION, "{facts}");
                    assert!(snapshot(&sim) == files, "{facts}: refused, and yet changed");
                    met += 1;
                    continue;
                }
                opened => opened.unwrap_or_else(|e| panic!("{facts}, {policy:?}: {e}")),
            };
            assert_ne!(opening, Opening::Refused, "{facts} is opened");
            let of_it = report.partitions.iter().find(|p| p.partition == PARTITION);
            let of_it = of_it.unwrap();
            assert_eq!(of_it.damage, facts, "{facts}, {policy:?}");
            assert_eq!(
                of_it.corruption.is_some(),
                opening == Opening::ReadOnly,
                "{facts}, {policy:?}: {of_it}"
            );
            if opening == Opening::Cut {
                // All of the newest segment goes, or nothing does.
                let end = if facts.tail_corrupt {
                    store.newest_base()
                } else {
                    END
                };
                assert_eq!(of_it.log_end, end, "{facts}, {policy:?}: {of_it}");
            }
            sim.block_on(async {
                let found = survey(&opened, PARTITION, &places).await;
                if opening == Opening::ReadOnly {
                    // Salvage comes first: who reads around damage under other policies finds the same.
                    let by_salvage = around.get_or_insert(found.clone());
                    assert_eq!(*by_salvage, found, "{facts}, {policy:?}");
                }
                let partition = opened.partition(PARTITION).await.unwrap();
                let next = batch(partition.offsets().log_end(), 1);
                let appended = partition.append(next).await;
                let writable = matches!(opening, Opening::Writable | Opening::Cut);
                assert_eq!(
                    appended.is_ok(),
                    writable,
                    "{facts}, {policy:?}: {appended:?}"
                );
                close(&opened).await;
            });
            if opening == Opening::ReadOnly {
                assert!(
                    of_partition(&store, &snapshot(&sim)) == of_partition(&store, &files),
                    "{facts}, {policy:?}: read only, and yet changed"
                );
            }
            met += 1;
        }
    }
    assert_eq!(met, (48 - 14) * 4);
}
