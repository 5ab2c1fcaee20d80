//! Small runs of every workload, and what a session says about plans that cannot be.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use alluvium::BackendKind;
use alluvium_workloads::{
    Alluvium, AtAck, Case, ChecksumScan, Contender, Driven, Error, Naive, Outcome, Plan, RawDisk,
    Report, Role, Run, Session, Sizes, Stop, SyscallCounter, Workload,
};

fn session(stop: &Stop) -> Session {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    Session::create(dir, stop.clone(), SyscallCounter::open()).unwrap()
}

fn contenders(session: &Session) -> Vec<Box<dyn Contender>> {
    vec![
        Box::new(Driven(Alluvium::new(BackendKind::Tokio))),
        Box::new(Driven(Naive)),
        Box::new(RawDisk::new(session.dir()).unwrap()),
        Box::new(ChecksumScan),
    ]
}

fn plan(names: &[&str], rounds: usize) -> Plan {
    let sizes = Sizes {
        read_bytes: 2 << 20,
        reopen_bytes: vec![1 << 20],
        append_bytes_max: 8 << 20,
        raw_file_bytes: 4 << 20,
        recycled_bytes: 4 << 20,
    };
    let cases = names
        .iter()
        .flat_map(|name| Case::parse(name, &sizes.reopen_bytes).unwrap());
    Plan {
        cases: cases.collect(),
        rounds,
        duration: Duration::from_millis(20),
        sizes,
    }
}

async fn run(names: &[&str], rounds: usize) -> Report {
    let session = session(&Stop::default());
    let contenders = contenders(&session);
    let plan = plan(names, rounds);
    let (mut steps, mut total) = (0, 0);
    let report = session
        .run(&plan, &contenders, &mut |step| {
            assert!(step.done < step.total && step.round >= 1);
            assert!(step.done >= steps);
            (steps, total) = (step.done, step.total);
        })
        .await
        .unwrap();
    assert_eq!(steps + 1, total);
    let dir = session.dir().to_path_buf();
    session.close().unwrap();
    assert!(!dir.exists());
    report
}

fn plausible(report: &Report, rounds: usize) {
    for case in &report.cases {
        for contender in &case.contenders {
            let who = format!("{} {}: {contender:?}", case.name, contender.name);
            assert_eq!(contender.rounds.len(), rounds, "{who}");
            let m = &contender.median;
            assert!(m.ops_per_s > 0.0 && m.p50_us > 0.0, "{who}");
            assert!(m.p50_us <= m.p99_us && m.p99_us <= m.p999_us, "{who}");
            assert!(m.p999_us <= m.max_us * 1.01, "{who}");
            let counted = report.syscalls_refused.is_none();
            assert_eq!(m.syscalls_per_op.is_some(), counted, "{who}");
            assert!(!contender.latency_us.is_empty(), "{who}");
        }
    }
}

