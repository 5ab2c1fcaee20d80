//! `compare`: small runs, both reports read back, arguments that cannot be right, interruption.

use std::fs;
use std::path::Path;
use std::process::Command;

use alluvium::backends::tokio::TokioFactory;
use alluvium::io::BackendFactory;
use serde_json::Value;

use crate::{Ran, Scene};

/// As little as measures something.
const SMALL: [&str; 8] = [
    "compare",
    "--quick",
    "--seconds",
    "0.01",
    "--read-size",
    "2MiB",
    "--reopen-size",
    "1MiB",
];

impl Scene {
    /// A scene with an empty directory where others have the store.
    fn for_comparison() -> Self {
        let scene = Self::new();
        fs::create_dir(scene.store()).unwrap();
        scene
    }

    fn compare(&self, args: &[&str]) -> Command {
        self.command(&[&SMALL, args].concat())
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

fn names(case: &Value) -> Vec<&str> {
    let contenders = case["contenders"].as_array().unwrap();
    let name = |c: &'_ Value| c["name"].as_str().map(ToOwned::to_owned);
    assert!(contenders.iter().all(|c| name(c).is_some()));
    contenders
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect()
}

#[test]
fn every_workload_runs_and_is_reported() {
    let scene = Scene::for_comparison();
    let (json, html) = (scene.path("report.json"), scene.path("report.html"));
    let mut command = scene.compare(&[
        "--workloads",
        "W1,W2,W3,W3k/20,W4,W5,W6,W6c,W7,WT,WB",
        "--against",
        "naive",
    ]);
    command.arg("--json").arg(&json).arg("--html").arg(&html);
    let ran = Ran::of(command).expect(0);
    assert!(is_empty(&scene.store()));

    let report: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let cases = report["cases"].as_array().unwrap();
    let found: Vec<_> = cases.iter().map(|c| c["name"].as_str().unwrap()).collect();
    let expected = [
        "W1", "W2", "W3", "W3k/20", "W4", "W5", "W6", "W6c", "W7/1MiB", "WT", "WB/1", "WB/64",
        "WB/1000",
    ];
    assert_eq!(found, expected);
    for case in cases {
        assert_eq!(names(case)[0], "alluvium/tokio");
        for contender in case["contenders"].as_array().unwrap() {
            let median = &contender["median"];
            assert!(median["ops_per_s"].as_f64().unwrap() > 0.0, "{contender}");
            assert_eq!(contender["rounds"].as_array().unwrap().len(), 1);
        }
    }
    assert_eq!(names(&cases[0])[1], "plain tokio::fs");
    let scanned = names(&cases[6]);
    assert_eq!(
        scanned[1..],
        ["alluvium/tokio mmap", "plain tokio::fs", "crc32 scan"]
    );
    for fact in ["kernel", "cores", "file_system", "alignment"] {
        assert!(!report["machine"][fact].is_null(), "{fact}");
    }
    for name in expected {
        assert!(ran.text().contains(&format!("\n{name}: ")), "{name}");
    }
    ran.says("p99.9").says("of plain").says("target <= 1.25");

    page_is_whole(&fs::read_to_string(html).unwrap(), cases);
}

#[test]
fn shards_are_pinned_on_request() {
    let scene = Scene::for_comparison();
    let core = TokioFactory::new().allowed_cores()[0].to_string();
    let ran = Ran::of(scene.compare(&["--workloads", "W1", "--cores", &core])).expect(0);
    ran.says(&format!("alluvium/tokio@{core} "));
}

/// Well formed, self-contained, with a chart for each case and every contender in both.
fn page_is_whole(page: &str, cases: &[Value]) {
    let options = roxmltree::ParsingOptions {
        allow_dtd: true,
        ..Default::default()
    };
    let document = roxmltree::Document::parse_with_options(page, options).unwrap();
    let all = |name: &'static str| {
        let nodes = document.descendants();
        nodes.filter(move |node| node.tag_name().name() == name)
    };
    let charts: Vec<_> = all("svg").collect();
    let tables: Vec<_> = all("tbody").collect();
    assert_eq!(charts.len(), cases.len());
    assert_eq!(tables.len(), cases.len());
    for ((case, chart), table) in cases.iter().zip(charts).zip(tables) {
        let curves = chart
            .descendants()
            .filter(|node| node.tag_name().name() == "polyline")
            .count();
        assert!(curves >= names(case).len(), "{}", case["name"]);
        for (place, node) in [("chart", chart), ("table", table)] {
            let text: String = node.descendants().filter_map(|n| n.text()).collect();
            for name in names(case) {
                assert!(text.contains(name), "{name} is not in the {place}: {text}");
            }
        }
    }
    for node in document.descendants() {
        let mut attributes = node.attributes();
        let outside = attributes.find(|a| ["src", "href"].contains(&a.name()));
        assert!(outside.is_none(), "{outside:?}");
    }
    assert!(!page.contains("url(") && !page.contains("@import"));
}

#[test]
fn arguments_that_cannot_be_right_are_named() {
    let scene = Scene::for_comparison();
    let missing = scene.path("no/such/report");
    let missing = missing.to_str().unwrap();
    let refused = [
        (vec!["--workloads", "W9"], "unknown workload `W9`"),
        (vec!["--workloads", "W7/1"], "unknown workload `W7/1`"),
        (vec!["--backends", "tokyo"], "backend `tokyo` is unknown"),
        (vec!["--rounds", "0"], "0 is not in 1.."),
        (vec!["--against", "everybody"], "naive"),
        (vec!["--json", missing], missing),
        (vec!["--workloads", "W1", "--cores", "9999"], "core 9999"),
        (vec!["--html", missing], missing),
        (
            vec!["--workloads", "W7", "--reopen-size", "1EiB"],
            "bytes free",
        ),
    ];
    for (args, why) in refused {
        Ran::of(scene.compare(&args)).expect(2).complains(why);
        assert!(is_empty(&scene.store()), "{args:?}");
    }
    let no_time = scene.run(&["compare", "--seconds", "0"]).expect(2);
    no_time.complains("above 0");
}

#[test]
fn directories_that_cannot_be_right_are_named() {
    let scene = Scene::new();
    let ran = Ran::of(scene.compare(&[])).expect(2);
    ran.complains("not a directory");

    let scene = Scene::with_store();
    let before = scene.content();
    Ran::of(scene.compare(&[]))
        .expect(2)
        .complains("is a store");
    assert_eq!(scene.content(), before);
}

#[test]
fn memory_is_refused_unless_it_is_asked_for() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let scene = Scene::new();
    let in_memory = |args: &[&str]| {
        let mut command = scene.compare(&[&["--workloads", "W1"], args].concat());
        command.env("ALLUVIUM_DIR", memory.path());
        Ran::of(command)
    };
    let refused = in_memory(&[]).expect(2);
    refused.complains("tmpfs").complains("--allow-tmpfs");
    assert!(is_empty(memory.path()));
    in_memory(&["--allow-tmpfs"]).expect(0).says("tmpfs");
    assert!(is_empty(memory.path()));
}

