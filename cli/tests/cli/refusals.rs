//! Paths and arguments that cannot be right: named, with what to do, and nothing is created.

use std::fs::{self, File};

use crate::{Ran, Scene};

#[test]
fn a_missing_directory_is_named() {
    let scene = Scene::new();
    for command in ["verify", "read", "tail", "inspect", "repair"] {
        let ran = scene
            .run(&[command])
            .expect(2)
            .complains("the directory does not exist");
        ran.complains(scene.store().to_str().unwrap());
        assert!(!scene.store().exists(), "{command}");
    }
    let mut without = scene.command(&["verify"]);
    without.env_remove("ALLUVIUM_DIR");
    Ran::of(without).expect(2).complains("--dir");
}

#[test]
fn a_directory_without_a_parent_is_not_made() {
    let scene = Scene::new();
    let deep = scene.store().join("deeper");
    let mut command = scene.command(&["append"]);
    command.arg("--dir").arg(&deep);
    Ran::of(command)
        .expect(2)
        .complains(deep.to_str().unwrap())
        .complains("create that first");
    assert!(!scene.store().exists());
}

#[test]
fn a_file_is_not_a_store() {
    let scene = Scene::new();
    let file = scene.file("store", b"text");
    for command in ["verify", "read", "tail", "inspect", "repair", "append"] {
        let ran = scene.run(&[command]).expect(2).complains("not a directory");
        ran.complains(file.to_str().unwrap());
    }
    assert_eq!(fs::read(file).unwrap(), b"text");
}

#[test]
fn a_foreign_directory_is_left_alone() {
    let scene = Scene::new();
    fs::create_dir(scene.store()).unwrap();
    fs::write(scene.store().join("diary"), "mine").unwrap();
    let before = scene.content();
    for command in ["verify", "read", "tail", "inspect", "repair", "append"] {
        scene
            .run(&[command])
            .expect(2)
            .complains("has no STORE file");
    }
    assert_eq!(scene.content(), before);
}

#[test]
fn partitions_and_inputs_that_are_not_there_are_named() {
    let scene = Scene::with_store();
    for command in ["verify", "read", "tail", "inspect", "repair"] {
        let ran = scene.run(&[command, "--partition", "9"]).expect(2);
        ran.complains("partition 9 does not exist; this store has");
    }
    let missing = scene.path("missing");
    let ran = scene
        .run_with(&["append"], &missing)
        .expect(2)
        .complains("open");
    ran.complains(missing.to_str().unwrap());
    scene
        .run_with(&["append"], &scene.store())
        .expect(2)
        .complains("is a directory");
    scene
        .run(&["append", "--segment-bytes", "1000"])
        .expect(2)
        .complains("segment_bytes");
}

#[test]
fn unknown_backends_are_explained() {
    let scene = Scene::new();
    let ran = scene.run(&["verify", "--backend", "tokyo"]).expect(2);
    ran.complains("backend `tokyo` is unknown; allowed: auto, uring, compio, tokio");
}

#[test]
fn an_output_that_is_full_is_told() {
    let scene = Scene::with_store();
    for command in ["read", "inspect", "verify"] {
        let mut command = scene.command(&[command]);
        command.stdout(File::options().write(true).open("/dev/full").unwrap());
        let ran = Ran::of(command).expect(2);
        ran.complains("write to standard output: No space left on device");
    }
}