fn names<'a>(report: &'a Report, case: &str) -> Vec<&'a str> {
    let case = report.cases.iter().find(|c| c.name == case).unwrap();
    case.contenders.iter().map(|c| c.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn appends() {
    let report = run(&["W1", "W2", "W3", "W4", "W5"], 2).await;
    plausible(&report, 2);
    assert_eq!(
        names(&report, "W1"),
        ["alluvium/tokio", "plain tokio::fs", names(&report, "W4")[2]]
    );
    assert_eq!(names(&report, "W3").len(), 2);
    for case in &report.cases {
        let store = &case.contenders[0];
        assert_eq!(
            (store.role, store.durable_at_ack),
            (Role::Store, AtAck::Durable)
        );
        assert!(store.of_plain.is_some_and(|ratio| ratio > 0.0));
        assert_eq!(store.of_reference.is_some(), case.name != "W3");
        assert_eq!(case.reference.is_some(), case.name != "W3");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_partitions() {
    let report = run(&["W3k/20"], 1).await;
    plausible(&report, 1);
    assert_eq!(
        names(&report, "W3k/20"),
        ["alluvium/tokio", "plain tokio::fs"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_reopening() {
    let report = run(&["W6", "W6c", "W7"], 1).await;
    plausible(&report, 1);
    assert_eq!(names(&report, "W6").len(), 3);
    assert_eq!(names(&report, "W6")[2], "crc32 scan");
    assert_eq!(names(&report, "W6c").len(), 3);
    assert_eq!(names(&report, "W7/1MiB"), ["alluvium/tokio"]);
    assert!(report.cases[0].contenders[0].of_reference.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn open_loop_and_bridge() {
    let report = run(&["WT", "WB"], 1).await;
    plausible(&report, 1);
    let store = &report.cases[0].contenders[0];
    assert!(store.median.offered_per_s.is_some_and(|rate| rate > 0.0));
    let bridges: Vec<_> = report.cases[1..].iter().map(|c| c.name.as_str()).collect();
    assert_eq!(bridges, ["WB/1", "WB/64", "WB/1000"]);
    let tables = report.tables();
    assert_eq!(tables.len(), 4);
    for table in tables {
        assert!(!table.rows.is_empty());
        for row in &table.rows {
            assert_eq!(row.len(), table.header.len(), "{row:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_survives_json() {
    let report = run(&["W1", "W6"], 1).await;
    let json = serde_json::to_string(&report).unwrap();
    let back: Report = serde_json::from_str(&json).unwrap();
    assert_eq!(back.cases.len(), 2);
    assert_eq!(back.machine.kernel, report.machine.kernel);
    for (case, read) in report.cases.iter().zip(&back.cases) {
        assert_eq!((&case.name, &case.reference), (&read.name, &read.reference));
        for (contender, read) in case.contenders.iter().zip(&read.contenders) {
            assert_eq!(contender.name, read.name);
            let (a, b) = (contender.median.ops_per_s, read.median.ops_per_s);
            assert!((a / b - 1.0).abs() < 1e-9, "{a} {b}");
            assert_eq!(contender.rounds.len(), read.rounds.len());
            assert_eq!(contender.latency_us.len(), read.latency_us.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_that_cannot_be_are_refused() {
    let session = session(&Stop::default());
    let contenders = contenders(&session);
    let mut none = |_: &_| unreachable!("nothing is run");
    let refused = async |plan: Plan, none: &mut dyn FnMut(&_)| {
        session.run(&plan, &contenders, none).await.unwrap_err()
    };
    let no_rounds = refused(plan(&["W1"], 0), &mut none).await;
    assert!(matches!(
        no_rounds,
        Error::InvalidPlan {
            setting: "rounds",
            ..
        }
    ));
    let no_cases = refused(plan(&[], 1), &mut none).await;
    assert!(matches!(
        no_cases,
        Error::InvalidPlan {
            setting: "workloads",
            ..
        }
    ));
    let mut no_time = plan(&["W1"], 1);
    no_time.duration = Duration::ZERO;
    let no_time = refused(no_time, &mut none).await;
    assert!(matches!(
        no_time,
        Error::InvalidPlan {
            setting: "duration",
            ..
        }
    ));
    let mut huge = plan(&["W1"], 1);
    huge.cases = Workload::W7.cases(&[1 << 60]);
    let huge = refused(huge, &mut none).await;
    assert!(matches!(huge, Error::NoSpace { .. }), "{huge}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_session_ends_and_leaves_nothing() {
    let stop = Stop::default();
    let session = session(&stop);
    let contenders = contenders(&session);
    let mut long = plan(&["W2", "W6"], 1);
    long.duration = Duration::from_secs(3_600);
    let dir = session.dir().to_path_buf();
    let stopping = std::thread::spawn(move || {
        // As soon as the first run has its files.
        while std::fs::read_dir(&dir).unwrap().next().is_none() {
            std::thread::yield_now();
        }
        stop.stop();
    });
    let ended = session.run(&long, &contenders, &mut |_| {}).await;
    let ended = ended.unwrap_err();
    stopping.join().unwrap();
    assert!(matches!(ended, Error::Stopped), "{ended}");
    let dir = session.dir().to_path_buf();
    session.close().unwrap();
    assert!(!dir.exists());
}

/// Names of all errors; a new one needs a line here, as `cargo test --test tidy` says, and a way to
/// reach it below.
const ERRORS: [&str; 9] = [
    "In",
    "InvalidPlan",
    "Io",
    "NoSpace",
    "Peer",
    "Stopped",
    "Store",
    "Task",
    "UnknownWorkload",
];

/// A log of somebody else, of which a task panics or an operation fails.
#[derive(Debug)]
struct Broken {
    panics: bool,
}

impl Contender for Broken {
    fn name(&self) -> String {
        "broken".to_owned()
    }

    fn role(&self) -> Role {
        Role::Peer
    }

    fn at_ack(&self) -> AtAck {
        AtAck::Durable
    }

    fn runs(&self, _: Case) -> bool {
        true
    }

    fn run<'a>(
        &'a self,
        _: Case,
        _: &'a Run,
    ) -> Pin<Box<dyn Future<Output = Result<Outcome, Error>> + Send + 'a>> {
        Box::pin(async {
            if self.panics {
                tokio::spawn(async { panic!("on purpose: a task of a contender") }).await?;
            }
            Err(Error::peer("it does not work"))
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_is_reached() {
    let stop = Stop::default();
    let session = session(&stop);
    let run = async |plan: Plan, contender: Box<dyn Contender>| {
        let failed = session.run(&plan, &[contender], &mut |_| {}).await;
        failed.unwrap_err()
    };
    let mut huge = plan(&["W1"], 1);
    huge.cases = Workload::W7.cases(&[1 << 60]);
    let nowhere = Alluvium::new(BackendKind::Tokio).on_cores(&[usize::MAX]);
    let missing = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no/such/directory");
    let mut errors = vec![
        Case::parse("W9", &[]).unwrap_err(),
        Session::create(&missing, stop.clone(), SyscallCounter::open()).unwrap_err(),
        run(plan(&[], 1), Box::new(Driven(Naive))).await,
        run(huge, Box::new(Driven(Naive))).await,
        run(plan(&["W1"], 1), Box::new(Driven(nowhere))).await,
        run(plan(&["W1"], 1), Box::new(Broken { panics: false })).await,
        run(plan(&["W1"], 1), Box::new(Broken { panics: true })).await,
    ];
    stop.stop();
    errors.push(run(plan(&["W1"], 1), Box::new(Driven(Naive))).await);
    let mut seen = BTreeSet::new();
    for error in &errors {
        let mut error = error;
        loop {
            assert!(!error.to_string().is_empty());
            let debug = format!("{error:?}");
            let end = debug.find([' ', '(', '{']).unwrap_or(debug.len());
            seen.insert(debug[..end].to_owned());
            match error {
                Error::In { source, .. } => error = source,
                _ => break,
            }
        }
    }
    assert_eq!(seen, ERRORS.map(str::to_owned).into());
    session.close().unwrap();
}
