//! The command line tool from the outside: what it prints, what it changes, how it exits.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod compare;
mod damage;
mod refusals;
mod round_trip;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A directory for one test, with a store in it as soon as something was appended.
struct Scene {
    root: TempDir,
}

/// What a run of the tool ended with.
struct Ran {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Scene {
    fn new() -> Self {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { root }
    }

    /// A store with 2,000 lines in several small segments, closed.
    fn with_store() -> Self {
        let scene = Self::new();
        let lines = scene.file("lines", text(0..2_000).as_bytes());
        let args = ["append", "--segment-bytes", "16KiB", "--batch", "10"];
        scene.run_with(&args, &lines).expect(0);
        scene
    }

    fn store(&self) -> PathBuf {
        self.root.path().join("store")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_alluvium"));
        command
            .env("ALLUVIUM_BACKEND", "tokio")
            .env("ALLUVIUM_DIR", self.store());
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args))
    }

    /// Runs with a path as the last argument.
    fn run_with(&self, args: &[&str], path: &Path) -> Ran {
        let mut command = self.command(args);
        command.arg(path);
        Ran::of(command)
    }

    fn run_with_input(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        Ran::from(child.wait_with_output().unwrap())
    }

    /// What `inspect --json` tells about the only partition.
    fn inspect(&self) -> Value {
        let ran = self.run(&["inspect", "--json"]);
        let store: Value = serde_json::from_slice(&ran.out).unwrap();
        store["partitions"][0].clone()
    }

    /// Every file of the store and its content.
    fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = BTreeMap::new();
        collect(&self.store(), &mut all);
        all
    }
}

impl Ran {
    fn of(mut command: Command) -> Self {
        Self::from(command.output().unwrap())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Asserts the exit code and that nothing panicked.
    fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout: {}\nstderr: {}",
            self.text(),
            self.err
        );
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }

    /// Asserts that standard output contains the text.
    fn says(self, what: &str) -> Self {
        assert!(
            self.text().contains(what),
            "{what:?} is not in:\n{}",
            self.text()
        );
        self
    }

    /// Asserts that standard error contains the text.
    fn complains(self, what: &str) -> Self {
        assert!(self.err.contains(what), "{what:?} is not in:\n{}", self.err);
        self
    }
}

impl From<std::process::Output> for Ran {
    fn from(output: std::process::Output) -> Self {
        Self {
            code: output.status.code(),
            out: output.stdout,
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn collect(dir: &Path, all: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, all);
        } else {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
}

/// Lines `line 0`, `line 1`, ...
fn text(range: std::ops::Range<u64>) -> String {
    let lines: Vec<_> = range.map(|n| format!("line {n}\n")).collect();
    lines.concat()
}