#[test]
fn an_interruption_leaves_nothing_behind() {
    let scene = Scene::for_comparison();
    for signal in ["-INT", "-TERM"] {
        let args = [
            "compare",
            "--quick",
            "--workloads",
            "W2",
            "--seconds",
            "3600",
        ];
        let child = scene.command(&args).spawn().unwrap();
        // From the first file on there is something to leave behind.
        while is_empty(&scene.store()) {
            std::thread::yield_now();
        }
        let id = child.id().to_string();
        let killed = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(killed.success());
        let ran = Ran::from(child.wait_with_output().unwrap()).expect(2);
        ran.complains("stopped");
        assert!(is_empty(&scene.store()), "{signal}");
    }
}

#[test]
fn a_store_under_load_and_at_rest_is_watched() {
    let scene = Scene::for_comparison();
    let stress = |producers| {
        let brief = ["stress", "--seconds", "1", "--interval", "1"];
        let small = ["--segment-bytes", "1MiB", "--retention-bytes", "4MiB"];
        scene.run(&[&brief[..], &small, &["--producers", producers]].concat())
    };
    let loaded = stress("4").expect(0);
    loaded.says("appends/s").says("descriptors").says("our own");
    let idle = stress("0").expect(0);
    idle.says("0 appends/s").says("0 appends, 0 removed");
    assert!(is_empty(&scene.store()));
    fs::remove_dir(scene.store()).unwrap();
    stress("1").expect(2).complains("not a directory; name one");
}
