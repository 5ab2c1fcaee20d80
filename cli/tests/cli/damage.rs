//! Damaged stores: every place is named, nothing is changed without being asked, copies come first.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Ran, Scene, text};

/// A batch as `inspect` told it before the damage.
struct Batch {
    path: PathBuf,
    position: u64,
    base: u64,
    end: u64,
}

impl Batch {
    /// Batches of records of a segment; negative numbers count from the last segment.
    fn of(partition: &Value, segment: i64, kind: &str) -> Vec<Self> {
        let segments = partition["segments"].as_array().unwrap();
        let index = segment.rem_euclid(i64::try_from(segments.len()).unwrap());
        let segment = &segments[usize::try_from(index).unwrap()];
        let batches = segment["batches"].as_array().unwrap().iter();
        let batch = |batch: &Value| Self {
            path: segment["path"].as_str().unwrap().into(),
            position: batch["position"].as_u64().unwrap(),
            base: batch["base_offset"].as_u64().unwrap(),
            end: batch["end_offset"].as_u64().unwrap(),
        };
        batches.filter(|b| b["kind"] == kind).map(batch).collect()
    }

    /// Flips a bit of the body.
    fn damage(&self) {
        flip(&self.path, self.position + 100);
    }

    /// What `verify` says about it.
    fn place(&self) -> String {
        let (position, base, end) = (self.position, self.base, self.end);
        format!(
            "{}: byte {position}, offsets [{base}, {end})",
            self.path.display()
        )
    }
}

fn flip(path: &Path, position: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 1], position).unwrap();
}

/// Nobody else may read it.
fn private(path: &Path) {
    let mode = fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{} is {mode:o}", path.display());
}

#[test]
fn verify_names_every_damaged_place() {
    let scene = Scene::with_store();
    scene
        .run(&["verify"])
        .expect(0)
        .says("2,000 records: clean");
    let partition = scene.inspect();
    let older = Batch::of(&partition, 1, "records");
    let newest = Batch::of(&partition, -1, "records");
    let places = [&older[2], &older[7], &newest[1]];
    for place in places {
        place.damage();
    }
    let before = scene.content();
    let ran = scene.run(&["verify"]).expect(1);
    let mut ran = ran.says("1,970 records: 3 damaged places");
    for place in places {
        ran = ran.says(&place.place());
    }
    assert_eq!(scene.content(), before);

    let damage = scene.inspect()["damage"].clone();
    assert_eq!(damage.as_array().unwrap().len(), 3);
    assert_eq!(damage[1]["offset_end"], older[7].end);
    scene.run(&["inspect"]).expect(1).says("DAMAGED");

    // Reading ends at the damage, or goes around it when asked to.
    let ran = scene
        .run(&["read"])
        .expect(1)
        .complains(older[2].path.to_str().unwrap());
    assert_eq!(ran.text(), text(0..older[2].base));
    let ran = scene.run(&["read", "--skip-damaged"]).expect(1);
    assert_eq!(ran.text().lines().count(), 1_970);
}

#[test]
fn repair_of_an_older_segment_copies_and_cuts() {
    let scene = Scene::with_store();
    let batches = Batch::of(&scene.inspect(), 1, "records");
    batches[3].damage();
    batches[6].damage();
    repair_at(&scene, &batches[3], 2_000 - batches[3].base - 20);
}

#[test]
fn repair_of_the_newest_segment_copies_and_cuts() {
    let scene = Scene::with_store();
    let batches = Batch::of(&scene.inspect(), -1, "records");
    batches[1].damage();
    scene.run(&["append"]).expect(1).complains(&format!(
        "alluvium --dir {} repair",
        scene.store().display()
    ));
    repair_at(&scene, &batches[1], 2_000 - batches[1].end);
}

#[test]
fn repair_of_several_segments_cuts_at_the_first() {
    let scene = Scene::with_store();
    let partition = scene.inspect();
    let (older, newest) = (
        Batch::of(&partition, 2, "records"),
        Batch::of(&partition, -1, "records"),
    );
    older[0].damage();
    newest[0].damage();
    repair_at(&scene, &older[0], 2_000 - older[0].base - 20);
}

