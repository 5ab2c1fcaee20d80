//! The rules: each looks at one file, by its path from the root, and names what breaks it.

/// Most lines that a file may have.
const LINES_MAX: usize = 600;

/// Folders of the engine in the order of the data path: each uses only those before it.
const LAYERS: [&str; 9] = [
    "format",
    "io",
    "segment",
    "commit",
    "recovery",
    "partition",
    "shard",
    "bridge",
    "store",
];

/// The one exception: batches are encoded into memory that direct I/O accepts.
const FORMAT_MAY_USE: [&str; 2] = [
    "crate::io::AlignedBuf;",
    "crate::io::{AlignedBuf, BufPool};",
];

/// Files at the engine's root that every folder may use.
const SHARED: [&str; 5] = ["error", "config", "offset", "metrics", "sync"];

/// What only the seam of the engine may name.
const OUTSIDE: [&str; 5] = [
    "std::fs",
    "std::thread",
    "std::time::Instant",
    "SystemTime",
    "HashMap",
];

pub(crate) fn short(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if lines < LINES_MAX {
        return vec![];
    }
    vec![format!(
        "{path}: {lines} lines, fewer than {LINES_MAX} are allowed"
    )]
}

pub(crate) fn module_doc(path: &str, text: &str) -> Vec<String> {
    let first = text.lines().find(|line| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with("#![")
    });
    let documented =
        first.is_some_and(|line| line.starts_with("//!")) || text.contains("#![doc = include_str!");
    if documented {
        return vec![];
    }
    vec![format!("{path}:1: no module documentation")]
}

pub(crate) fn finished(path: &str, text: &str) -> Vec<String> {
    // Put together here, so that this file does not break its own rule.
    let words = [
        ["todo", "!"],
        ["unimplemented", "!"],
        ["#[ign", "ore"],
        ["dbg", "!"],
    ];
    let words = words.map(|parts| parts.concat());
    lines_with(path, text, &words.each_ref().map(String::as_str))
}

pub(crate) fn engine_seam(path: &str, text: &str) -> Vec<String> {
    // What threads share, and how they make way for each other, is one file's.
    if engine_layer(path).is_none_or(|layer| layer == "sync") {
        return vec![];
    }
    lines_with(path, code_of(text), &OUTSIDE)
}

pub(crate) fn engine_imports(path: &str, text: &str) -> Vec<String> {
    let Some(own) = engine_layer(path) else {
        return vec![];
    };
    let Some(rank) = LAYERS.iter().position(|layer| *layer == own) else {
        // Files at the root are used by all, and may use the format and the seam.
        return used_layers(path, code_of(text), |layer| {
            own == "lib" || SHARED.contains(&layer) || ["format", "io"].contains(&layer)
        });
    };
    used_layers(path, code_of(text), |layer| {
        SHARED.contains(&layer) || LAYERS.iter().position(|l| *l == layer) <= Some(rank)
    })
}

/// Folder (or file at the root) of the engine that a path is in; `None` elsewhere.
fn engine_layer(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("core/src/")?;
    Some(inside.split(['/', '.']).next().unwrap_or(inside))
}

/// What stands before the unit tests, which may use more.
fn code_of(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

/// Lines of code (not comments) that contain one of the words.
fn lines_with(path: &str, text: &str, words: &[&str]) -> Vec<String> {
    let mut found = vec![];
    for (number, line) in (1..).zip(text.lines()) {
        let is_comment = line.trim_start().starts_with("//");
        for word in words {
            if !is_comment && line.contains(word) {
                found.push(format!("{path}:{number}: {word}"));
            }
        }
    }
    found
}

/// Uses of `crate::layer` that are not allowed, also in groups of a `use`.
fn used_layers(path: &str, text: &str, allowed: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = vec![];
    for (number, line) in (1..).zip(text.lines()) {
        let excepted = path.starts_with("core/src/format/")
            && FORMAT_MAY_USE.iter().any(|used| line.ends_with(used));
        if excepted || line.trim_start().starts_with("//") {
            continue;
        }
        for rest in line.split("crate::").skip(1) {
            let names = match rest.strip_prefix('{') {
                Some(group) => group.split([',', '}']).map(str::trim).collect(),
                None => vec![rest],
            };
            for name in names {
                let word = |c: char| !c.is_alphanumeric() && c != '_';
                let name = name.split(word).next().unwrap_or(name);
                let is_module = LAYERS.contains(&name) || SHARED.contains(&name);
                if is_module && !allowed(name) {
                    found.push(format!("{path}:{number}: uses {name}"));
                }
            }
        }
    }
    found
}

#[test]
fn a_long_file_is_found() {
    assert_eq!(short("a.rs", &"x\n".repeat(599)).len(), 0);
    assert_eq!(short("a.rs", &"x\n".repeat(600)).len(), 1);
}

#[test]
fn a_missing_module_doc_is_found() {
    assert_eq!(module_doc("a.rs", "//! What.\nuse b;\n").len(), 0);
    assert_eq!(module_doc("a.rs", "\n#![allow(x)]\n//! What.\n").len(), 0);
    assert_eq!(module_doc("a.rs", "use b;\n//! Late.\n").len(), 1);
    assert_eq!(module_doc("a.rs", "/// Of the item.\nfn f() {}\n").len(), 1);
    assert_eq!(module_doc("a.rs", "").len(), 1);
}

#[test]
fn unfinished_code_and_ignored_tests_are_found() {
    let planted = ["fn f() { todo", "!() }\n#[ign", "ore]\nfn g() {}\n"].concat();
    let found = finished("a.rs", &planted);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("a.rs:1:") && found[1].starts_with("a.rs:2:"));
    assert_eq!(finished("a.rs", "fn f() {}\n").len(), 0);
}

#[test]
fn a_way_around_the_seam_is_found() {
    let planted = "use std::fs::File;\nlet t = std::time::Instant::now();\n";
    assert_eq!(engine_seam("core/src/segment/mod.rs", planted).len(), 2);
    let comment = "// std::fs is not for us\n";
    assert_eq!(engine_seam("core/src/segment/mod.rs", comment).len(), 0);
    assert_eq!(engine_seam("backends/src/posix.rs", planted).len(), 0);
    let tests = "fn f() {}\n#[cfg(test)]\nmod tests { use std::fs; }\n";
    assert_eq!(engine_seam("core/src/segment/mod.rs", tests).len(), 0);
}

#[test]
fn a_dependency_outwards_is_found() {
    let uses = |path, text| engine_imports(path, text).len();
    assert_eq!(
        uses("core/src/segment/scan.rs", "use crate::format::X;\n"),
        0
    );
    assert_eq!(
        uses("core/src/segment/scan.rs", "use crate::segment::X;\n"),
        0
    );
    assert_eq!(
        uses("core/src/segment/scan.rs", "use crate::partition::X;\n"),
        1
    );
    assert_eq!(
        uses("core/src/segment/scan.rs", "use crate::{io::X, shard};\n"),
        1
    );
    assert_eq!(
        uses("core/src/format/mod.rs", "let x = crate::io::f();\n"),
        1
    );
    assert_eq!(
        uses("core/src/bridge/mod.rs", "use crate::error::Error;\n"),
        0
    );
    assert_eq!(uses("core/src/config.rs", "use crate::store::X;\n"), 1);
    assert_eq!(uses("core/src/lib.rs", "use crate::store::X;\n"), 0);
    assert_eq!(uses("core/src/store.rs", "use crate::bridge::X;\n"), 0);
    assert_eq!(uses("backends/src/lib.rs", "use crate::store::X;\n"), 0);
}
