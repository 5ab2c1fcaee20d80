//! Many lineages on several threads, until there were enough cases or one fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Coverage, Lineage, Ran, Smallest, shrink};

/// How much to run, and where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Seed of the first lineage.
    pub first: u64,
    /// How many cases.
    pub cases: u64,
    /// How long, at most.
    pub seconds: Option<u64>,
    /// On how many threads.
    pub threads: u64,
    /// Whether every recovery is struck.
    pub nested: bool,
}

impl Settings {
    /// So many cases on two threads, whatever the environment says.
    pub fn cases(cases: u64) -> Self {
        Self {
            first: 0,
            cases,
            seconds: None,
            threads: 2,
            nested: false,
        }
    }

    /// What the environment asks for; `cases` cases when it says nothing.
    pub fn from_environment(cases: u64) -> Self {
        let seconds = setting("SECONDS");
        let cases = setting("CASES").unwrap_or(if seconds.is_some() { u64::MAX } else { cases });
        Self {
            first: setting("FIRST").unwrap_or(0),
            seconds,
            threads: setting("THREADS").unwrap_or(2).max(1),
            nested: setting("NESTED").is_some_and(|n| n != 0),
            ..Self::cases(cases)
        }
    }

    fn lineage(&self, n: u64) -> Lineage {
        Lineage {
            nested: self.nested,
            ..Lineage::new(self.first.wrapping_add(n))
        }
    }
}

/// A number from the environment.
pub fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// A lineage that broke a promise, and the least of it that still does.
#[derive(Debug)]
pub struct Failure {
    /// As it was met.
    pub lineage: Lineage,
    /// What was wrong.
    pub violation: String,
    /// Its reduction.
    pub smallest: Smallest,
}

impl Failure {
    /// What to print: both forms with what they break, and how to run them again.
    pub fn report(&self, replay: &str) -> String {
        let (lineage, least) = (&self.lineage, &self.smallest);
        format!(
            "seed {}: {}\nreplay: {lineage} {replay}\n\
             reduced in {} runs to {} lives, {} steps: {}\nreplay: {} {replay}",
            lineage.seed,
            self.violation,
            least.runs,
            least.ran.lives,
            least.ran.steps.len(),
            least.ran.violation.as_deref().unwrap_or("nothing"),
            least.lineage,
        )
    }
}

/// What a run found.
#[derive(Debug)]
pub struct Summary<C> {
    /// What it met.
    pub coverage: C,
    /// Seeds that ran.
    pub lineages: u64,
    /// Crashes whose recovery was judged.
    pub cases: u64,
    /// From beginning to end.
    pub elapsed: Duration,
    /// Time of processors that it took.
    pub cpu: Duration,
    /// The first lineage that failed.
    pub failure: Option<Failure>,
}

impl<C: Coverage> Summary<C> {
    /// Lines that tell how much was run, how fast, and what was met.
    pub fn text(&self) -> String {
        let per_second =
            |time: Duration| u128::from(self.cases) * 1_000_000 / time.as_micros().max(1);
        let counts = self.coverage.all().into_iter();
        let counts: Vec<String> = counts
            .map(|(name, count)| format!("{count:>12} {name}"))
            .collect();
        let counts = counts.join("\n");
        format!(
            "{} cases in {} lineages, {:.1?}: {} cases/s, {} cases/s and core\n{counts}",
            self.cases,
            self.lineages,
            self.elapsed,
            per_second(self.elapsed),
            per_second(self.cpu),
        )
    }
}

/// Runs the lineages of one seed after the other until there were enough cases or one failed, and
/// reduces that one.
pub fn run<C: Coverage>(
    settings: Settings,
    run_one: impl Fn(&Lineage, &mut C) -> Ran + Sync,
) -> Summary<C> {
    let begin = Instant::now();
    let (next, cases, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let found = Mutex::new((C::default(), None::<(Lineage, Ran)>, Duration::ZERO));
    let guarded = |lineage: &Lineage, coverage: &mut C| guarded(lineage, coverage, &run_one);
    let work = || {
        let cpu = thread_cpu_time();
        let mut coverage = C::default();
        let mut failed = None;
        let late = || {
            settings
                .seconds
                .is_some_and(|s| begin.elapsed() >= Duration::from_secs(s))
        };
        while !stop.load(Ordering::Relaxed)
            && cases.load(Ordering::Relaxed) < settings.cases
            && !late()
        {
            let lineage = settings.lineage(next.fetch_add(1, Ordering::Relaxed));
            let ran = guarded(&lineage, &mut coverage);
            cases.fetch_add(ran.cases, Ordering::Relaxed);
            if ran.violation.is_some() {
                stop.store(true, Ordering::Relaxed);
                failed = Some((lineage, ran));
            }
        }
        let mut found = found.lock().unwrap();
        found.0.add(&coverage);
        found.2 += thread_cpu_time().saturating_sub(cpu);
        let lowest = found.1.as_ref().map_or(u64::MAX, |f| f.0.seed);
        if let Some(failed) = failed.filter(|f| f.0.seed <= lowest) {
            found.1 = Some(failed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..settings.threads {
            scope.spawn(work);
        }
    });
    let elapsed = begin.elapsed();
    let (coverage, failed, cpu) = found.into_inner().unwrap();
    let failure = failed.map(|(lineage, ran)| Failure {
        violation: ran.violation.clone().unwrap_or_default(),
        smallest: shrink(&lineage, &ran, |l| guarded(l, &mut C::default())),
        lineage,
    });
    Summary {
        coverage,
        lineages: next.into_inner(),
        cases: cases.into_inner(),
        elapsed,
        cpu,
        failure,
    }
}

/// A panic of the engine is a violation, too: an assertion that did not hold.
fn guarded<C>(
    lineage: &Lineage,
    coverage: &mut C,
    run_one: &impl Fn(&Lineage, &mut C) -> Ran,
) -> Ran {
    let ran = catch_unwind(AssertUnwindSafe(|| run_one(lineage, coverage)));
    ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Ran {
            violation: Some(format!("P10 a panic: {}", text.unwrap_or_default())),
            ..Ran::default()
        }
    })
}

/// Time that this thread has spent on a processor; the machine may have others to serve.
fn thread_cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