/// Runs the command that saves what a cut would lose, as it was printed.
fn save_as_told(told: &str, expected: u64) {
    let mut lines = told.lines();
    let words = lines.find_map(|line| line.trim().strip_prefix("to save them: alluvium "));
    let binary = env!("CARGO_BIN_EXE_alluvium");
    let mut shell = std::process::Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("'{binary}' {}", words.unwrap()))
        .env_remove("ALLUVIUM_DIR");
    let saved = Ran::of(shell).expect(1).text();
    assert_eq!(saved.lines().count() as u64, expected);
    assert!(saved.ends_with(&text(1_999..2_000)));
}

/// Repairs a store whose first damage is `first`, with so many readable records behind it.
fn repair_at(scene: &Scene, first: &Batch, readable_behind: u64) {
    let damaged = scene.content();
    let ran = scene
        .run(&["repair"])
        .expect(1)
        .says(&first.place())
        .says("dry run");
    let ran = ran.says(&format!("offsets [{}, 2000) go", first.base));
    let plain = ran.text().replace(',', "");
    assert!(
        plain.contains(&format!("with {readable_behind} record")),
        "{plain}"
    );
    save_as_told(&plain, readable_behind);
    assert_eq!(scene.content(), damaged, "a dry run changes nothing");
    let beside = fs::read_dir(scene.root.path()).unwrap().count();
    assert_eq!(beside, 2, "a dry run copies nothing");

    let inside = scene.store().join("copies");
    let args = [
        "repair",
        "--apply",
        "--backup-dir",
        inside.to_str().unwrap(),
    ];
    scene.run(&args).expect(2).complains("inside of the store");
    assert_eq!(scene.content(), damaged);

    let copies = scene.path("copies");
    let args = [
        "repair",
        "--apply",
        "--backup-dir",
        copies.to_str().unwrap(),
    ];
    let ran = scene.run(&args).expect(0).says("no damage");
    ran.says(&format!("cut at offset {}", first.base));
    let partition = first.path.parent().unwrap().file_name().unwrap();
    let copied = fs::read_dir(copies.join(partition)).unwrap();
    let mut names: Vec<_> = copied.map(|e| e.unwrap().file_name()).collect();
    names.sort_unstable();
    assert_eq!(names[0], first.path.file_name().unwrap());
    for name in &names {
        let copy = fs::read(copies.join(partition).join(name)).unwrap();
        assert!(
            copy == damaged[&first.path.with_file_name(name)],
            "{} was copied as it was",
            name.display()
        );
        private(&copies.join(partition).join(name));
    }
    private(&copies);

    scene.run(&["verify"]).expect(0).says("clean");
    assert_eq!(scene.run(&["read"]).expect(0).text(), text(0..first.base));
    scene.run(&["repair"]).expect(0).says("no damage");
    // The log goes on at the cut.
    let lines = scene.path("lines");
    scene
        .run_with(&["append", "--resume", "--segment-bytes", "16KiB"], &lines)
        .expect(0);
    assert_eq!(scene.run(&["read"]).expect(0).text(), text(0..2_000));
    scene
        .run(&["verify"])
        .expect(0)
        .says("2,000 records: clean");
}

#[test]
fn a_shortened_newest_file_is_cut_where_its_batches_end() {
    let scene = Scene::with_store();
    let batches = Batch::of(&scene.inspect(), -1, "records");
    let cut = &batches[batches.len() - 2];
    let file = OpenOptions::new().write(true).open(&cut.path).unwrap();
    file.set_len(cut.position + 120).unwrap();
    drop(file);
    let ran = scene.run(&["verify"]).expect(1);
    let ran = ran.says("the file ends at byte");
    let ran = ran.says(&format!("the log ends at offset {} here", cut.base));
    // They may have been acknowledged.
    assert!(!ran.text().contains("unacknowledged"));
    scene.run(&["append"]).expect(1);
    scene.run(&["repair", "--apply"]).expect(0);
    scene.run(&["verify"]).expect(0).says("clean");
    assert_eq!(scene.run(&["read"]).expect(0).text(), text(0..cut.base));
}

#[test]
fn a_damaged_segment_header_is_told_and_left_alone() {
    let scene = Scene::with_store();
    let batches = Batch::of(&scene.inspect(), 1, "records");
    // Both copies of the header: one sound copy would be enough.
    flip(&batches[0].path, 20);
    flip(&batches[0].path, 2048 + 20);
    let before = scene.content();
    let ran = scene
        .run(&["verify"])
        .expect(1)
        .says("byte 0")
        .says("is missing");
    ran.says(batches[0].path.to_str().unwrap());
    let ran = scene.run(&["repair", "--apply"]).expect(1);
    ran.says("cannot be repaired by cutting")
        .says(batches[0].path.to_str().unwrap());
    assert_eq!(scene.content(), before);
}

#[test]
fn one_damaged_copy_of_a_header_costs_nothing_and_is_told() {
    let scene = Scene::with_store();
    let batches = Batch::of(&scene.inspect(), 1, "records");
    flip(&batches[0].path, 20);
    assert_eq!(scene.run(&["read"]).expect(0).text(), text(0..2_000));
    let ran = scene.run(&["verify"]).expect(1).says("byte 0");
    ran.says(batches[0].path.to_str().unwrap());
}

#[test]
fn one_damaged_copy_of_the_newest_header_costs_nothing_in_a_repair() {
    for byte in [20, 2048 + 20] {
        let scene = Scene::with_store();
        let newest = &Batch::of(&scene.inspect(), -1, "control")[0].path;
        flip(newest, byte);
        let before = scene.content();
        let ran = scene.run(&["repair", "--apply"]).expect(1);
        ran.says("makes both whole");
        assert_eq!(scene.content(), before);
        assert_eq!(scene.run(&["read"]).expect(0).text(), text(0..2_000));
        // An opening for writing heals it, as is said.
        scene
            .run_with(&["append"], &scene.file("more", b"more\n"))
            .expect(0);
        scene.run(&["verify"]).expect(0);
    }
}

#[test]
fn an_end_that_is_lost_with_its_header_is_told_by_every_reader() {
    let scene = Scene::new();
    let lines = scene.file("lines", text(0..2_000).as_bytes());
    scene
        .run_with(&["append", "--segment-bytes", "16KiB"], &lines)
        .expect(0);
    let newest = Batch::of(&scene.inspect(), -1, "records")[0].path.clone();
    for byte in [20, 2048 + 20] {
        flip(&newest, byte);
    }
    let ran = scene.run(&["read"]).expect(1);
    let ran = ran.complains("damaged");
    let (printed, whole) = (ran.text(), text(0..2_000));
    assert!(!printed.is_empty() && printed.len() < whole.len() && whole.starts_with(&*printed));
    for (command, code) in [(&["tail"][..], 1), (&["read", "--from", "1999"], 2)] {
        scene.run(command).expect(code).complains("damaged");
    }
}

#[test]
fn a_damaged_control_batch_of_an_older_segment_costs_no_records() {
    let scene = Scene::new();
    let lines = scene.file("lines", text(0..2_000).as_bytes());
    let args = ["append", "--segment-bytes", "16KiB", "--ack", "written"];
    scene.run_with(&args, &lines).expect(0);
    let reserve = &Batch::of(&scene.inspect(), 0, "control")[0];
    flip(&reserve.path, reserve.position + 97);
    scene.run(&["verify"]).expect(1).says("no record lost");
    let before = scene.content();
    scene
        .run(&["repair", "--apply"])
        .expect(1)
        .says("left alone");
    assert_eq!(scene.content(), before);
    assert_eq!(scene.run(&["read"]).expect(0).text(), text(0..2_000));
}

#[test]
fn a_torn_tail_is_a_note_and_no_damage() {
    let scene = Scene::with_store();
    let seals = Batch::of(&scene.inspect(), -1, "control");
    let last = &seals[seals.len() - 1];
    flip(&last.path, last.position + 97);
    let ran = scene.run(&["verify"]).expect(0).says("clean");
    ran.says(&format!(
        "torn tail at byte {} of {}",
        last.position,
        last.path.display()
    ));
    scene.run(&["repair"]).expect(0).says("no damage");
    assert_eq!(scene.run(&["read"]).expect(0).text(), text(0..2_000));
}

#[test]
fn a_lost_seal_is_a_note_and_no_damage() {
    let scene = Scene::with_store();
    let seals = Batch::of(&scene.inspect(), -1, "control");
    flip(
        &seals[seals.len() - 1].path,
        seals[seals.len() - 1].position + 20,
    );
    scene
        .run(&["verify"])
        .expect(0)
        .says("clean")
        .says("the tail is not sealed");
}

#[test]
fn a_damaged_store_file_is_damage() {
    let scene = Scene::with_store();
    flip(&scene.store().join("STORE"), 20);
    scene.run(&["verify"]).expect(1).says("STORE: byte 0");
    scene.run(&["repair"]).expect(1).says("cannot be repaired");
}
